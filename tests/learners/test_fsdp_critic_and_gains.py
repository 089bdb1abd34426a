"""Critic and gains over FSDP2: two ranks get the numbers of one, take its step and read its checkpoints."""

import asyncio
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from actors.renderer import Renderer
from actors.trajectory import GroupOrder
from actors.trajectory_table import REWARD, to_table
from learners.advantages.config import TurnGaeConfig
from learners.batch.aggregation import turn_weights
from learners.batch.packing import micro_batches
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.model.checkpoint import Progress, load_checkpoint
from learners.model.policy import load_policy, shard
from learners.model.tiny_policy import build
from learners.model.weight_export import full_state_dict
from learners.training.forward_scoring import ForwardScorer
from learners.training.optimizer_step import (
    accumulate_gradients,
    apply_gradients,
    grpo_sums,
    make_optimizer,
    total_loss,
    with_critic,
)
from learners.training.step_batch import samples_of_step
from tests.actors.test_renderer import COMPLETIONS, talk
from tests.learners.local_ranks import join
from tests.learners.tiny_parts import save_checkpoint

CPU = torch.device("cpu")
MAX_TOKENS = 2048
KINDS = ("gold_answer", "masked_feedback")
GOLD = json.dumps([{"choice": "answer", "content": "21"}])


def one_group(folder: Path) -> pa.Table:
    """Dialogues of six, five and one turns; an odd number, so that two ranks share unevenly."""
    renderer = Renderer.from_folder(folder)
    talks = [asyncio.run(talk(renderer, COMPLETIONS[index:])) for index in (0, 1, 5)]
    trajectories = [trajectory for trajectory, _ in talks]
    order = GroupOrder(group_id=3, task_key=trajectories[0].task_key, group_size=3, seed=0)
    table = to_table(order, trajectories)
    table = table.set_column(table.schema.get_field_index("gold"), "gold", pa.array([GOLD] * table.num_rows))
    rewards = np.random.default_rng(0).random(table.num_rows)
    return table.append_column(REWARD, pa.array(rewards))


def three_steps(folder: Path, *, kind: str, rank: int, num_ranks: int) -> list[dict[str, float]]:
    """Two steps, a checkpoint, another step after loading the one that one rank wrote. Metrics and sums."""
    config = LearnerConfig(
        advantage=TurnGaeConfig(critic_lr=0.01),
        information_gain=kind,  # type: ignore[arg-type]
    )
    policy = load_policy(
        str(folder / "model"),
        temperature=1.0,
        dtype=torch.float32,
        recompute_activations=False,
        has_critic=True,
        seed=4,
    )
    policy = shard(policy, num_ranks=num_ranks, device=CPU)
    optimizer = make_optimizer(policy, config=config)
    renderer, table = Renderer.from_folder(folder / "model"), one_group(folder / "model")
    report = []
    for step in range(3):
        if step == 2:
            save_checkpoint(folder / f"{num_ranks}-{kind}", policy, optimizer, Progress(stage="grpo"))
            load_checkpoint(folder / f"1-{kind}", policy, optimizer)
        scorer = ForwardScorer(
            policy=policy, device=CPU, max_tokens=MAX_TOKENS, rank=rank, num_ranks=num_ranks, seed=step
        )
        samples, metrics, _ = samples_of_step([table], config=config, renderer=renderer, scorer=scorer)
        num_tokens = sum(sample.num_loss_tokens for sample in samples)
        loss_fn = partial(
            with_critic,
            loss_fn=partial(grpo_sums, config=config, num_tokens=num_tokens, policy_version=0),
        )
        of_turns = turn_weights(samples, gym_shares=None)
        batches = micro_batches(
            samples, turn_weights=of_turns, max_tokens=MAX_TOKENS, rank=rank, num_ranks=num_ranks, seed=step
        )
        sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=num_ranks)
        norm = apply_gradients(policy, optimizer, lr=1e-3, max_grad_norm=1.0, loss=total_loss(sums))
        report.append({**metrics, **sums, "norm": norm})
    weights = full_state_dict(policy, keep=True)
    report.append({"weights": sum(float(tensor.double().abs().sum()) for tensor in weights.values())})
    return report


def two_ranks(rank: int, folder: Path) -> None:
    join(rank, num_ranks=2, folder=folder)
    reports = {kind: three_steps(folder, kind=kind, rank=rank, num_ranks=2) for kind in KINDS}
    (folder / f"{rank}.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_score_and_learn_as_one(tmp_path: Path):
    tiny = TinyPolicyConfig(hidden_size=32, num_layers=2, num_heads=1, intermediate_size=48, vocab_size=512)
    build(tmp_path / "model", tiny, max_tokens=MAX_TOKENS, seed=0)
    expected = {kind: three_steps(tmp_path, kind=kind, rank=0, num_ranks=1) for kind in KINDS}
    spawn(two_ranks, args=(tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for kind in KINDS:
        for mine, theirs in zip(first[kind], expected[kind], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
        assert expected[kind][1]["critic_loss"] != expected[kind][0]["critic_loss"]
        assert expected[kind][0]["learner/information_gain/num_turns"] == 5 + 4
