"""Checks of a config against this machine before Ray or a model starts: folders, addresses, CPUs and GPUs.

Imports no torch, Ray, vLLM or transformers. Every refusal is a `BadInput` of one line: value, rule, cure.
"""

import os
import socket
from pathlib import Path

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.preflight.demonstrations import check_demonstrations
from cluster.preflight.endpoint import check_endpoint
from cluster.preflight.policy import check_model
from cluster.ray_cluster.placement import (
    are_apart,
    has_cuda,
    num_gpu_users,
    planned_processes,
    ray_address,
    this_machine,
)
from cluster.run_folder.paths import RunFolder
from simulators.gym import Gym
from simulators.gym_check import check_gym
from simulators.gyms import GYMS
from simulators.serving.auth import key_hash
from simulators.task import TaskKey

CONNECT_TIMEOUT_S = 1.0
CHANGEABLE = (
    *("grpo.num_steps", "ray.", "checkpoint.", "tracking.", "run.folder", "simulator."),
    *("learner.num_learners", "learner.num_threads", "rollout.num_actors", "engine.num_"),
    "rollout.group_timeout_s",
    *("learner.micro_batch_tokens", "learner.recompute_activations", "learner.max_logprob_gap"),
    *("reward.judge.base_url", "reward.judge.api_key_env", "reward.judge.max_", "reward.judge.timeout_s"),
)
"""Keys that may change when a stopped run resumes; any other change would make it another run."""


def check(config: RunConfig) -> None:
    """Raises `BadInput` if the run cannot work on this machine."""
    if config.policy.path is not None:
        check_model(config.policy.path, key="policy.path", max_model_len=config.engine.max_model_len)
    if config.learner.reference:
        check_model(config.learner.reference, key="learner.kl.reference", needs_chat_template=False)
    check_gyms(config)
    check_users(config)
    check_demonstrations(config)
    if config.reward.judge is not None:
        check_endpoint(config.reward.judge, section="reward.judge")
    address = ray_address(config)
    if address is None:
        check_resources(config)
    else:
        check_address(address)
    check_writable(RunFolder.of(config).path)


def check_gyms(config: RunConfig) -> None:
    """Checks that files of published tasks exist and are well-formed, that the user's own gyms obey the laws,
    and that some gym has gold answers if they are scored."""
    try:
        gyms = config.gyms.open()
        for gym in config.gyms.evaluated:
            if gym not in GYMS and gym not in config.gyms.data:
                check_gym(gyms[gym], difficulty=config.gyms.difficulty)
    except ValueError as error:
        raise BadInput(f"gyms: {error}") from None
    if config.learner.information_gain == "gold_answer":
        trained = sorted(config.gyms.trained)
        if not any(_has_gold_answers(gyms[name], config) for name in trained):
            raise BadInput(
                f"learner.information_gain='gold_answer': the gyms trained on ({', '.join(trained)}) "
                "have no gold answers: use masked_feedback, or train on a gym that has them"
            )


def _has_gold_answers(gym: Gym, config: RunConfig) -> bool:
    """Whether its first training task has a gold answer."""
    seed, difficulty = config.run.seed, config.gyms.difficulty
    key = TaskKey(gym=gym.name, split="train", index=0, seed=seed, difficulty=difficulty)
    return any(action.choice == "answer" for action in gym.gold_actions(gym.make_task(key)))


def check_users(config: RunConfig) -> None:
    """Checks the users with a weight: keys of endpoints are set, recordings exist."""
    active = [user for user in config.simulator.users if user.weight > 0]
    for name, variable in simulator_keys(config):
        if not os.environ.get(variable, "").strip():
            raise BadInput(
                f"simulator {name!r}: api_key_env={variable!r} is not set: export the key under this "
                "name, or set an empty api_key_env if none is needed"
            )
    for user in active:
        if user.type == "replay" and not Path(user.path).exists():
            raise BadInput(f"simulator {user.name!r}: path={user.path}: no such recording: give its folder")


def simulator_keys(config: RunConfig) -> list[tuple[str, str]]:
    """Users that need an API key, with the name of its environment variable."""
    search = config.simulator.web_search
    active = [user for user in config.simulator.users if user.weight > 0]
    keys = [("web_search", search.api_key_env)] if search else []
    keys += [(user.name, user.api_key_env) for user in active if user.type == "endpoint"]
    return [(name, variable) for name, variable in keys if variable]


