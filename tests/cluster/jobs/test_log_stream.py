"""What a submission shows of its job: as it comes, sorted, or nothing."""

import json

import pytest

from cluster.cli.main import main
from cluster.console.output import EXIT_BROKEN_PIPE, ReaderGone
from cluster.jobs.client import Jobs
from cluster.jobs.log_stream import SortedLog
from tests.cluster.jobs.test_client import in_a_folder, words
from tests.fake_jobs_server import serve_jobs

__all__ = ["in_a_folder"]  # a fixture of every test here

EVENT = '{"time": 1.0, "event": "step", "text": "step 1/2"}'
TROUBLE = '{"time": 2.0, "event": "trouble", "text": "engine 1 is lost"}'
ROWS = '{"rows": [{"gym": "average", "score": 0.5}]}'
LOG = (EVENT + "\nan old lib", "rary speaks\n", TROUBLE + "\n" + ROWS + "\n")


def test_a_log_of_json_lines_is_sorted_into_results_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs(log=LOG) as server:
        assert main(words(server.url, "--log-format", "jsonl")) == 0
        ((job, sent),) = server.jobs.items()
    assert sent["entrypoint"].endswith("train recipe.toml --run.folder=/mnt/runs --json --log-format=jsonl")
    out, err = capsys.readouterr()
    assert out.splitlines() == [json.dumps({"job": job}), ROWS]
    told = [json.loads(line) for line in err.splitlines()]
    assert [line["text"] for line in told] == [
        "step 1/2",
        "an old library speaks",
        "engine 1 is lost",
        f"{job} succeeded",
    ]
    assert err.splitlines()[0] == EVENT


def test_a_quiet_submission_prints_the_job_and_how_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    for ends, code, says in (("SUCCEEDED", 0, ""), ("FAILED", 1, "failed with exit code 1")):
        with serve_jobs(ends=ends) as server:
            assert main(words(server.url, "--quiet")) == code
            (job,) = server.jobs
        out, err = capsys.readouterr()
        assert out == f"{job}\n"
        assert says in err and bool(err) == bool(says)


def test_a_quiet_log_of_json_lines_keeps_troubles_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs(log=LOG) as server:
        assert main(words(server.url, "--quiet", "--log-format=jsonl")) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1:] == [ROWS]
    assert err.splitlines() == [TROUBLE]


def test_who_follows_a_log_and_stops_reading_is_not_taken_for_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(text: str, *, end: str = "\n", flush: bool = False) -> None:
        raise BrokenPipeError

    with serve_jobs() as server:
        main(words(server.url, "--no-wait"))
        (job,) = server.jobs
        monkeypatch.setattr("builtins.print", nobody)
        assert main(["logs", job, "--address", server.url]) == EXIT_BROKEN_PIPE
        assert server.num_readers == 1
        with pytest.raises(ReaderGone):
            Jobs(server.url).follow(job, lambda text: nobody_reads())


def nobody_reads() -> None:
    raise ReaderGone


def test_a_line_is_sorted_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    take = SortedLog()
    for part in (ROWS[:5], ROWS[5:]):
        take(part)
        assert capsys.readouterr().out == ""
    take("\n\n[1, 2]\n")
    out, err = capsys.readouterr()
    assert (out, err) == (f"{ROWS}\n", "[1, 2]\n")
