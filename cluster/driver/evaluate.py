"""The driver of `userrl evaluate`: plays a scripted policy, a model folder or an endpoint's model on tasks,
and reports. Rollouts without a learner; after a kill it resumes where it was."""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from actors.config import NO_CONTEXT_LIMIT
from actors.engines.openai_engine import OpenAIEngine
from actors.rollout_setup import RolloutSetup
from actors.scripts import Script
from actors.trajectory import GroupOrder
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.console.progress import begin_setup_part, quiet_libraries, setup_progress
from cluster.driver.algorithm_config import create_rollouts
from cluster.evaluation.evaluate import evaluation_orders, num_aspects, play
from cluster.evaluation.fingerprint import settings_of
from cluster.evaluation.outcomes import outcomes_of, write_parquet
from cluster.evaluation.report import rows_of, write_report
from cluster.evaluation.request import EvaluationRequest, with_users
from cluster.evaluation.results import EvaluationRow, print_rows
from cluster.evaluation.resume_log import EvaluationLog
from cluster.ray_cluster.placement import ray_address
from cluster.ray_cluster.serve_watchdog import ServeWatchdog
from cluster.ray_cluster.simulator_service import fast_starting_apps, start_simulators, stop_simulators
from cluster.ray_cluster.start import start_ray
from cluster.workers.engine_pool import no_engines, serve_own_weights
from cluster.workers.play_orders import OrderPlayer
from cluster.workers.policy_source import local_folder
from cluster.workers.services import STOP_TIMEOUT_S, make_rollout_setup, start_engines
from cluster.workers.supervisor import Supervisor
from learners.model.tiny_policy import build
from rewards.config import RewardConfig
from simulators.gym_plugins import known_gyms

SETUP_PARTS = ("Ray", "users", "rollout actors", "engines")


def evaluate_command(config: RunConfig, request: EvaluationRequest) -> None:
    """Prints the table; with an output, writes the report and the dialogues there as they are finished."""
    quiet_libraries()
    orders = evaluation_orders(config, split=request.split, num_trials=request.num_trials)
    with tempfile.TemporaryDirectory() as folder:
        if request.kind != "folder":
            # No model is needed, but a tokenizer that renders the dialogues.
            build(
                Path(folder),
                config.policy.tiny,
                max_tokens=config.engine.max_model_len,
                seed=0,
                gyms=known_gyms(config.gyms.modules),
            )
        policy_folder = local_folder(request.policy) if request.kind == "folder" else folder
        settings = settings_of(config, request, policy_folder=policy_folder)
        path = None if request.output is None else request.output.with_suffix(".dialogues.jsonl")
        with EvaluationLog(path, policy=request.name, settings=settings) as journal:
            _report_finished(journal, orders, request)
            _play_missing(config, request, orders, journal=journal, policy_folder=policy_folder)
            rows = _report(config, request, journal)
    print_rows(rows, as_json=request.as_json)


def _report_finished(
    journal: EvaluationLog, orders: Sequence[GroupOrder], request: EvaluationRequest
) -> None:
    if journal.changed:
        changed = ", ".join(journal.changed)
        info(
            f"{request.name} was evaluated here with other {changed}: "
            f"those dialogues are in {journal.previous}"
        )
    num_done = sum(len(orders) - len(_missing(orders, journal, name)) for name in request.simulators)
    if num_done:
        info(f"{num_done * request.num_trials} dialogues are finished already and are not played again")


def _missing(orders: Sequence[GroupOrder], journal: EvaluationLog, simulator: str) -> list[GroupOrder]:
    return [order for order in orders if not journal.has(simulator, order.task_key.task_id)]


def _play_missing(
    config: RunConfig,
    request: EvaluationRequest,
    orders: Sequence[GroupOrder],
    *,
    journal: EvaluationLog,
    policy_folder: str,
) -> None:
    """Plays what the journal lacks, one simulator after the other. Starts nothing if nothing is missing."""
    missing = {name: _missing(orders, journal, name) for name in request.simulators}
    if not any(missing.values()):
        return
    aspects = num_aspects(config, orders)
    config = with_users(config, [name for name in missing if missing[name]])
    with ExitStack() as stack:
        with setup_progress(SETUP_PARTS):
            player = stack.enter_context(_started(config, request, policy_folder=policy_folder))
        for simulator, todo in missing.items():
            if todo:
                play(
                    todo,
                    player=player,
                    policy=cast(Script, request.policy) if request.kind == "script" else None,
                    simulator=simulator,
                    title=f"{request.name} with {simulator}",
                    keep=partial(_keep, journal, simulator, aspects),
                )


def _keep(
    journal: EvaluationLog, simulator: str, aspects: Mapping[str, int], tables: Sequence[pa.Table]
) -> None:
    groups = [
        outcomes_of(table, policy=journal.policy, simulator=simulator, num_aspects=aspects)
        for table in tables
    ]
    journal.add(simulator, groups)


@contextmanager
def _started(config: RunConfig, request: EvaluationRequest, *, policy_folder: str) -> Iterator[OrderPlayer]:
    """Rollout actors with everything that they need; all of it ends with the block."""
    # Only the environment's reward is reported: no judge is needed.
    config = config.model_copy(update={"reward": RewardConfig()})
    begin_setup_part("Ray")
    started_ray = start_ray(ray_address(config), nodes=config.ray.nodes)
    serve_watchdog = ServeWatchdog(fast_starting_apps(config))
    engines = no_engines()
    try:
        begin_setup_part("users")
        if request.kind == "folder":
            engines = start_engines(config, policy_folder=policy_folder)
        start_simulators(config, http=False)
        begin_setup_part("rollout actors")
        setup = make_rollout_setup(config, policy_folder=policy_folder)
        rollouts = create_rollouts(config, _setup_for(request, setup), engines=engines)
        begin_setup_part("engines")
        engines.wait()
        deliver_weights = partial(serve_own_weights, engines, timeout_s=config.engine.start_timeout_s)
        deliver_weights()
        yield OrderPlayer(rollouts, Supervisor(rollouts, engines, deliver_weights=deliver_weights))
    finally:
        serve_watchdog.close()
        engines.stop(timeout_s=STOP_TIMEOUT_S)
        stop_simulators(config, and_ray=started_ray)


def _setup_for(request: EvaluationRequest, setup: RolloutSetup) -> RolloutSetup:
    """A policy that reads messages has no context limit here; an endpoint takes the engine's place."""
    if request.kind == "folder":
        return setup
    setup = replace(setup, max_tokens=NO_CONTEXT_LIMIT)
    if request.endpoint is None:
        return setup
    connect = partial(OpenAIEngine.connect, setup.policy_folder, request.endpoint)
    return replace(setup, connect_engine=connect, engine_capacity=math.inf)


def _report(config: RunConfig, request: EvaluationRequest, journal: EvaluationLog) -> list[EvaluationRow]:
    """Writes JSON, Markdown and Parquet if there is an output: returns the rows of this evaluation."""
    evaluations = journal.evaluations()
    held_out = config.gyms.held_out
    if request.output is None:
        return rows_of(evaluations[-1], held_out=held_out, success_score=request.success_score)
    outcomes = [outcome for evaluation in evaluations for outcome in evaluation.outcomes]
    parquet = request.output.with_suffix(".parquet")
    write_parquet(parquet, outcomes, success_score=request.success_score)
    rows = write_report(request.output, evaluations, held_out=held_out, success_score=request.success_score)
    info(f"report: {request.output} and {request.output.with_suffix('.md')} | dialogues: {parquet}")
    return rows
