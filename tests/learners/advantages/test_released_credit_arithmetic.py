"""`userrl_compat` against the released arithmetic, implemented from its description: tensors, a padded batch
of several groups, turn boundaries, a response mask. Equal to the last bit."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.advantages.estimators import CreditRule
from tests.effort import examples

SCORES = ("sum", "reward_to_go")
CREDITS = ("equalized", "reward_to_go", "exponential")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Dialogues as the release holds them: one row of tokens each."""

    rewards: list[list[float]]  # [num_trajectories][num_turns]
    boundaries: Tensor  # [num_trajectories, width]; 1 where a turn begins
    mask: Tensor  # [num_trajectories, width]; 1 on the policy's tokens
    groups: list[int]  # [num_trajectories]


def make_batch(
    dialogues: list[list[list[tuple[float, int]]]], *, num_user_tokens: int, padding: int
) -> Batch:
    """`dialogues` [num_groups][group_size][num_turns] of (reward, tokens); user tokens follow each turn."""
    rows = [dialogue for group in dialogues for dialogue in group]
    width = padding + max(sum(length + num_user_tokens for _, length in row) for row in rows)
    boundaries, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        at = 0
        for _, length in row:
            boundaries[index, at] = 1
            mask[index, at : at + length] = 1
            at += length + num_user_tokens
    return Batch(
        rewards=[[reward for reward, _ in row] for row in rows],
        boundaries=boundaries,
        mask=mask,
        groups=[group for group, of in enumerate(dialogues) for _ in of],
    )


def score_and_credits(
    rewards: list[float], *, score: str, credit: str, gamma: float
) -> tuple[float, list[float]]:
    """One dialogue's number and its turns'. "Sum" is a mean, rounded; the exponential map is rounded too."""
    to_go = list(rewards)
    for turn in range(len(rewards) - 2, -1, -1):
        to_go[turn] = rewards[turn] + gamma * to_go[turn + 1]
    if credit == "reward_to_go":
        credits = to_go
    elif credit == "equalized":
        credits = [1.0] * len(rewards)
    else:
        credits = [
            round(0.5 + 0.5 * ((1 - math.exp(-2.0 * reward)) / (1 - math.exp(-2.0))), 4) for reward in rewards
        ]
    return (to_go[0] if score == "reward_to_go" else round(sum(rewards) / len(rewards), 4)), credits


def released(batch: Batch, *, score: str, credit: str, gamma: float) -> Tensor:
    """[num_trajectories, width]: the described steps of `compute_grpo_multiturn_advantage`, in order."""
    advantages = torch.zeros(batch.mask.shape, dtype=torch.float32)
    scores = []
    for row, rewards in enumerate(batch.rewards):
        value, credits = score_and_credits(rewards, score=score, credit=credit, gamma=gamma)
        scores.append(value)
        starts = [*torch.where(batch.boundaries[row] == 1)[0].tolist(), batch.mask.shape[1]]
        for turn, number in enumerate(credits):
            advantages[row, starts[turn] : starts[turn + 1]] = number
    of_rows = torch.tensor(scores)
    advantages = advantages * batch.mask
    members = defaultdict(list)
    for row, group in enumerate(batch.groups):
        members[group].append(of_rows[row])
    for row, group in enumerate(batch.groups):
        mean, std = torch.tensor(0.0), torch.tensor(1.0)
        if len(members[group]) > 1:
            mean, std = torch.mean(torch.stack(members[group])), torch.std(torch.stack(members[group]))
        z = (of_rows[row] - mean) / (std + 1e-6)
        total = torch.sum(advantages[row])
        if total != 0:
            advantages[row] *= z * torch.count_nonzero(advantages[row]) / total
        else:
            advantages[row] *= 0.0
    return advantages


def by_turn(batch: Batch, advantages: Tensor) -> list[np.ndarray]:
    """The advantage of each turn's tokens, which must be equal."""
    found = []
    for row in range(len(batch.groups)):
        starts = torch.where(batch.boundaries[row] == 1)[0]
        found.append(advantages[row, starts].numpy().astype(float))
    return found


