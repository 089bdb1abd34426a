"""Results go to stdout and all else to stderr; what happens if either is closed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.console.output import EXIT_BROKEN_PIPE, ReaderGone, fail, with_output
from tests.cluster.cli.test_cli import QUICKSTART, ROOT, a_finished_run, in_an_empty_folder

pytestmark = pytest.mark.medium

__all__ = ["in_an_empty_folder"]  # a fixture of every test here


def without_reader(command: Sequence[str], *, stream: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command with one of its outputs closed."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    gone = getattr(process, stream)
    gone.close()
    setattr(process, stream, None)
    out, err = process.communicate(timeout=60)
    return process.returncode, out or "", err or ""


@pytest.mark.parametrize("words", [["check", QUICKSTART, "--json"], ["check", QUICKSTART], ["status", "."]])
def test_a_closed_stdout_ends_a_command_silently(words: list[str], in_an_empty_folder: Path) -> None:
    (in_an_empty_folder / "config.toml").write_text("[grpo]\nnum_steps = 3\n")
    command = [sys.executable, "-m", "cluster.cli", *words]
    code, _, err = without_reader(command, stream="stdout", folder=in_an_empty_folder)
    assert (code, err) == (EXIT_BROKEN_PIPE, "")


def test_a_closed_stdout_ends_the_help_silently(in_an_empty_folder: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "train", "--help"]
    code, _, err = without_reader(command, stream="stdout", folder=in_an_empty_folder)
    assert code in (0, EXIT_BROKEN_PIPE) and err == "", "argparse prints no error either"


WORK = """
from cluster.console.log import info
from cluster.console.output import put, with_output

def work():
    for number in range(2000):
        info(f"line {number}")
    put("the result")
    return 0

raise SystemExit(with_output(%r, work))
"""


@pytest.mark.parametrize("words", [[], ["--log-format", "jsonl"]])
def test_a_closed_stderr_does_not_end_a_command(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK % words]
    assert without_reader(command, stream="stderr", folder=tmp_path)[:2] == (0, "the result\n")


def test_a_broken_connection_is_a_failure_and_no_closed_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail(BrokenPipeError("the endpoint hung up"), log=tmp_path / "runs" / "error.log") == 1
    assert "hung up" in (tmp_path / "runs" / "error.log").read_text()
    assert "failed: BrokenPipeError: the endpoint hung up" in capsys.readouterr().err


def test_a_handler_of_failures_does_not_catch_a_closed_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            raise ReaderGone
        except Exception:
            return 1

    assert with_output([], work) == EXIT_BROKEN_PIPE


@pytest.mark.parametrize("words", [["--log-format", "jsonl"], ["--log-format=jsonl", "--quiet"]])
def test_a_refusal_is_a_json_line_if_lines_are_json(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--learner.lr", "-1"], ["--no-such-option"]):
        assert main(["train", QUICKSTART, *wrong, *words]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert (out, json.loads(line)["event"]) == ("", "refused")
        assert wrong[0].lstrip("-").partition(".")[0] in json.loads(line)["text"]


def test_a_quiet_command_shows_a_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", QUICKSTART, "--learner.lr", "-1", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("learner.lr=-1")


def test_results_are_on_stdout_in_every_form_of_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_finished_run()
    train = ["train", str(folder.path), "--json"]
    assert main(train) == 0
    plain, said = capsys.readouterr()
    assert main([*train, "--quiet"]) == 0
    assert capsys.readouterr() == (plain, "")
    assert main([*train, "--log-format", "jsonl"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(plain) and out.count("\n") == 1
    event = json.loads(err)
    assert (event["event"], event["text"]) == ("line", said.strip())


def test_an_unknown_log_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--policy", "expert", "--log-format", "xml"]) == 2
    assert "xml" in capsys.readouterr().err
