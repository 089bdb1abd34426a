"""`userrl submit`, `jobs`, `logs` and `stop` against a server that speaks Ray's Jobs API."""

import io
import json
import os
import re
import socket
import zipfile
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.jobs import client as jobs_module
from cluster.jobs.client import STOP, Jobs, _is_overheard, http_address
from cluster.ray_cluster.encrypted_env import ENCRYPTED
from tests.fake_jobs_server import serve_jobs

CANARY = "canary-4711"
RECIPE = '[run]\nname = "sent"\n'


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.setattr(jobs_module, "RECONNECT_S", 0.01)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    return tmp_path


def words(address: str, *more: str) -> list[str]:
    return ["submit", "r.toml", "--address", address, "--run.folder", "/mnt/runs", *more]


def test_a_job_is_sent_followed_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs(token="right") as server:
        assert main(words(server.url, "--learner.lr", "1e-3")) == 0
    job, *log = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"sent-[0-9a-f]{8}", job)
    assert log == ["step 1", "step 2"]
    sent = server.jobs[job]
    assert sent["entrypoint"] == (
        "python -m cluster.cli train recipe.toml --run.folder=/mnt/runs --learner.lr=1e-3"
    )
    assert sent["metadata"] == {"run": "sent"}
    assert sent["runtime_env"]["env_vars"] == {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "1800",
    }
    (package,) = server.packages.values()
    assert zipfile.ZipFile(io.BytesIO(package)).read("recipe.toml").decode() == RECIPE


def test_a_failed_job_is_exit_code_1_and_its_reason_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs(ends="FAILED") as server:
        assert main(words(server.url)) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"sent-[0-9a-f]{8} failed: failed with exit code 1\n", err)


def test_no_wait_ends_when_the_job_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs() as server:
        assert main(words(server.url, "--no-wait")) == 0
        (job,) = server.jobs
        assert (capsys.readouterr().out, server.num_readers) == (f"{job}\n", 0)


def test_the_same_files_are_sent_once() -> None:
    with serve_jobs() as server:
        for _ in range(2):
            main(words(server.url, "--no-wait"))
        assert (len(server.jobs), len(server.packages)) == (2, 1)


def test_variables_travel_by_name_and_show_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_a_folder: Path
) -> None:
    monkeypatch.setenv("THE_KEY", CANARY)
    with serve_jobs(token="right") as server:
        assert main(words(server.url, "--env", "THE_KEY")) == 0
        assert main(["jobs", "--address", server.url, "--json"]) == 0
    (sent,) = server.jobs.values()
    assert sent["runtime_env"]["env_vars"].keys() == {ENCRYPTED, *STOP}
    everything = json.dumps(server.jobs) + "".join(capsys.readouterr())
    assert CANARY not in everything
    assert all(CANARY.encode() not in package for package in server.packages.values())
    assert not [path for path in in_a_folder.rglob("*") if path.is_file() and CANARY in path.read_text()]


def test_a_key_that_the_recipe_reads_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.toml").write_text(
        RECIPE + '[[simulator.users]]\ntype = "endpoint"\nname = "gpt"\nbase_url = "https://host/v1"\n'
        'model = "m"\napi_key_env = "GPT_KEY"\n'
    )
    monkeypatch.setenv("GPT_KEY", CANARY)
    with serve_jobs() as server:
        main(words(server.url, "--no-wait"))
        assert "simulator 'gpt' reads GPT_KEY from the cluster's environment" in capsys.readouterr().err
        main(words(server.url, "--no-wait", "--env", "GPT_KEY"))
        assert capsys.readouterr().err == ""


