"""The learner's adapters, reference model, credits and masks, in this process and as two actors."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.core.learner.learner_group import LearnerGroup
from safetensors.torch import load

from actors.trajectory import StopReason
from learners.buffer.credit_columns import KEYS
from learners.sft_config import SftConfig
from tests.learners import learner_groups
from tests.learners.learner_groups import group_config, start, stored
from tests.learners.tiny_parts import make_table, make_turn, plain_model, random_table, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_ray")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "policy")
    return tmp_path


def make_group(folder: Path, *, num_learners: int = 0, **learner: Any) -> LearnerGroup:
    named = learner["kl"].get("reference") if isinstance(learner.get("kl"), dict) else None
    reference = named or str(folder / f"reference-{num_learners}")
    sft = SftConfig(batch_size=4, warmup_steps=0)
    settings = {"sft": sft, "reference_folder": reference, "warmup_steps": 0, **learner}
    return start(group_config(folder / "policy", num_learners=num_learners, **settings))


def on_each(group: LearnerGroup, method: str, *args: Any, **kwargs: Any) -> list[Any]:
    return learner_groups.on_each(group, lambda learner: getattr(learner, method)(*args, **kwargs))


def save(group: LearnerGroup, path: Path) -> None:
    on_each(group, "save", str(path))
    assert all(report.done and not report.error for report in on_each(group, "saved", wait=True))


def update(group: LearnerGroup, *, step: int) -> dict[str, float]:
    """One GRPO step on random groups; every rank's report is the same."""
    tables = [stored(random_table(group_id=i, seed=step, version=step)) for i in range(3)]
    ranks = on_each(group, "update_groups", tables, step=step)
    for metrics in ranks:
        del metrics["learner/tokens_per_s"], metrics["time/learn_s"]
        assert metrics == ranks[0]
    return ranks[0]


def imitate(group: LearnerGroup) -> None:
    on_each(group, "set_demonstrations", [ray.put(random_table(group_id=9, seed=1))])
    on_each(group, "sft_updates", first_step=0, num_steps=2)


def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
    payload, _ = next(packed for packed in on_each(group, "weights", dtype="float32") if packed)
    return load(payload.tobytes())


KL: dict[str, Any] = {"kl": {"type": "k2", "coefficient": 0.5}}


def test_the_reference_is_the_policy_after_the_cold_start_on_one_rank_and_on_two(folder: Path):
    one, two = make_group(folder, **KL), make_group(folder, num_learners=2, **KL)
    for group in (one, two):
        imitate(group)
    before = weights(one)
    assert not (folder / "reference-0").exists()
    expected = [update(one, step=step) for step in range(3)]
    for step, metrics in enumerate(expected):
        assert update(two, step=step) == pytest.approx(metrics, rel=1e-3, abs=1e-6)
    assert expected[0]["learner/reference_kl"] == 0.0
    assert 0 < expected[1]["learner/reference_kl"] < expected[2]["learner/reference_kl"]
    reference = plain_model(str(folder / "reference-0"))
    assert all(tensor.equal(reference.get_parameter(name)) for name, tensor in before.items())
    two.shutdown()


def test_a_resumed_run_loads_its_initial_reference(folder: Path):
    group = make_group(folder, **KL)
    imitate(group)
    update(group, step=0)
    save(group, folder / "checkpoint")
    expected = update(group, step=1)
    resumed = make_group(folder, **KL)
    on_each(resumed, "load", str(folder / "checkpoint"))
    assert update(resumed, step=1) == expected
    (folder / "reference-0").rename(folder / "moved")
    with pytest.raises(FileNotFoundError, match="no reference model there"):
        on_each(make_group(folder, **KL), "load", str(folder / "checkpoint"))


def test_a_restarted_run_writes_a_new_reference(folder: Path):
    group = make_group(folder, **KL)
    imitate(group)
    update(group, step=0)
    again = make_group(folder, **KL)
    assert update(again, step=0)["learner/reference_kl"] == 0.0


