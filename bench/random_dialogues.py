"""Random dialogues: random tokens and mixed lengths, for benchmarks of the learner."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from actors.trajectory_table import REWARD, to_table
from learners.batch.packing import pack
from learners.batch.samples import TrainingSample, samples_from_table
from learners.model.policy import Policy
from simulators.task import TaskKey

SHORTEST, LONGEST = 64, 1024
MEDIAN, SPREAD = 240, 0.8
"""Lengths are log-normal between these bounds: most dialogues end early, a few are four times as long."""
OPENING = (24, 48)
SAID = (12, 40)
"""Tokens of a policy's turn, fewest and most; of the reply to it likewise."""


def dialogues(num_dialogues: int, *, vocab_size: int, seed: int) -> list[TrainingSample]:
    """One group of that many dialogues; the longest has `LONGEST` tokens. Context and completions take
    turns. Behavior logprobs are 0: see `sampled_by`."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(MEDIAN), SPREAD, num_dialogues)).clip(SHORTEST, LONGEST).astype(int)
    lengths[lengths.argmax()] = LONGEST
    key = TaskKey(gym="function", split="train", index=0, seed=0, difficulty=0)
    order = GroupOrder(group_id=0, task_key=key, group_size=num_dialogues, seed=seed)
    trajectories = [
        Trajectory(
            task_key=key,
            system="",
            opening="",
            turns=_turns(int(length), vocab_size=vocab_size, rng=rng),
            stop_reason=StopReason.TERMINATED,
        )
        for length in lengths
    ]
    table = to_table(order, trajectories)
    advantages = rng.normal(size=num_dialogues)[table["trajectory"].to_numpy()]
    return samples_from_table(
        table.append_column(REWARD, pa.array(np.zeros(table.num_rows))), advantages=advantages
    )


def _turns(num_tokens: int, *, vocab_size: int, rng: np.random.Generator) -> list[Turn]:
    turns: list[Turn] = []
    while num_tokens > 0:
        contexts = SAID if turns else OPENING
        num_context, num_said = int(rng.integers(*contexts)), int(rng.integers(*SAID))
        if num_tokens - num_context - num_said < OPENING[1]:  # the last turn takes what is left
            num_context = min(num_context, num_tokens - 1)
            num_said = num_tokens - num_context
        num_tokens -= num_context + num_said
        turns.append(
            Turn(
                context_ids=rng.integers(3, vocab_size, num_context).astype(np.int32),
                forked=not turns,
                completion=Completion.scripted(rng.integers(3, vocab_size, num_said).tolist()),
                text="",
                action=None,
                feedback="",
                reward=0.0,
            )
        )
    return turns


@torch.no_grad()
def sampled_by(
    policy: Policy, samples: list[TrainingSample], *, gap: float, seed: int
) -> list[TrainingSample]:
    """The samples with behavior logprobs that differ from the policy's own by `gap` (standard deviation)."""
    rng = np.random.default_rng(seed)
    done = []
    for sample in samples:
        own = policy(pack([sample])).logprobs.numpy()
        logprobs = own + rng.normal(0, gap, len(own)).astype(np.float32)
        done.append(replace(sample, behavior_logprobs=logprobs))
    return done