def test_a_lost_connection_is_taken_up_and_no_part_of_the_log_comes_twice() -> None:
    with serve_jobs(log=("one\n", "two\n", "three\n"), cut_after=2) as server:
        main(words(server.url, "--no-wait"))
        (job,) = server.jobs
        seen: list[str] = []
        state = Jobs(server.url).follow(job, seen.append)
    assert "".join(seen) == "one\ntwo\nthree\n"
    assert (state.status, server.num_readers) == ("SUCCEEDED", 2)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: Jobs, job: str, write: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Jobs, "follow", interrupt)
    with serve_jobs() as server:
        assert main(words(server.url)) == 130
        (job,) = server.jobs
        assert server.jobs[job]["status"] == "RUNNING"
    err = capsys.readouterr().err
    assert err == (
        f"{job} continues; `userrl logs {job} --address {server.url}` follows it, "
        f"`userrl stop {job} --address {server.url}` ends it\n"
    )


def test_jobs_are_listed_followed_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with serve_jobs() as server:
        at = ("--address", server.url)
        for _ in range(2):
            main(words(server.url, "--no-wait"))
        first, second = server.jobs
        capsys.readouterr()
        assert main(["stop", first, *at]) == 0
        assert server.jobs[first]["status"] == "STOPPED"
        assert main(["logs", second, *at]) == 0
        assert "step 2" in capsys.readouterr().out
        assert main(["jobs", *at, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [(row["job"], row["status"]) for row in rows] == [(second, "SUCCEEDED"), (first, "STOPPED")]
        assert main(["stop", second, *at]) == 0  # over already
        assert f"{second} succeeded" in capsys.readouterr().err
        assert main(["jobs", *at]) == 0
        assert "STOPPED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("token", "says"), [("", "a token is wanted: export"), ("wrong", "another token is wanted: export")]
)
def test_a_missing_or_wrong_token_is_one_line(
    token: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with serve_jobs(token="right") as server:
        assert main(words(server.url)) == 2
        assert server.jobs == {}
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--learner.lr", "-1"], "learner.lr=-1"),
        (["--run.folder", "runs"], "run.folder='runs': Ray deletes a job's working folder"),
        (["--ray.address", "10.0.0.1:6379"], "ray.address='10.0.0.1:6379': a job joins the cluster"),
        (["--env", "UNSET_HERE"], "--env UNSET_HERE: not set here"),
        (["--policy.path", "./none"], "policy.path=./none: a job's files are sent from this folder"),
    ],
)
def test_what_does_not_check_here_is_one_line_and_nothing_is_sent(
    more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_jobs() as server:
        assert main(words(server.url, *more)) == 2
        assert (server.jobs, server.packages) == ({}, {})
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_an_address_where_nobody_listens_and_an_unknown_job_are_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, and nobody listens
        assert main(words(f"127.0.0.1:{taken.getsockname()[1]}")) == 2
    err = capsys.readouterr().err
    assert "no answer within 5 s" in err
    assert err.count("\n") == 1
    with serve_jobs() as server:
        assert main(["logs", "gone", "--address", server.url]) == 2
    assert capsys.readouterr().err == f"gone: no such job at {server.url}: `userrl jobs` lists them\n"


def test_the_address_that_is_given_comes_before_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with serve_jobs() as server:
        assert Jobs(server.url).list() == []
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.url)
        assert Jobs().address == server.url
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


def test_a_token_that_others_could_hear_is_said_to_be() -> None:
    overheard = ("http://10.0.0.1:8265", "http://head:8265")
    private = ("http://127.0.0.1:8265", "http://localhost", "http://[::1]:8265", "https://head")
    assert [_is_overheard(url) for url in (*overheard, *private)] == [True, True, False, False, False, False]


def test_an_address_is_a_url_without_a_password() -> None:
    assert http_address("head:8265") == "http://head:8265"
    assert http_address("https://host/") == "https://host"
    for wrong in ("ray://head:10001", "http://", "http://host:port"):
        with pytest.raises(BadInput, match="must be the dashboard's address"):
            http_address(wrong)
    with pytest.raises(BadInput) as error:
        http_address(f"http://me:{CANARY}@host:8265")
    assert CANARY not in str(error.value)
