"""Evaluation: a rollout without a learner. The same actors, turn budget, observations and sampling as in
training."""

from pathlib import Path

import ray

from actors.trajectory import GroupSummary
from cluster.config import RunConfig
from cluster.console import stage_progress
from cluster.orders import orders_for
from cluster.results import EvaluationRow, Outcome, evaluation_rows
from cluster.rollouts import Rollouts
from simulators.task import Split

WRITE_TIMEOUT_S = 120.0


def evaluate(
    config: RunConfig,
    *,
    rollouts: Rollouts,
    stage: str,
    archive: Path | None,
    split: Split = "test",
    policy: str = "engine",
) -> list[EvaluationRow]:
    """One dialogue on each held-out task; its tables go to `evaluation-<stage>.parquet` in the archive
    folder."""
    orders = orders_for(
        list(config.gyms.weights),
        split=split,
        num_tasks=config.evaluation.tasks_per_gym,
        seed=config.run.seed,
        difficulty=config.gyms.difficulty,
    )
    with stage_progress(f"evaluate {stage}", total=len(orders)) as advance:
        feed, groups = rollouts.run(orders, policy=policy, advance=advance)
    if archive is not None:
        ray.get(feed.write.remote(archive / f"evaluation-{stage}.parquet"), timeout=WRITE_TIMEOUT_S)
    ray.kill(feed)  # the summaries are here, the tables on disk
    outcomes = [outcome for group in groups for outcome in _outcomes(group.summary)]
    return evaluation_rows(outcomes, stage=stage, seed=config.run.seed)


def _outcomes(summary: GroupSummary) -> list[Outcome]:
    return [
        Outcome(gym=summary.task_key.gym, simulator="rules", score=score, num_turns=num_turns)
        for score, num_turns in zip(summary.scores, summary.num_turns, strict=True)
    ]
