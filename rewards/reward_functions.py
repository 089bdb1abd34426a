"""Reward functions: a group's table in, one number a turn out. They see texts, outcomes and token counts,
never token ids.

A new reward is one function and one line in `REWARDS`, or a function of a module of your own. What each is
for, with its formula and an example: docs/rewards.md. Arrow is not imported here: the configuration reads the
names of `REWARDS` in an instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actors.tool_call_parser import CALL_BEGIN, CALL_END, THOUGHT_END
from rewards.tool_call_reward import tool_call_rewards
from simulators.plug_ins import plug_in

if TYPE_CHECKING:
    import pyarrow as pa

Rewards = NDArray[np.float64]  # [num_turns of the group]
TOKENS_PER_UNIT = 1000
"""`length` counts thousands, so that its weights are of the size of the others'."""
OVERLONG_SHARE = 0.2
"""Of the longest turn, the last part in which `overlong` falls: DAPO's 4,096 of 20,480 tokens."""
THOUGHT_BEGIN = "<think>"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RewardContext:
    """What reward functions may want to know besides the table."""

    gammas: Mapping[str, float] = field(default_factory=dict)
    """Gym to the learner's discount per turn."""
    max_completion_tokens: int = 0
    """Longest turn that the engine may sample."""
    ratings: Sequence[float] = ()  # [group_size]
    """The judge's rating of each trajectory, in [0, 1]; NaN where there is none."""


RewardFn = Callable[["pa.Table", RewardContext], Rewards]


def environment(table: pa.Table, context: RewardContext) -> Rewards:
    """The gym's own reward of each turn; a dialogue's sum is its score, in [0, 1]."""
    return table["env_reward"].to_numpy()


def outcome(table: pa.Table, context: RewardContext) -> Rewards:
    """The gym's own reward of the whole dialogue, all of it on the last turn: R_T = sum over t of r_t, 0
    before."""
    of, is_last = _trajectories(table)
    totals = np.bincount(of, weights=environment(table, context))
    return np.where(is_last, totals[of], 0.0)


def turn(table: pa.Table, context: RewardContext) -> Rewards:
    """1 a turn. With a negative weight: the cost of taking the user's time."""
    return np.ones(table.num_rows)


def length(table: pa.Table, context: RewardContext) -> Rewards:
    """Thousands of tokens of the turn's completion, thought included. With a negative weight: their cost."""
    return _num_tokens(table) / TOKENS_PER_UNIT


def overlong(table: pa.Table, context: RewardContext) -> Rewards:
    """DAPO's soft overlong punishment (arXiv 2503.14476 eq. 13) of each turn, L being its tokens, L_max the
    longest turn allowed and L_cache a fifth of it.

    0 up to L_max - L_cache, then (L_max - L_cache - L) / L_cache, which is -1 at L_max; -1 beyond.
    """
    longest = context.max_completion_tokens
    assert longest > 0, "overlong needs the context's max_completion_tokens"
    cache = OVERLONG_SHARE * longest
    return np.clip((longest - cache - _num_tokens(table)) / cache, -1.0, 0.0)


def format(table: pa.Table, context: RewardContext) -> Rewards:
    """1 where the completion is exactly one valid tool call, after at most one thought; 0 where there is
    none, a second one, or any text beside it (ToolRL's format reward, arXiv 2504.13958 §3.3)."""
    pairs = zip(table["text"].to_pylist(), table["choice"].to_pylist(), strict=True)
    return np.array([choice is not None and _is_one_call(text) for text, choice in pairs], np.float64)


def no_tool_call(table: pa.Table, context: RewardContext) -> Rewards:
    """1 where the completion held no valid tool call."""
    return np.asarray(table["choice"].is_null(), np.float64)


def tool_call(table: pa.Table, context: RewardContext) -> Rewards:
    """What the turn adds to ToolRL's match of the dialogue's calls with the gold calls: s_t - s_(t-1).

    The sum is the whole dialogue's match, in [0, 1]; 0 where the gym knows no gold calls. See
    rewards/tool_call_reward.py.
    """
    return tool_call_rewards(table)


def potential(table: pa.Table, context: RewardContext) -> Rewards:
    """Potential-based shaping (Ng, Harada, Russell 1999): F_t = gamma Phi(s_(t+1)) - Phi(s_t), Phi being the
    gym's progress, 0 before the first turn and after the last.

    gamma is the learner's for this gym. The discounted sum of a dialogue is 0, so that no policy gains by it:
    it only moves credit to the turns that made progress.
    """
    _, is_last = _trajectories(table)
    after = np.where(is_last, 0.0, table["progress"].to_numpy())
    before = np.concatenate([[0.0], after[:-1]])  # the row before a first turn is a last one: 0
    return context.gammas[str(table["gym"][0])] * after - before


def judge(table: pa.Table, context: RewardContext) -> Rewards:
    """The judge's rating of the whole dialogue, in [0, 1], on the last turn; NaN on every turn where it gave
    none. See rewards/judge.py."""
    of, is_last = _trajectories(table)
    ratings = np.asarray(context.ratings, np.float64)[of]
    return np.where(is_last | np.isnan(ratings), ratings, 0.0)


def _trajectories(table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Of each row: which trajectory it is of, and whether it is that one's last."""
    of = table["trajectory"].to_numpy()
    return of, np.append(of[1:] != of[:-1], True)


def _num_tokens(table: pa.Table) -> Rewards:
    """Completion tokens of each turn."""
    return np.diff(table["completion_ids"].combine_chunks().offsets.to_numpy()).astype(np.float64)


def _is_one_call(text: str) -> bool:
    """Whether a text with a valid call in it holds nothing but that call and a thought before it. A thought
    may lack its opening tag: some templates put it before the completion."""
    thought, ended, rest = text.partition(THOUGHT_END)
    if not ended:
        thought, rest = "", text
    is_thought = THOUGHT_BEGIN not in thought.strip().removeprefix(THOUGHT_BEGIN) and THOUGHT_END not in rest
    rest = rest.strip()
    return (
        is_thought
        and rest.startswith(CALL_BEGIN)
        and rest.endswith(CALL_END)
        and rest.count(CALL_BEGIN) == rest.count(CALL_END) == 1
    )


REWARDS: dict[str, RewardFn] = {
    "environment": environment,
    "outcome": outcome,
    "turn": turn,
    "length": length,
    "overlong": overlong,
    "format": format,
    "no_tool_call": no_tool_call,
    "tool_call": tool_call,
    "potential": potential,
    "judge": judge,
}


def reward_function(name: str) -> RewardFn:
    """The function of a weight's name: one of `REWARDS`, or `module:function` of a plug-in. Raises
    ValueError, one line."""
    if name in REWARDS:
        return REWARDS[name]
    if ":" in name:
        return plug_in(name)
    raise ValueError(
        f"{name!r}: unknown reward function: the known ones are {', '.join(REWARDS)}; one of your own is "
        "module:function"
    )
