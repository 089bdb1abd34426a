"""Handlers for stderr: plain lines, JSON lines, faults only, and bars in a real pseudo-terminal."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.console.events import StageProgress, StepFinished, to_json
from cluster.console.log import LOG, JsonHandler, LineHandler, info, shown_by, warn
from cluster.console.progress import (
    begin_setup_part,
    report_step,
    report_wait,
    setup_progress,
    stage_progress,
)

pytestmark = pytest.mark.medium

METRICS = {
    "time/step_s": 4.21,
    "rollout/reward/mean": 0.414,
    "rollout/turns/mean": 5.2,
    "rollout/tokens_per_s": 8123.0,
    "buffer/age/max": 0.0,
    "learner/idle/share": 0.064,
    "engine/idle/share": 0.02,
    "ledger/issued": 640.0,
    "ledger/trained": 624.0,
    "ledger/in_flight": 16.0,
}
ROOT = Path(__file__).parents[3]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def a_stage(**changes: object) -> StageProgress:
    values = {"stage": "evaluate sft", "done": 60, "total": 600, "note": "score 0.31", "elapsed_s": 12.3}
    return StageProgress(**{**values, "left_s": 110.0, **changes})  # type: ignore[arg-type]


def test_a_plain_stage_line_has_the_remaining_time(capsys: pytest.CaptureFixture[str]) -> None:
    LOG.info(a_stage())
    assert capsys.readouterr().err == "evaluate sft 60/600 | 12.3s | 1m 50s left | score 0.31\n"


def test_a_repeated_stage_logs_its_lines_again(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with stage_progress("validate", total=1) as advance:
            advance(1, "")
    assert [line.partition(" |")[0] for line in capsys.readouterr().err.splitlines()] == ["validate 1/1"] * 2


def test_a_set_up_logs_its_parts_with_the_remaining_time(capsys: pytest.CaptureFixture[str]) -> None:
    with setup_progress(("Ray", "weights")):
        begin_setup_part("Ray")
        begin_setup_part("weights")
        begin_setup_part("of another set-up")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["set-up 1/2", "set-up 2/2"]
    assert lines[0].endswith("2s left | weights")  # the first guess
    begin_setup_part("Ray")  # outside of a set-up
    assert capsys.readouterr().err == ""


def test_control_characters_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    info("engine\x1b[2J is lost\r\n")
    assert capsys.readouterr().err == "engine [2J is lost  \n"


def test_quiet_lines_are_faults_only(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_by(LineHandler(logging.WARNING)):
        info("fine")
        report_step(1, num_steps=2, metrics=METRICS)
        with stage_progress("SFT", total=1) as advance:
            advance(1, "")
        warn("engine 1 is lost")
    assert capsys.readouterr().err == "engine 1 is lost\n"


def test_json_lines_have_steps_and_changes_of_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_by(JsonHandler()):
        report_step(12, num_steps=60, metrics={**METRICS, "engine/idle/share": float("nan")})
        report_wait("")  # it did not wait
        report_wait("step 13 waits for groups")
        report_wait("")
    step, waits, resumes = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (step["event"], step["step"], step["num_steps"], step["left_s"]) == ("step", 12, 60, None)
    assert step["metrics"]["rollout/reward/mean"] == 0.414
    assert step["metrics"]["engine/idle/share"] is None
    assert step["text"].startswith("step 12/60 | 4.2s | reward 0.41")
    assert [waits["event"], waits["text"], resumes["text"]] == ["waits", "step 13 waits for groups", ""]
    assert all(line["time"] > 1.7e9 for line in (step, waits, resumes))


def test_a_stage_in_json_has_a_line_each_second_and_at_its_start_and_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e9
    monkeypatch.setattr(time, "time", lambda: now)
    with shown_by(JsonHandler()), stage_progress("SFT", total=100) as advance:
        for seconds in (0.5, 1.0, 1.5, 1.6):
            now = 1e9 + seconds
            advance(1, "loss 1.0")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["elapsed_s"], line["done"], line["is_over"]) for line in lines] == [
        (0.0, 0, False),
        (1.0, 2, False),
        (pytest.approx(1.6), 4, True),
    ]
    assert (lines[1]["left_s"], lines[1]["stage"], lines[1]["note"]) == (49.0, "SFT", "loss 1.0")


def test_quiet_json_lines_are_faults_only(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_by(JsonHandler(logging.WARNING)):
        info("fine")
        warn("engine 1 is lost")
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["text"]) == ("trouble", "engine 1 is lost")


STRAY = """
import os, sys, warnings
from cluster.console.log import JsonHandler, info, shown_by
with shown_by(JsonHandler()):
    info("before")
    print("two\\nlines", file=sys.stderr)
    warnings.warn("old name")
    os.write(2, b"[2026-11-22 05:28:18 E] written by a library in C++\\n")
    os.system("echo of a child >&2")
    print("without an end", end="", file=sys.stderr)
