"""GRPO in one process, from a task to a weight update: no Ray, no vLLM, no GPU. The file to read first.

    .venv/bin/python -m examples.one_process_grpo [--num-steps 25] [--seed 0]

It calls the functions of the distributed system in the same order; docs/code-map.md says which process calls
each of them there. The tiny policy starts with random weights, so it first imitates scripted dialogues (SFT)
of a hasty demonstrator, which often acts without asking the user. Further gains are GRPO's. Single steps are
noisy; on two cores the mean over five steps rises from .23 to .34 in three minutes.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM

from actors.engines.protocol import CompletionRequest, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.trajectory import Completion, GroupOrder
from actors.trajectory_table import to_table
from learners.advantages.group_advantages import gym_advantages
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample, samples_from_table
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.model.policy import Policy, load_policy
from learners.model.tiny_policy import build
from learners.training import optimizer_step
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from simulators.task import TaskSource
from simulators.users.rule_user import RuleUser

GYM, GROUPS_PER_STEP, GROUP_SIZE = "intention", 16, 8
MAX_TOKENS, MAX_COMPLETION_TOKENS = 512, 48
NUM_DEMONSTRATIONS, NUM_EPOCHS, SFT_BATCH, SFT_LR, LR = 1500, 3, 16, 3e-3, 1e-3
CONFIG, CPU = LearnerConfig(lr=LR), torch.device("cpu")


class BatchEngine:
    """Policy engine in this process: samples for all dialogues that wait at the same moment as one batch."""

    def __init__(self, folder: Path, *, stop_id: int):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.version, self._stop_id = 0, stop_id
        self._waiting: list[tuple[CompletionRequest, asyncio.Future[Completion]]] = []

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion, together with all others that are asked for within a millisecond."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(0.001, self._sample)
        self._waiting.append((request, future := loop.create_future()))
        return await future

    @torch.inference_mode()
    def _sample(self) -> None:
        waiting, self._waiting = self._waiting, []
        prompts = [torch.from_numpy(request.token_ids.astype(np.int64)) for request, _ in waiting]
        ids = torch.nn.utils.rnn.pad_sequence(prompts, True, self._stop_id, "left")
        mask = torch.arange(ids.shape[1]) >= torch.tensor([[ids.shape[1] - len(p)] for p in prompts])
        out = self.model.generate(
            ids, attention_mask=mask.long(), do_sample=True, top_k=0, top_p=1.0, eos_token_id=self._stop_id,
            pad_token_id=self._stop_id, max_new_tokens=MAX_COMPLETION_TOKENS,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        sampled = out.sequences[:, ids.shape[1] :]
        logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
        for row, (_, future) in enumerate(waiting):
            stops = (sampled[row] == self._stop_id).nonzero()
            end = int(stops[0]) + 1 if len(stops) else sampled.shape[1]
            ids, seen = sampled[row, :end].tolist(), logprobs[row, :end].tolist()
            future.set_result(Completion.of(ids, logprobs=seen, policy_versions=[self.version] * end))


async def play(context: RolloutContext, orders: list[GroupOrder]) -> list[pa.Table]:
    """Each group's dialogues as one table, a row a turn, with the reward of every turn."""
    groups = await asyncio.gather(*(rollout_group(order, context) for order in orders))
    tables = [to_table(order, group) for order, group in zip(orders, groups, strict=True)]
    return [with_rewards(table, {"environment": 1.0}, RewardContext()) for table in tables]


def update(policy: Policy, adam: Optimizer, samples: list[TrainingSample], *, loss: Any, lr: float) -> None:
    """One optimizer step: micro-batches, forward, loss, backward, clip, step."""
    batches = micro_batches(samples, max_tokens=8192, rank=0, num_ranks=1, seed=0)
    loss_fn = partial(loss, num_tokens=sum(sample.num_loss_tokens for sample in samples))
    sums = optimizer_step.accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    optimizer_step.apply_gradients(policy, adam, lr=lr, max_grad_norm=CONFIG.max_grad_norm, loss=sums["loss"])


def train(*, num_steps: int, num_demonstrations: int = NUM_DEMONSTRATIONS, seed: int = 0) -> Iterator[float]:
    """Yields the mean reward of each step's dialogues; the first is that of the policy after SFT."""
    gym = {GYM: GYMS[GYM]}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), TinyPolicyConfig(), max_tokens=MAX_TOKENS, seed=seed, gyms=gym)
        renderer = Renderer.from_folder(folder)
        policy = load_policy(folder, temperature=1.0, dtype=torch.float32, recompute_activations=False)
        engine = BatchEngine(Path(folder), stop_id=renderer.stop_id)
    context = RolloutContext(
        engine_for=lambda task, seed: engine, user=RuleUser(gym), renderer=renderer, gyms=gym,
        sampling=Sampling(max_completion_tokens=MAX_COMPLETION_TOKENS), max_turns=None,
        max_tokens=MAX_TOKENS, personas="plain",
    )  # fmt: skip
    tasks = TaskSource({GYM: 1.0}, split="train", seed=seed, difficulty=0)

    def order(group_id: int, group_size: int = GROUP_SIZE) -> GroupOrder:
        return GroupOrder(group_id=group_id, task_key=tasks.draw(), group_size=group_size, seed=seed)

    # SFT: the same rollouts with a script in place of the policy, and advantage 1 on every turn.
    script = partial(ScriptedEngine, "hasty", gym=GYMS[GYM], renderer=renderer)
    scripted = replace(context, engine_for=lambda task, seed: script(task=task, seed=seed))
    shown = pa.concat_tables(asyncio.run(play(scripted, [order(n, 1) for n in range(num_demonstrations)])))
    samples = samples_from_table(shown, advantages=np.ones(shown.num_rows)) * NUM_EPOCHS
    adam = optimizer_step.make_optimizer(policy, config=CONFIG)
    for begin in range(0, len(samples), SFT_BATCH):
        lr = SFT_LR * (1 - 0.9 * begin / len(samples))
        update(policy, adam, samples[begin : begin + SFT_BATCH], loss=optimizer_step.sft_sums, lr=lr)

    adam = optimizer_step.make_optimizer(policy, config=CONFIG)
    for step in range(num_steps):
        engine.model.load_state_dict(policy.model.state_dict())  # the weight sync
        engine.version = step
        orders = [order(num_demonstrations + step * GROUPS_PER_STEP + n) for n in range(GROUPS_PER_STEP)]
        tables = asyncio.run(play(context, orders))
        yield float(np.mean([sum(table["reward"].to_numpy()) / GROUP_SIZE for table in tables]))
        advantages = np.concatenate([gym_advantages(table, CONFIG.credit_of) for table in tables])
        samples = samples_from_table(pa.concat_tables(tables), advantages=advantages)
        loss = partial(optimizer_step.grpo_sums, config=CONFIG, policy_version=step)
        update(policy, adam, samples, loss=loss, lr=LR)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO in one process")
    parser.add_argument("--num-steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    rewards: list[float] = []
    for reward in train(**vars(parser.parse_args())):
        rewards.append(reward)
        print(f"step {len(rewards)}: reward {reward:.3f}, last five {np.mean(rewards[-5:]):.3f}", flush=True)
