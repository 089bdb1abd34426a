"""The ways of showing: plain and JSON lines, troubles alone, and bars in a real pseudo-terminal."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.console.event_bus import AUDIENCE
from cluster.console.events import StageProgress, StepFinished, to_json
from cluster.console.progress import say, set_up, setting_up, stage_progress, tell_step, waits_for, warn
from cluster.console.screens import JsonScreen, PlainScreen, QuietScreen

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


def test_a_plain_stage_has_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen().hear(a_stage())
    assert capsys.readouterr().err == "evaluate sft 60/600 | 12.3s | 1m 50s left | score 0.31\n"


def test_a_stage_that_comes_again_begins_its_lines_anew(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with stage_progress("validate", total=1) as advance:
            advance(1, "")
    assert [line.partition(" |")[0] for line in capsys.readouterr().err.splitlines()] == ["validate 1/1"] * 2


def test_a_set_up_is_told_part_by_part_with_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with set_up(("Ray", "weights")):
        setting_up("Ray")
        setting_up("weights")
        setting_up("of another set-up")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["set-up 1/2", "set-up 2/2"]
    assert lines[0].endswith("2s left | weights")  # the first guess
    setting_up("Ray")  # by somebody who tells nothing
    assert capsys.readouterr().err == ""


def test_what_would_steer_a_terminal_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    say("engine\x1b[2J is lost\r\n")
    assert capsys.readouterr().err == "engine [2J is lost  \n"


def test_a_quiet_screen_shows_what_went_wrong_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with AUDIENCE.watching(QuietScreen()):
        say("fine")
        tell_step(1, num_steps=2, metrics=METRICS)
        with stage_progress("SFT", total=1) as advance:
            advance(1, "")
        warn("engine 1 is lost")
    assert capsys.readouterr().err == "engine 1 is lost\n"


def test_json_lines_hold_what_is_told_and_what_others_write(capsys: pytest.CaptureFixture[str]) -> None:
    with AUDIENCE.watching(JsonScreen(is_quiet=False)):
        tell_step(12, num_steps=60, metrics={**METRICS, "engine/idle/share": float("nan")})
        waits_for("")  # it did not wait
        waits_for("step 13 waits for groups")
        waits_for("")
        print("old\nname", file=sys.stderr)
        print("no end", end="", file=sys.stderr)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    step, waits, goes_on, *stray = lines
    assert (step["event"], step["step"], step["num_steps"], step["left_s"]) == ("step", 12, 60, None)
    assert step["metrics"]["rollout/reward/mean"] == 0.414
    assert step["metrics"]["engine/idle/share"] is None
    assert step["text"].startswith("step 12/60 | 4.2s | reward 0.41")
    assert [waits["event"], waits["text"], goes_on["text"]] == ["waits", "step 13 waits for groups", ""]
    assert {line["event"] for line in stray} == {"line"}
    assert [line["text"] for line in stray] == ["old", "name", "no end"]
    assert all(line["time"] > 1.7e9 for line in lines)


def test_a_stage_in_json_is_told_once_a_second_and_at_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    screen = JsonScreen(is_quiet=False)
    with AUDIENCE.watching(screen):
        for at, done in ((0.0, 0), (0.5, 1), (1.0, 2), (1.5, 3), (1.6, 3)):
            screen.hear(a_stage(at=at, done=done, is_over=at == 1.6))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["time"], line["done"], line["is_over"]) for line in lines] == [
        (0.0, 0, False),
        (1.0, 2, False),
        (1.6, 3, True),
    ]
    assert lines[1]["left_s"] == 110.0 and lines[1]["stage"] == "evaluate sft"


def test_a_quiet_json_screen_shows_troubles_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with AUDIENCE.watching(JsonScreen(is_quiet=True)):
        say("fine")
        warn("engine 1 is lost")
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["text"]) == ("trouble", "engine 1 is lost")


NATIVE = """
import os, sys
from cluster.console.progress import say
from cluster.console.screens import JsonScreen
from cluster.console.event_bus import AUDIENCE
with AUDIENCE.watching(JsonScreen(is_quiet=False)):
    say("before")
    os.write(2, b"[2026-11-22 05:28:18 E] a word of a library in C++\\n")
    os.write(2, b"without an end")
print("after", file=sys.stderr)
"""


def test_what_is_written_below_python_is_a_line_of_json_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NATIVE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    *lines, last = done.stderr.splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == ["[2026-11-22 05:28:18 E] a word of a library in C++", "before", "without an end"]
    assert last == "after"


def test_an_event_is_one_line_of_json() -> None:
    event = StepFinished(step=1, num_steps=2, text="a\nb", left_s=float("inf"), metrics={"x": 1.0}, at=5.0)
    assert to_json(event) == (
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
        except OSError:  # nobody is left at the other end
            break
    os.close(leader)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.decode(), shown.decode()


BARS = (
    f"METRICS = {METRICS!r}\n"
    + """
import time
from cluster.console.progress import say, stage_progress, tell_step, waits_for, join_run
from cluster.console.events import RunProgress
from cluster.console.output import put, with_output
from cluster.console.eta import RunClock
from cluster.console.event_bus import AUDIENCE

def work():
    with join_run(RunClock(num_steps=9), setup_s={}):
        AUDIENCE.tell(RunProgress(run="mine", step=0, num_steps=9))
        with stage_progress("SFT", total=4) as advance:
            for _ in range(4):
                time.sleep(0.4)
                advance(1, "loss 1.0")
        for step in (1, 2):
            waits_for("step waits for groups")
            time.sleep(0.4)
            tell_step(step, num_steps=9, metrics=METRICS)
        time.sleep(0.4)
        say("a line")
        put("the result")
        print("stray", file=__import__("sys").stderr)
    return 0

raise SystemExit(with_output([], work))
"""
)


def test_a_terminal_has_bars_with_time_left_below_the_lines_and_stdout_has_the_result() -> None:
    code, out, shown = in_a_terminal(BARS)
    assert (code, out) == (0, "the result\n"), shown
    plain = ESCAPE.sub("", shown).replace("\r", "\n")  # a line that is drawn again
    assert re.search(r"SFT +\S+ 1/4 0:00:0\d \ds left loss 1\.0", plain), plain
    assert re.search(r"run mine +\S+ 2/9 0:00:0\d \ds left", plain), plain
    assert "step waits for groups" in plain
    assert re.search(r"^SFT 4/4 \| \d\.\ds \| loss 1\.0 *$", plain, re.M), "the stage leaves a line"
    assert re.search(r"^step 2/9 \| 4\.2s \| \ds left \| reward 0\.41", plain, re.M), plain
    assert re.search(r"^a line *$", plain, re.M) and re.search(r"^stray *$", plain, re.M)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


def test_a_dumb_terminal_gets_plain_lines() -> None:
    program = BARS.replace("import time\n", "import os, time\nos.environ['TERM'] = 'dumb'\n", 1)
    code, out, shown = in_a_terminal(program)
    assert (code, out) == (0, "the result\n")
    assert "\x1b" not in shown and "SFT 1/4 | " in shown
