"""The RLlib learner, in a LearnerGroup: in this process, and as two actors that share one policy."""

import sys
from pathlib import Path

import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.core.learner.learner_group import LearnerGroup
from safetensors.torch import load
from transformers import AutoTokenizer

from learners.model.checkpoint import SaveReport
from learners.sft_config import SftConfig
from tests.learners.learner_groups import group_config, on_each, start, stored, write_policy
from tests.learners.tiny_parts import plain_model, random_table

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_ray")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


def make_group(policy_folder: Path, *, num_learners: int) -> LearnerGroup:
    return start(group_config(policy_folder, num_learners=num_learners, sft=SftConfig(batch_size=4)))


def train(group: LearnerGroup, path: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Two SFT steps, a save, two GRPO steps; metrics of rank 0, and its weights."""
    demonstrations = [ray.put(random_table(group_id=9, seed=1))]
    groups = [stored(random_table(group_id=i, version=0)) for i in range(3)]
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
    return {name: metrics[name] for name in metrics.keys() - {"learner/tokens_per_s", "time/learn_s"}}


def test_two_learners_train_as_one_and_resume_its_checkpoint(policy_folder: Path, tmp_path: Path):
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


def test_a_step_without_tokens_is_skipped_and_counted(policy_folder: Path):
    group = make_group(policy_folder, num_learners=0)
    (metrics,) = on_each(group, lambda learner: learner.update_groups([], step=0))
    assert (metrics["learner/num_skipped"], metrics["learner/num_loss_tokens"]) == (1.0, 0.0)
