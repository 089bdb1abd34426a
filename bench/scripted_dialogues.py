"""Dialogues without a model, to measure the rest of the system: a policy that always asks the same
question, and a user that replies after a delay."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.config import RolloutConfig
from actors.engines.protocol import CompletionRequest
from actors.renderer import Renderer
from actors.rollout_setup import RolloutSetup
from actors.trajectory import Completion
from cluster.config.run_config import RunConfig
from learners.advantages.group_advantages import credit_group
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.model.tiny_policy import build
from rewards.config import RewardConfig
from rewards.reward_functions import RewardContext
from rewards.scorer import make_scorer
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import TaskSource
from simulators.user import User
from simulators.users.delayed_user import DelayedUser
from simulators.users.rule_user import RuleUser

GYM = "intention"
GROUP_SIZE = 8
NUM_TURNS = 5
"""Of each dialogue: four that the user answers, and a last one."""
MAX_TOKENS = 2048


class Talker:
    """A `PolicyEngine` that asks on until the last turn, at once and without a model."""

    def __init__(self, renderer: Renderer):
        ask = Action(choice="action", content="What kind of place do you have in mind?")
        self._ask = Completion.scripted(renderer.completion_of(ask))
        self._end = Completion.scripted(renderer.completion_of(Action(choice="finish", content="")))

    async def complete(self, request: CompletionRequest) -> Completion:
        is_last = len(request.messages) // 2 >= NUM_TURNS
        return self._end if is_last else self._ask


def connect_talker(policy_folder: str) -> Talker:
    return Talker(Renderer.from_folder(policy_folder))


def connect_user(name: str | None, *, delay_s: float) -> User:
    return DelayedUser(RuleUser(), delay_s=delay_s)


def write_policy(folder: Path) -> str:
    """A folder with a tokenizer; returns it."""
    build(folder, TinyPolicyConfig(hidden_size=16, num_layers=1, num_heads=1), max_tokens=MAX_TOKENS, seed=0)
    return str(folder)


def scripted_setup(config: RolloutConfig, *, policy_folder: str, delay_s: float) -> RolloutSetup:
    """Rollout actors whose policy is a `Talker` and whose user takes `delay_s`, in their own process."""
    context = RewardContext(gammas={GYM: 0.95}, max_completion_tokens=config.max_completion_tokens)
    return RolloutSetup(
        config=config,
        policy_folder=policy_folder,
        max_tokens=MAX_TOKENS,
        engine_capacity=math.inf,
        connect_engine=partial(connect_talker, policy_folder),
        open_gyms=lambda: GYMS,
        personas="plain",
        connect_user=partial(connect_user, delay_s=delay_s),
        score=make_scorer(RewardConfig(), context=context, num_processes=config.num_actors),
        # With gains no group counts as flat: dialogues of scripts are all alike.
        credit=partial(credit_group, credit_of=LearnerConfig().credit_of, has_gains=True),
    )


def create_buffer(config: RunConfig, *, run_folder: Path) -> Any:
    """As a run's own, but it keeps groups in which all dialogues are alike: scripted ones are."""
    sizes = BufferSizes(
        group_size=config.rollout.group_size,
        groups_per_step=config.buffer.groups_per_step,
        max_off_policy_steps=config.buffer.max_off_policy_steps,
        seed=0,
    )
    create: Any = ray.remote(BufferActor)
    return create.options(num_cpus=0, max_concurrency=4096).remote(
        sizes,
        source=TaskSource({GYM: 1.0}, split="train", seed=0, difficulty=0),
        run_folder=run_folder,
        group_timeout_s=config.rollout.group_timeout_s,
    )