print("after", file=sys.stderr)
"""


def test_whatever_else_writes_to_stderr_becomes_lines_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRAY], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    *lines, last = done.stderr.splitlines()
    events = [json.loads(line) for line in lines]
    assert {event["event"] for event in events} == {"line"}
    assert sorted(event["text"] for event in events) == [
        "<string>:7: UserWarning: old name",
        "[2026-11-22 05:28:18 E] written by a library in C++",
        "before",
        "lines",
        "of a child",
        "two",
        "without an end",
    ]
    assert last == "after"


def test_an_event_is_one_line_of_json() -> None:
    event = StepFinished(step=1, num_steps=2, text="a\nb", left_s=float("inf"), metrics={"x": 1.0})
    assert to_json(event, at=5.0) == (
        '{"time": 5.0, "event": "step", "step": 1, "num_steps": 2, "text": "a\\nb", "left_s": null, '
        '"metrics": {"x": 1.0}}'
    )


def in_a_terminal(program: str) -> tuple[int, str, str]:
    """Exit code, stdout and what the terminal got, of a Python program whose stderr is a terminal."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 2**16)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.decode(), shown.decode()


BARS = (
    f"METRICS = {METRICS!r}\n"
    + """
import time
from cluster.console.log import LOG, info
from cluster.console.progress import stage_progress, report_step, report_wait, estimated_by
from cluster.console.events import RunProgress
from cluster.console.output import put, with_output
from cluster.console.eta import RunClock

def work():
    with estimated_by(RunClock(num_steps=9), setup_s={}):
        LOG.debug(RunProgress(run="mine", step=0, num_steps=9))
        with stage_progress("SFT", total=4) as advance:
            for _ in range(4):
                time.sleep(0.4)
                advance(1, "loss 1.0")
        for step in (1, 2):
            report_wait("step waits for groups")
            time.sleep(0.4)
            report_step(step, num_steps=9, metrics=METRICS)
        time.sleep(0.4)
        info("a line")
        put("the result")
        print("stray", file=__import__("sys").stderr)
    return 0

raise SystemExit(with_output([], work))
"""
)


def test_a_terminal_has_bars_with_the_remaining_time_below_the_lines() -> None:
    code, out, shown = in_a_terminal(BARS)
    assert (code, out) == (0, "the result\n"), shown
    plain = ESCAPE.sub("", shown).replace("\r", "\n")  # a line that is redrawn
    assert re.search(r"SFT +\S+ 1/4 0:00:0\d \ds left loss 1\.0", plain), plain
    assert re.search(r"run mine +\S+ 2/9 0:00:0\d \ds left", plain), plain
    assert "step waits for groups" in plain
    assert re.search(r"^SFT 4/4 \| \d\.\ds \| loss 1\.0 *$", plain, re.M), "a finished stage is a line"
    assert re.search(r"^step 2/9 \| 4\.2s \| \ds left \| reward 0\.41", plain, re.M), plain
    assert re.search(r"^a line *$", plain, re.M) and re.search(r"^stray *$", plain, re.M)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


def test_a_dumb_terminal_gets_plain_lines() -> None:
    program = BARS.replace("import time\n", "import os, time\nos.environ['TERM'] = 'dumb'\n", 1)
    code, out, shown = in_a_terminal(program)
    assert (code, out) == (0, "the result\n")
    assert "\x1b" not in shown and "SFT 1/4 | " in shown