def test_a_configured_model_is_the_reference(folder: Path):
    named = tiny_model()
    with torch.no_grad():
        named.model.embed_tokens.weight.mul_(0.5)
    named.save_pretrained(folder / "named")
    group = make_group(folder, kl={"type": "k3", "reference": str(folder / "named")})
    assert update(group, step=0)["learner/reference_kl"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["named", "policy"]


def test_a_coefficient_of_zero_trains_as_without_a_reference(folder: Path):
    plain, measured = make_group(folder), make_group(folder, kl="k1")
    for step in range(2):
        expected, metrics = update(plain, step=step), update(measured, step=step)
        assert metrics.pop("learner/reference_kl") >= 0
        assert metrics == expected
    after = weights(plain)
    assert all(tensor.equal(after[name]) for name, tensor in weights(measured).items())


def test_adapters_reach_engines_and_export_as_plain_weights(folder: Path):
    group = make_group(folder, lora_rank=4, **KL)
    base = dict(plain_model(str(folder / "policy")).named_parameters())
    assert all(tensor.equal(base[name]) for name, tensor in weights(group).items())
    imitate(group)
    metrics = [update(group, step=step) for step in range(2)]
    assert metrics[0]["learner/reference_kl"] < 1e-9 < metrics[1]["learner/reference_kl"]  # merging rounds
    sent = weights(group)
    assert sent.keys() == base.keys()
    changed = {name for name, tensor in sent.items() if not tensor.equal(base[name])}
    assert changed == {name for name in base if "_proj" in name}
    save(group, folder / "checkpoint")
    resumed = make_group(folder, lora_rank=4, **KL)
    on_each(resumed, "load", str(folder / "checkpoint"))
    assert all(tensor.equal(sent[name]) for name, tensor in weights(resumed).items())


def test_one_rank_and_two_report_the_same_credits_for_every_turn(folder: Path):
    """With a critic, and a KL that each rank takes from the advantages of its own micro-batches."""
    kinds: dict[str, Any] = {"advantage": "turn_gae", "kl": {"type": "k1", "coefficient": 0.5}}
    one, two = make_group(folder, **kinds), make_group(folder, num_learners=2, **kinds)
    for step in range(2):
        for group in (one, two):
            update(group, step=step)
        (mine,) = on_each(one, "credits")
        theirs, nothing = on_each(two, "credits")
        assert nothing is None
        tables = pa.concat_tables(random_table(group_id=i, seed=step, version=step) for i in range(3))
        assert mine.select(KEYS.names).equals(tables.select(KEYS.names))
        assert theirs.select(KEYS.names).equals(tables.select(KEYS.names))
        for name in ("advantage", "value", "credit"):
            assert mine[name].null_count == 0
            assert theirs[name].to_pylist() == pytest.approx(mine[name].to_pylist(), rel=1e-3, abs=1e-5)
        to_go = mine["credit"].to_numpy() - mine["value"].to_numpy()
        is_last = mine["turn"].to_numpy() == 1
        penalties = (to_go - mine["advantage"].to_numpy())[is_last]
        assert (np.abs(penalties) > 1e-6).any() == (step == 1), (
            "the reference is the policy of the first step"
        )
    two.shutdown()


def test_masked_trajectories_are_counted_and_give_no_loss_tokens(folder: Path):
    turns = [[make_turn([1, 2], [3, 4], reward=float(i), forked=True)] for i in range(3)]
    reasons = (StopReason.TERMINATED, StopReason.MAX_TURNS, StopReason.TERMINATED)
    table = make_table(list(zip(turns, reasons, strict=True)))
    (kept,) = on_each(make_group(folder), "update_groups", [stored(table)], step=0)
    (masked,) = on_each(make_group(folder, truncated="mask"), "update_groups", [stored(table)], step=0)
    assert "learner/num_masked" not in kept and masked["learner/num_masked"] == 1.0
    assert (kept["learner/num_loss_tokens"], masked["learner/num_loss_tokens"]) == (6.0, 4.0)
    cut = make_table([(turns[0], StopReason.MAX_TURNS), (turns[1], StopReason.MAX_TOKENS)])
    (nothing,) = on_each(make_group(folder, truncated="mask"), "update_groups", [stored(cut)], step=0)
    assert (nothing["learner/num_skipped"], nothing["learner/num_masked"]) == (1.0, 2.0)
