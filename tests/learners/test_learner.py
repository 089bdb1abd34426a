"""The RLlib learner, in a LearnerGroup: in this process, and as two actors that share one policy."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from safetensors.torch import load
from transformers import AutoTokenizer

from learners.checkpoint import SaveReport
from learners.config import LearnerConfig, LearnerSettings, TinyPolicyConfig
from learners.learner import GRPOLearner
from learners.sft_config import SftConfig
from learners.tiny_policy import build
from tests.learners.tiny import plain_model, random_table

pytestmark = pytest.mark.slow

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


class LearnerOnlyConfig(AlgorithmConfig):
    """The least that a LearnerGroup of ours asks of an AlgorithmConfig."""

    learner_settings: LearnerSettings


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    tiny = TinyPolicyConfig(hidden_size=32, num_layers=2, num_heads=1, intermediate_size=48, vocab_size=512)
    build(folder, tiny, max_tokens=128, seed=0)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield
    ray.shutdown()


def make_group(policy_folder: str, *, num_learners: int) -> LearnerGroup:
    config = LearnerOnlyConfig(algo_class=None)
    config.learners(num_learners=num_learners, learner_class=GRPOLearner)
    config.learner_settings = LearnerSettings(
        policy_folder=policy_folder,
        learner=LearnerConfig(num_learners=max(1, num_learners), num_threads=1, micro_batch_tokens=128),
        sft=SftConfig(batch_size=4),
        temperature=1.0,
        seed=0,
    )
    return LearnerGroup(config=config, module_spec=RLModuleSpec(module_class=RLModule))


def on_each(group: LearnerGroup, function: Callable[[Any], Any]) -> list[Any]:
    each: Any = group.foreach_learner  # RLlib types what it calls with one argument as taking two
    return [result.get() for result in each(function, timeout_seconds=120)]


def train(group: LearnerGroup, path: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Two SFT steps, a save, two GRPO steps; metrics of rank 0, and its weights."""
    demonstrations = [ray.put(random_table(group_id=9, seed=1))]
    groups = [ray.put(random_table(group_id=i, version=0)) for i in range(3)]
    assert set(on_each(group, lambda learner: learner.set_demonstrations(demonstrations))) == {4}
    metrics = [
        on_each(group, lambda learner, s=step: learner.sft_updates(first_step=s, num_steps=1))
        for step in range(2)
    ]
    on_each(group, lambda learner: learner.save(str(path)))
    metrics += [
        on_each(group, lambda learner, s=step: learner.update_groups(groups, step=s)) for step in range(2)
    ]
    assert set(on_each(group, lambda learner: learner.saved(wait=True))) == {SaveReport(done=True)}
    for ranks in metrics:
        assert all(drop_time(rank) == drop_time(ranks[0]) for rank in ranks)
    payload, _ = next(w for w in on_each(group, lambda learner: learner.weights(dtype="float32")) if w)
    return [drop_time(ranks[0]) for ranks in metrics], load(payload.tobytes())


def drop_time(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "learner/tokens_per_s"}


def test_two_learners_train_as_one_and_go_on_from_its_checkpoint(policy_folder: str, tmp_path: Path):
    local = make_group(policy_folder, num_learners=0)
    expected_metrics, expected = train(local, tmp_path / "one")
    assert expected_metrics[2]["learner/logprob_gap/num_tokens"] > 0
    assert expected_metrics[3]["learner/logprob_gap/num_tokens"] == 0
    assert "learner/logprob_gap/mean" not in expected_metrics[3]

    group = make_group(policy_folder, num_learners=2)
    metrics, weights = train(group, tmp_path / "two")
    for mine, theirs in zip(metrics, expected_metrics, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    for name, tensor in weights.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name

    on_each(group, lambda learner: learner.load(str(tmp_path / "one")))
    on_each(local, lambda learner: learner.load(str(tmp_path / "two")))
    assert group.get_state()["learner"] == local.get_state()["learner"]
    on_each(group, lambda learner: learner.export(str(tmp_path / "model")))
    model = plain_model(str(tmp_path / "model"))
    resumed, _ = next(w for w in on_each(local, lambda learner: learner.weights(dtype="float32")) if w)
    for name, tensor in load(resumed.tobytes()).items():
        assert torch.allclose(tensor, model.get_parameter(name), atol=1e-4), name
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    assert "packed_causal" not in (tmp_path / "model" / "config.json").read_text()
    group.shutdown()


def test_a_step_without_tokens_is_skipped_and_counted(policy_folder: str):
    group = make_group(policy_folder, num_learners=0)
    (metrics,) = on_each(group, lambda learner: learner.update_groups([], step=0))
    assert (metrics["learner/num_skipped"], metrics["learner/num_loss_tokens"]) == (1.0, 0.0)
