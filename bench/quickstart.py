"""The quick-start recipe for benchmarks: its settings, and its policy after a short cold start, since
random weights end a dialogue with their first token."""

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.engines.protocol import PolicyEngine, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.trajectory import GroupOrder
from actors.trajectory_table import to_table
from bench.result_rows import ROOT
from cluster.config.run_config import RunConfig
from cluster.driver.algorithm_config import merged
from learners.config import LearnerSettings
from learners.model.tiny_policy import build
from learners.policy_learner import PolicyLearner
from learners.sft.batches import num_sft_steps
from simulators.gyms import GYMS
from simulators.task import Task, TaskKey, TaskSource
from simulators.users.rule_user import RuleUser

RECIPE = ROOT.parent / "recipes" / "cpu-quickstart.toml"
SHORT, LONG = "function", "telepathy"
"""The gyms that are played: the shortest dialogues, and the longest that so small a policy holds."""


def quickstart(**sections: Any) -> RunConfig:
    """The recipe, with what differs."""
    return RunConfig.model_validate(merged(tomllib.loads(RECIPE.read_text()), sections))


def write_policy(folder: Path, *, num_demonstrations: int) -> str:
    """A policy that imitates the recipe's demonstrator in both gyms; the folder, as text. About a minute for
    2,000 demonstrations on one core."""
    config = quickstart(sft={"num_demonstrations": num_demonstrations, "num_epochs": 3.0})
    build(folder, config.policy.tiny, max_tokens=config.engine.max_model_len, seed=config.run.seed)
    learner = PolicyLearner(
        LearnerSettings(
            policy_folder=str(folder),
            learner=config.learner,
            sft=config.sft,
            temperature=config.rollout.temperature,
            seed=config.run.seed,
        )
    )
    num_samples = learner.set_demonstrations([asyncio.run(_demonstrations(config, folder))])
    learner.sft_updates(first_step=0, num_steps=num_sft_steps(config.sft, num_samples=num_samples))
    learner.export(str(folder))
    return str(folder)


def group_orders(config: RunConfig, gym: str, *, first: int, num_groups: int) -> list[GroupOrder]:
    """Groups of the gym's tasks from `first` on."""
    return [
        GroupOrder(
            group_id=index,
            task_key=TaskKey(
                gym=gym, split="train", index=index, seed=config.run.seed, difficulty=config.gyms.difficulty
            ),
            group_size=config.rollout.group_size,
            seed=config.run.seed,
        )
        for index in range(first, first + num_groups)
    ]


async def _demonstrations(config: RunConfig, folder: Path) -> pa.Table:
    renderer = Renderer.from_folder(folder)

    def demonstrator(task: Task, seed: int) -> PolicyEngine:
        gym = GYMS[task.key.gym]
        return ScriptedEngine(config.sft.demonstrator, gym=gym, task=task, renderer=renderer, seed=seed)

    context = RolloutContext(
        engine_for=demonstrator,
        user=RuleUser(),
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=config.rollout.max_completion_tokens),
        gyms=GYMS,
        personas=config.simulator.personas,
        max_turns=config.rollout.max_turns,
        max_tokens=config.engine.max_model_len,
    )
    source = TaskSource(
        {SHORT: 1.0, LONG: 1.0}, split="train", seed=config.run.seed, difficulty=config.gyms.difficulty
    )
    tables = []
    for index in range(config.sft.num_demonstrations):
        order = GroupOrder(group_id=index, task_key=source.draw(), group_size=1, seed=config.run.seed)
        tables.append(to_table(order, await rollout_group(order, context)))
    return pa.concat_tables(tables)