def named_keys(config: RunConfig) -> list[tuple[str, str]]:
    """Every part of a run that needs an API key, with the name of its environment variable."""
    keys = [(f"simulator {name!r}", variable) for name, variable in simulator_keys(config)]
    judge = config.reward.judge
    return keys + ([("reward.judge", judge.api_key_env)] if judge and judge.api_key_env else [])


def check_serve(config: RunConfig) -> None:
    """Checks that `userrl serve` requires a key if other machines can reach it."""
    try:
        key_hash(config.simulator.api_key_env, host=config.simulator.host)
    except ValueError as error:
        raise BadInput(str(error)) from None


def check_address(address: str) -> None:
    """Checks that a cluster listens at the address; `auto` is resolved as Ray does, by environment or address
    file."""
    if address == "auto":
        running = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        if "RAY_ADDRESS" not in os.environ and not running.exists():
            raise BadInput(
                "ray.address='auto': no cluster on this machine: start one with `ray start --head`, or "
                "leave it out"
            )
        address = os.environ.get("RAY_ADDRESS") or running.read_text().strip()
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadInput(
            f"ray.address={address!r}: must be HOST:PORT, ray://HOST:PORT or auto: e.g. 127.0.0.1:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise BadInput(
            f"ray.address={address!r}: no answer within {CONNECT_TIMEOUT_S:g} s ({error}): "
            "start the cluster, correct the address, or leave it out to start Ray on this machine"
        ) from None


def check_resources(config: RunConfig) -> None:
    """Checks that every process has a CPU core, and every GPU process a GPU, shared with at most one
    other."""
    machine, learner, engine = this_machine(), config.learner, config.engine
    for key, count in (
        ("learner.num_learners", learner.num_learners),
        ("engine.num_engines", engine.num_engines),
        ("rollout.num_actors", config.rollout.num_actors),
    ):
        if count > machine.num_cpus:
            raise BadInput(
                f"{key}={count}: each needs a CPU core and this machine has {machine.num_cpus}: "
                f"give at most {machine.num_cpus}, or a cluster with ray.address"
            )
    reserved = sum(p.count * p.num_cpus for p in planned_processes(config, gpu_share=0))
    if reserved > machine.num_cpus:
        raise BadInput(
            f"simulator.num_replicas={config.simulator.num_replicas}: all processes reserve {reserved:g} "
            f"CPUs and this machine has {machine.num_cpus}: give fewer, or a cluster with ray.address"
        )
    if not has_cuda():
        for key, value, only in (
            ("learner.num_gpus_per_learner", learner.num_gpus_per_learner, 0),
            ("engine.tensor_parallel_size", engine.tensor_parallel_size, 1),
        ):
            if value != only:
                raise BadInput(
                    f"{key}={value}: needs GPUs, and the installed packages are for CPU: "
                    f"give {only}, or set up EXTRA=gpu"
                )
    _check_gpus(config, num_gpus=machine.num_gpus)


def _check_gpus(config: RunConfig, *, num_gpus: int) -> None:
    engine, num_users = config.engine, num_gpu_users(config)
    must_not_share = engine.tensor_parallel_size > 1 or are_apart(config)
    if num_users > 2 * num_gpus or (num_users > num_gpus and must_not_share):
        raise BadInput(
            f"learner.num_learners={config.learner.num_learners}: learners and engines need {num_users} GPUs "
            f"and this machine has {num_gpus}: give fewer, or a cluster with ray.address"
        )
    if num_users > num_gpus and engine.gpu_memory_utilization > 0.5:
        raise BadInput(
            f"engine.gpu_memory_utilization={engine.gpu_memory_utilization}: engine and learner share "
            "a GPU on this machine: give at most 0.5"
        )


def check_writable(path: Path) -> None:
    """Checks that the nearest existing ancestor of the run folder is a writable folder."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise BadInput(f"{path}: {existing} is a file, not a folder: give another folder with --run.folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: {existing} is not writable: give another folder with --run.folder")


def check_same_run(config: RunConfig) -> None:
    """Checks that a run resumes with the config it was started with, except for `CHANGEABLE` keys."""
    folder = RunFolder.of(config)
    if not folder.config.exists():
        return
    before, now = (flat(c.model_dump()) for c in (load(folder.config), config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not key.startswith(CHANGEABLE):
            raise BadInput(
                f"{key}={now.get(key)!r}: {folder.path} has a run with {before.get(key)!r}: "
                f"give --run NAME for a new run, or resume that one with `userrl train {folder.path}`"
            )


def flat(table: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted keys of a nested table."""
    result: dict[str, object] = {}
    for name, value in table.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result