def ours(
    dialogues: list[list[list[tuple[float, int]]]], *, score: str, credit: str, gamma: float
) -> list[np.ndarray]:
    estimator = CreditRule(
        advantage="userrl_compat", trajectory_score=score, turn_credit=credit, gamma=gamma
    ).advantages
    return [
        row
        for group in dialogues
        for row in estimator(
            [np.array([reward for reward, _ in dialogue]) for dialogue in group],
            num_tokens=[np.array([length for _, length in dialogue]) for dialogue in group],
        )
    ]


REWARDS = st.sampled_from([0.0, 0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0])
SIGNED = st.floats(-1, 1, width=32).map(lambda x: round(x, 3))
MOST_TURNS, NUM_TOKENS = 6, 240


def dialogues_of(rewards: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[tuple[float, int]]]]:
    turn = st.tuples(rewards, st.integers(1, 40))
    return st.lists(st.lists(turn, min_size=1, max_size=MOST_TURNS), min_size=1, max_size=20)


any_pair = pytest.mark.parametrize("credit", CREDITS)
any_score = pytest.mark.parametrize("score", SCORES)
GAMMAS = st.sampled_from([0.5, 0.8, 0.99, 1.0])
quick = settings(deadline=None, max_examples=examples(40))


@pytest.mark.medium
@any_pair
@any_score
@quick
@given(group=dialogues_of(st.one_of(REWARDS, SIGNED)), gamma=GAMMAS)
def test_userrl_compat_equals_the_released_arithmetic_to_the_last_bit(
    group: list[list[tuple[float, int]]], gamma: float, score: str, credit: str
):
    """Groups of 1 to 20, both signs. All rows are made as wide as the batch: zeros change a sum's order."""
    group = [[*row[:-1], (row[-1][0], NUM_TOKENS - sum(length for _, length in row[:-1]))] for row in group]
    batch = make_batch([group], num_user_tokens=0, padding=0)
    theirs = by_turn(batch, released(batch, score=score, credit=credit, gamma=gamma))
    for mine, reference in zip(ours([group], score=score, credit=credit, gamma=gamma), theirs, strict=True):
        assert mine.tolist() == reference.tolist()


@any_score
@quick
@given(groups=st.lists(dialogues_of(SIGNED), min_size=1, max_size=3), gamma=GAMMAS, gap=st.integers(0, 9))
def test_equal_credits_are_equal_to_the_last_bit_for_any_positions_of_user_tokens(
    groups: list[list[list[tuple[float, int]]]], gamma: float, gap: int, score: str
):
    batch = make_batch(groups, num_user_tokens=gap, padding=gap)
    theirs = by_turn(batch, released(batch, score=score, credit="equalized", gamma=gamma))
    for mine, reference in zip(
        ours(groups, score=score, credit="equalized", gamma=gamma), theirs, strict=True
    ):
        assert mine.tolist() == reference.tolist()


@pytest.mark.medium
@any_pair
@any_score
@quick
@example(
    groups=[[[(0.0, 3), (1.0, 5)], [(0.0, 2)]], [[(0.1, 1)] * 3, [(0.7, 9), (0.0, 1)], [(0.25, 4)]]],
    gamma=0.8,
    gap=7,
)
@given(groups=st.lists(dialogues_of(REWARDS), min_size=1, max_size=3), gamma=GAMMAS, gap=st.integers(0, 9))
def test_positions_of_user_tokens_change_only_the_last_bits(
    groups: list[list[list[tuple[float, int]]]], gamma: float, gap: int, score: str, credit: str
):
    batch = make_batch(groups, num_user_tokens=gap, padding=5)
    theirs = by_turn(batch, released(batch, score=score, credit=credit, gamma=gamma))
    for mine, reference in zip(ours(groups, score=score, credit=credit, gamma=gamma), theirs, strict=True):
        np.testing.assert_allclose(mine, reference, rtol=2e-6)


def test_a_dialogue_without_a_turn_has_no_advantage_and_counts_as_zero():
    """Undefined in the release, which raises. Scores 0 and 1: deviation sqrt(1/2)."""
    estimator = CreditRule(
        advantage="userrl_compat", trajectory_score="sum", turn_credit="equalized", gamma=0.8
    ).advantages
    none, one = estimator([np.zeros(0), np.ones(1)])
    assert none.shape == (0,)
    assert one == pytest.approx([0.5**0.5], rel=1e-5)
