"""`userrl submit`, `jobs`, `logs` and `stop`: runs a recipe as a Ray job on a cluster, from this machine.

Everything that can be checked here is checked before anything is sent. Values of variables named with --env
are read from this process's environment, never printed, and only sent encrypted.
"""

import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.log import LOG, info
from cluster.console.output import put, put_json, result_console
from cluster.jobs.client import Jobs, JobState
from cluster.jobs.log_stream import Write, log_writer, put_part
from cluster.jobs.package import RECIPE, pack
from cluster.preflight.checks import named_keys
from cluster.ray_cluster.auth_token import find_token
from cluster.ray_cluster.encrypted_env import ENCRYPTED, encrypt_environment

JOB_ID_BYTES = 4


def submit(
    config: RunConfig,
    *,
    recipe: Path,
    overrides: Mapping[str, str],
    address: str | None,
    env: Sequence[str],
    wait: bool,
    is_quiet: bool = False,
    is_jsonl: bool = False,
) -> bool:
    """Sends a recipe and trains it there; prints the job's id first, then what it prints unless that is to
    be quiet. False where it failed or was stopped. Raises `BadInput` before anything is sent; Ctrl-C leaves
    the job running."""
    check_for_cluster(config, recipe=recipe)
    environment = encrypted_environment(env)
    for section, variable in named_keys(config):
        if variable not in env:
            info(f"{section} reads {variable} from the cluster's environment; --env {variable} would send it")
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        pack(config, recipe=recipe, target=package)
        jobs = Jobs(address)
        job = f"{config.run.name}-{secrets.token_hex(JOB_ID_BYTES)}"
        jobs.submit(
            command(overrides, is_jsonl=is_jsonl),
            job=job,
            run=config.run.name,
            package=package,
            environment=environment,
        )
    if is_jsonl:
        put_json({"job": job})
    else:
        put(job)
    if not wait:
        return True
    return follow(jobs, job, write=log_writer(is_quiet=is_quiet, is_jsonl=is_jsonl))


def command(overrides: Mapping[str, str], *, is_jsonl: bool = False) -> str:
    """What the job runs, in the folder that `pack` made; its log may be JSON lines, results among them.

    Example: `command({"run.folder": "/mnt/runs"})` is `"python -m cluster.cli train recipe.toml
    --run.folder=/mnt/runs"`.
    """
    options = [f"--{key}={value}" for key, value in overrides.items()]
    log = ["--json", "--log-format=jsonl"] if is_jsonl else []
    return shlex.join(["python", "-m", "cluster.cli", "train", RECIPE, *options, *log])


def check_for_cluster(config: RunConfig, *, recipe: Path) -> None:
    """Refuses what would come to nothing there. Raises `BadInput`."""
    if recipe.is_dir():
        raise BadInput(
            f"{recipe}: a run folder: give its recipe again, with the same run.name and run.folder: the job "
            "resumes a run that exists there"
        )
    if config.ray.address is not None:
        raise BadInput(
            f"ray.address={config.ray.address!r}: a job joins the cluster that it is sent to: leave it out"
        )
    if not Path(config.run.folder).is_absolute():
        raise BadInput(
            f"run.folder={config.run.folder!r}: Ray deletes a job's working folder, and the run with it: "
            "give a folder on a disk that all nodes see, such as --run.folder /mnt/runs"
        )


def encrypted_environment(names: Sequence[str]) -> dict[str, str]:
    """What a job's environment holds for the variables of these names. Raises `BadInput`, without a value in
    it, where one is not set here, or where there is no token to seal them with."""
    for name in names:
        if "=" in name:
            raise BadInput(
                f"--env {name.partition('=')[0]}=...: give the name alone and export the value: everyone "
                "on this machine reads command lines"
            )
        if not os.environ.get(name, "").strip():
            raise BadInput(f"--env {name}: not set here: export it, or leave it out")
    if not names:
        return {}
    token = find_token()
    if token is None:
        raise BadInput(
            f"--env {names[0]}: values travel sealed with the cluster's token, and there is none here: "
            "export RAY_AUTH_TOKEN, or put the variable into the environment of the cluster's nodes"
        )
    return {ENCRYPTED: encrypt_environment({name: os.environ[name] for name in names}, token=token)}


def follow(jobs: Jobs, job: str, *, write: Write = put_part) -> bool:
    """Writes what the job prints until it is over; whether it succeeded. Ctrl-C leaves it running."""
    try:
        state = jobs.follow(job, write)
    except KeyboardInterrupt:
        at = f"--address {jobs.address}"
        info(f"{job} continues; `userrl logs {job} {at}` follows it, `userrl stop {job} {at}` ends it")
        raise
    has_succeeded = state.status == "SUCCEEDED"
    LOG.log(logging.INFO if has_succeeded else logging.CRITICAL, _verdict(state))
    return has_succeeded


def stop(jobs: Jobs, job: str) -> None:
    """Asks a job to stop, and waits until it has: a run ends its step and saves."""
    if jobs.stop(job):
        info(f"{job} ends its step and saves; Ctrl-C does not call the stop back")
    info(_verdict(jobs.wait(job)))


def print_jobs(states: Sequence[JobState], *, as_json: bool) -> None:
    """One row a job, the newest first."""
    if as_json:
        put_json([asdict(state) for state in states])
        return
    table = Table()
    for column in ("job", "run", "status", "started", "minutes", "command"):
        table.add_column(column, justify="right" if column == "minutes" else "left", overflow="fold")
    for state in states:
        table.add_row(
            state.job, state.run, state.status, _clock(state.started_at), _minutes(state), state.command
        )
    result_console().print(table)


def _verdict(state: JobState) -> str:
    why = f": {state.message}" if state.status == "FAILED" else ""
    return f"{state.job} {state.status.lower()}{why}"


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def _minutes(state: JobState) -> str:
    if not state.started_at:
        return ""
    return f"{((state.ended_at or time.time()) - state.started_at) / 60:.1f}"
