"""`userrl evaluate`: scores a scripted policy or a model folder on held-out tasks. A rollout without a
learner."""

import tempfile
from pathlib import Path

import ray

from actors.scripted import SCRIPTS
from cluster.algorithm_config import create_rollouts
from cluster.config import RunConfig
from cluster.console import quiet_libraries
from cluster.evaluate import evaluate
from cluster.launch import make_rollout_setup, start_engines, start_ray, start_simulators, stop_simulators
from cluster.machine import ray_address
from cluster.policy_folder import local_folder
from cluster.results import EvaluationRow, print_rows, write_rows
from learners.tiny_policy import build
from simulators.task import Split


def evaluate_command(
    config: RunConfig, *, policy: str, split: Split, output: Path | None, as_json: bool
) -> None:
    """Prints the table, and writes it to `output` in the form of evaluation.json."""
    quiet_libraries()
    is_script = policy in SCRIPTS
    with tempfile.TemporaryDirectory() as folder:
        if (
            is_script
        ):  # a script needs no model, but its dialogues are rendered with a tokenizer like any other
            build(Path(folder), config.policy.tiny, max_tokens=config.engine.max_model_len, seed=0)
        rows = _evaluate(
            config, policy=policy, policy_folder=folder if is_script else local_folder(policy), split=split
        )
    if output is not None:
        write_rows(output, rows)
    print_rows(rows, as_json=as_json)


def _evaluate(config: RunConfig, *, policy: str, policy_folder: str, split: Split) -> list[EvaluationRow]:
    is_script = policy in SCRIPTS
    started_ray = start_ray(ray_address(config))
    engines = []
    try:
        engines, starting = ([], []) if is_script else start_engines(config, policy_folder=policy_folder)
        start_simulators(config, http=False)
        ray.get(starting, timeout=config.engine.start_timeout_s)
        ray.get(
            [engine.keep_own_weights.remote(0) for engine in engines], timeout=config.engine.start_timeout_s
        )
        setup = make_rollout_setup(config, engines=engines, policy_folder=policy_folder)
        return evaluate(
            config,
            rollouts=create_rollouts(config, setup, engines=engines),
            stage=policy,
            archive=None,
            split=split,
            policy=policy if is_script else "engine",
        )
    finally:
        for engine in engines:
            ray.kill(engine)
        stop_simulators(config, and_ray=started_ray)
