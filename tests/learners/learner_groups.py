"""LearnerGroups of RLlib for tests, without an algorithm around them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

from learners.buffer.group_store import GroupRows
from learners.config import LearnerConfig, LearnerSettings, TinyPolicyConfig
from learners.learner import GRPOLearner
from learners.model.tiny_policy import build
from learners.sft_config import SftConfig

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class LearnerOnlyConfig(AlgorithmConfig):
    """The least that a LearnerGroup of ours asks of an AlgorithmConfig."""

    learner_settings: LearnerSettings


def group_config(
    policy_folder: Path, *, num_learners: int, sft: SftConfig, reference_folder: str = "", **learner: Any
) -> LearnerOnlyConfig:
    """`num_learners` of 0 learns in this process."""
    config = LearnerOnlyConfig(algo_class=None)
    config.learners(num_learners=num_learners, learner_class=GRPOLearner)
    config.learner_settings = LearnerSettings(
        policy_folder=str(policy_folder),
        learner=LearnerConfig.model_validate(
            {"num_learners": max(1, num_learners), "num_threads": 1, "micro_batch_tokens": 128, **learner}
        ),
        sft=sft,
        temperature=1.0,
        seed=0,
        reference_folder=reference_folder,
    )
    return config


def start(config: LearnerOnlyConfig) -> LearnerGroup:
    return LearnerGroup(config=config, module_spec=RLModuleSpec(module_class=RLModule))


def on_each(group: LearnerGroup, work: Callable[[Any], Any]) -> list[Any]:
    """Every rank's answer, rank 0 first."""
    each: Any = group.foreach_learner  # RLlib types what it calls with one argument as taking two
    return [result.get() for result in each(work, timeout_seconds=120)]


def write_policy(folder: Path) -> Path:
    """A policy of two layers with its tokenizer."""
    tiny = TinyPolicyConfig(hidden_size=32, num_layers=2, num_heads=1, intermediate_size=48, vocab_size=512)
    build(folder, tiny, max_tokens=128, seed=0)
    return folder


def stored(table: pa.Table) -> GroupRows:
    """The table as a feed has it: by reference."""
    return GroupRows(ref=ray.put(table), first_row=0, num_rows=table.num_rows)
