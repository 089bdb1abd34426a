"""A run as a job on a real Ray cluster with dashboard and token: sent, followed, stopped, sent again, done;
and the value that was sent along stands in no file."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
WAIT_S = 300.0
TOKEN = "0123456789abcdef" * 4
CANARY = "canary-5db3c1"
START = ("ray", "start", "--head", "--block", "--port=0", "--num-cpus=3", "--dashboard-host=127.0.0.1")
RECIPE = """
[run]
name = "job"
[gyms.weights]
travel = 1.0
[simulator.web_search]
url = "https://127.0.0.1:9/search"
api_key_env = "THE_KEY"
[policy.tiny]
hidden_size = 64
num_layers = 2
num_heads = 2
intermediate_size = 128
[rollout]
group_size = 4
dialogues_per_actor = 32
max_completion_tokens = 24
[engine]
max_model_len = 768
[reward.weights]
environment = 1.0
length = 1.0  # differs where nothing else does: there is something to train
[buffer]
groups_per_step = 2
[sft]
num_demonstrations = 40
[grpo]
num_steps = 1000
[evaluation]
tasks_per_gym = 2
[tracking]
mode = "offline"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A running cluster of one node."""

    url: str
    folder: Path
    """Where Ray keeps its sessions and logs."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the cluster's processes and the submitter's."""
    home = tmp_path_factory.mktemp("home")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
    return bare | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # this node's address is 127.0.0.1
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    """`ray start --head`, in a short folder: a socket's path has 107 letters."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *START,
                f"--dashboard-agent-listen-port={free_port()}",
                f"--temp-dir={folder}",
                "--disable-usage-stats",
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            url = read_url(process)
            wait_for_agent(url)
            yield Cluster(url=url, folder=Path(folder))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def read_url(process: subprocess.Popen[str]) -> str:
    """The dashboard's, as `ray start` prints it."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        found = re.search(r"RAY_API_SERVER_ADDRESS='(http://127\.0\.0\.1:\d+)'", line)
        if found:
            return found[1]
    raise AssertionError("Ray did not start: " + "".join(seen))


def free_port() -> int:
    """For the agent that takes jobs: its default port is that of every Ray on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for_agent(url: str) -> None:
    """Returns once the node's agent takes jobs; it starts after the dashboard."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/jobs/", data=b'{"entrypoint": "true"}', headers=headers)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()
            return
        except urllib.error.HTTPError as error:
            assert time.monotonic() < deadline, error.read()
            time.sleep(0.5)


def userrl(*words: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", *words]


def test_a_job_is_followed_stopped_cleanly_and_goes_on_when_it_is_sent_again(
    cluster: Cluster, environment: dict[str, str], tmp_path: Path
) -> None:
    recipe, runs = tmp_path / "recipe.toml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    at = ("--address", cluster.url)
    sending = userrl("submit", str(recipe), *at, "--run.folder", str(runs), "--env", "THE_KEY")
    submitter = environment | {"THE_KEY": CANARY, "PYTHONPATH": str(ROOT)}
    printed: list[str] = []

    with ExitStack() as stack:
        first = subprocess.Popen(
            sending, cwd=tmp_path, env=submitter, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        stack.callback(first.kill)
        job = wait_for_step(first, seen=printed)
        stopped = subprocess.run(
            userrl("stop", job, *at),
            cwd=tmp_path,
            env=submitter,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert stopped.returncode == 0, stopped.stderr
        assert f"{job} stopped" in stopped.stderr
        out, err = first.communicate(timeout=60)
        printed += [out, err]
    assert first.returncode == 1, err
    assert "stopping after this step" in "".join(printed)
    (checkpoint, *_) = sorted((runs / "job" / "checkpoints").glob("step-*"), reverse=True)
    last = int(checkpoint.name.removeprefix("step-"))

    again = subprocess.run(
        [*sending, "--grpo.num_steps", str(last + 1)],
        cwd=tmp_path,
        env=submitter,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    printed += [again.stdout, again.stderr]
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resumed from checkpoint {checkpoint}" in again.stdout
    assert (runs / "job" / "model" / "config.json").exists()
    assert CANARY not in "".join(printed)
    assert files_with(CANARY, cluster.folder, tmp_path) == []


def wait_for_step(process: subprocess.Popen[str], *, seen: list[str]) -> str:
    """Reads what the submitter prints up to the first step's line; the job's id, which comes first."""
    assert process.stdout is not None
    deadline = time.monotonic() + WAIT_S
    job = ""
    for line in process.stdout:
        seen.append(line)
        job = job or line.strip()
        if line.startswith("step 1/"):
            assert re.fullmatch(r"job-[0-9a-f]{8}", job)
            return job
        assert time.monotonic() < deadline, "".join(seen)
    assert process.stderr is not None
    raise AssertionError("it ended early: " + "".join(seen) + process.stderr.read())


def files_with(text: str, *folders: Path) -> list[Path]:
    """Plain files that hold `text`; some of a running cluster go while they are looked at."""
    found: list[Path] = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(FileNotFoundError):
            if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                found.append(path)
    return found


@pytest.mark.soak
def test_rays_own_command_runs_the_same_command_line_from_a_working_dir(
    cluster: Cluster, environment: dict[str, str]
) -> None:
    words = ["ray", "job", "submit", "--address", cluster.url, "--working-dir", "."]
    words += ["--", "python", "-m", "cluster.cli", "check", "recipes/cpu-quickstart.toml"]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run quickstart, fresh" in done.stdout


@pytest.mark.soak
def test_a_wrong_token_is_one_line(cluster: Cluster, environment: dict[str, str], tmp_path: Path) -> None:
    for token, says in (("wrong", "another token is wanted"), ("", "a token is wanted")):
        done = subprocess.run(
            userrl("jobs", "--address", cluster.url),
            cwd=tmp_path,
            env=environment | {"RAY_AUTH_TOKEN": token, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert says in done.stderr
