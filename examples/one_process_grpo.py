"""GRPO in one process, from a task to a weight update: no Ray, no vLLM, no GPU. The file to read first.

    python -m examples.one_process_grpo

It calls the functions of the distributed system in the same order; docs/code-map.md says which process calls
them there. The policy is tiny and its weights are random, so it first imitates scripted dialogues (SFT):
otherwise it would never write a tool call, and every reward would be zero. The demonstrator is hasty: it may
act before it has asked enough. What the printed reward gains after step 0, it gains by GRPO.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM

from actors.engines.protocol import CompletionRequest, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.trajectory import Completion, GroupOrder
from actors.trajectory_table import to_table
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample, gym_advantages, samples_from_table
from learners.config import LearnerConfig, TinyPolicyConfig
from learners.model.policy import Policy, load_policy
from learners.model.tiny_policy import build
from learners.training import optimizer_step as training
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from simulators.task import TaskSource
from simulators.users.rule_user import RuleUser

GYM, GROUPS_PER_STEP, GROUP_SIZE = "turtle", 16, 8
MAX_TOKENS, MAX_COMPLETION_TOKENS = 640, 48
NUM_DEMONSTRATIONS, SFT_BATCH, SFT_LR = 8000, 16, 4e-3
TINY = TinyPolicyConfig(hidden_size=64, num_layers=3, intermediate_size=192)
CONFIG, CPU = LearnerConfig(lr=7e-4), torch.device("cpu")


class BatchEngine:
    """Policy engine in this process: samples for all waiting dialogues as one batch."""

    def __init__(self, folder: str, *, stop_id: int):
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.version, self._stop_id = 0, stop_id
        self._waiting: list[tuple[CompletionRequest, asyncio.Future[Completion]]] = []

    def receive_weights(self, policy: Policy, *, version: int) -> None:
        """Weight sync: the policy that was just trained samples next."""
        self.model.load_state_dict(policy.model.state_dict())
        self.version = version

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion, in one batch with all requests of the same millisecond."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(0.001, self._sample)
        self._waiting.append((request, loop.create_future()))
        return await self._waiting[-1][1]

    @torch.inference_mode()
    def _sample(self) -> None:
        waiting, self._waiting = self._waiting, []
        prompts = [torch.from_numpy(request.token_ids.astype(np.int64)) for request, _ in waiting]
        ids = pad_sequence(prompts, batch_first=True, padding_value=self._stop_id, padding_side="left")
        lengths = torch.tensor([[len(prompt)] for prompt in prompts])
        out = self.model.generate(
            ids, attention_mask=(torch.arange(ids.shape[1]) >= ids.shape[1] - lengths).long(), do_sample=True,
            top_k=0, eos_token_id=self._stop_id, pad_token_id=self._stop_id, output_logits=True,
            max_new_tokens=MAX_COMPLETION_TOKENS, return_dict_in_generate=True,
        )  # fmt: skip
        sampled = out.sequences[:, ids.shape[1] :]
        logprobs = torch.stack(out.logits, 1).log_softmax(-1).gather(-1, sampled[..., None])[..., 0]
        for row, (_, future) in enumerate(waiting):
            stops = (sampled[row] == self._stop_id).nonzero()
            end = int(stops[0]) + 1 if len(stops) else sampled.shape[1]
            values, versions = logprobs[row, :end].tolist(), [self.version] * end
            ids = sampled[row, :end].tolist()
            future.set_result(Completion.of(ids, logprobs=values, policy_versions=versions))


async def play(orders: list[GroupOrder], context: RolloutContext) -> list[pa.Table]:
    """A table for each group, a row a turn, with the turn's reward."""
    groups = await asyncio.gather(*(rollout_group(order, context) for order in orders))
    tables = map(to_table, orders, groups)
    return [with_rewards(table, {"environment": 1.0}, RewardContext()) for table in tables]


def update(policy: Policy, optimizer: Optimizer, samples: list[TrainingSample], loss: partial, lr: float):
    """One optimizer step: micro-batches, forward, loss, backward, clip, step."""
    loss_fn = partial(loss, num_tokens=sum(sample.num_loss_tokens for sample in samples))
    batches = micro_batches(samples, max_tokens=8192, rank=0, num_ranks=1, seed=0)
    sums = training.accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    training.apply_gradients(policy, optimizer, lr=lr, max_grad_norm=1.0, loss=sums["loss"])


def train(*, num_steps: int, num_demonstrations: int = NUM_DEMONSTRATIONS, seed: int = 0) -> Iterator[float]:
    """Yields the mean reward of each step's dialogues; the first is that of the policy after SFT."""
    torch.manual_seed(seed)
    gyms = {GYM: GYMS[GYM]}
    with TemporaryDirectory() as folder:
        build(Path(folder), TINY, max_tokens=MAX_TOKENS, seed=seed, gyms=gyms)
        renderer = Renderer.from_folder(folder)
        policy = load_policy(folder, temperature=1.0, dtype=torch.float32, recompute_activations=False)
        engine = BatchEngine(folder, stop_id=renderer.stop_id)
    sampling = Sampling(max_completion_tokens=MAX_COMPLETION_TOKENS)
    context = RolloutContext(
        engine_for=lambda task, seed: engine, user=RuleUser(gyms), renderer=renderer, sampling=sampling,
        gyms=gyms, personas="plain", max_turns=None, max_tokens=MAX_TOKENS,
    )  # fmt: skip
    tasks = TaskSource({GYM: 1.0}, split="train", seed=seed, difficulty=0)

    def orders(num_groups: int, group_size: int) -> list[GroupOrder]:
        order = partial(GroupOrder, group_size=group_size, seed=seed)
        return [order(group_id=tasks.num_drawn, task_key=tasks.draw()) for _ in range(num_groups)]

    # SFT: the same rollouts by a script, with advantage 1 on every turn.
    script = partial(ScriptedEngine, "hasty", gym=GYMS[GYM], renderer=renderer)
    scripted = replace(context, engine_for=lambda task, seed: script(task=task, seed=seed))
    shown = pa.concat_tables(asyncio.run(play(orders(num_demonstrations, 1), scripted)))
    samples = samples_from_table(shown, advantages=np.ones(shown.num_rows))
    optimizer = training.make_optimizer(policy, config=CONFIG)
    for begin in range(0, len(samples), SFT_BATCH):
        lr = training.decayed(SFT_LR, step=begin, num_steps=len(samples))
        update(policy, optimizer, samples[begin : begin + SFT_BATCH], partial(training.sft_sums), lr)
    optimizer = training.make_optimizer(policy, config=CONFIG)
    for step in range(num_steps):
        engine.receive_weights(policy, version=step)
        tables = asyncio.run(play(orders(GROUPS_PER_STEP, GROUP_SIZE), context))
        yield float(np.mean([table["reward"].to_numpy().sum() / GROUP_SIZE for table in tables]))
        advantages = np.concatenate([gym_advantages(table, CONFIG.credit_of) for table in tables])
        samples = samples_from_table(pa.concat_tables(tables), advantages=advantages)
        loss = partial(training.grpo_sums, config=CONFIG, policy_version=step)
        update(policy, optimizer, samples, loss, CONFIG.lr)


if __name__ == "__main__":
    for number, reward in enumerate(train(num_steps=15)):
        print(f"step {number}: mean reward {reward:.3f}", flush=True)
