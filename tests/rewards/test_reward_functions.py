"""Rewards: one number a turn, weighted, and never one for a failure."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.trajectory import GroupOrder, StopReason, Turn
from actors.trajectory_table import to_table
from rewards.config import RewardConfig
from rewards.reward_functions import REWARDS, RewardContext
from rewards.scorer import with_rewards
from simulators.gyms import GYMS
from tests.fakes import make_tasks, play_expert
from tests.rewards.judged_dialogues import answer, call_of, make_table, make_trajectory, make_turn, say

CONTEXT = RewardContext(gammas={"function": 0.9}, max_completion_tokens=100, ratings=[0.5, 0.25, 1.0])
CALL = """<tool_call>
{"name": "interact_with_env", "arguments": {"choice": "action", "content": "x"}}
</tool_call>"""


def turn(*, reward: float, acted: bool = True) -> Turn:
    return make_turn(reward=reward, action=say("x") if acted else None)


def mixed_table():
    return make_table(
        [
            make_trajectory(
                [turn(reward=0.25), turn(reward=0.5, acted=False)], stop_reason=StopReason.NO_TOOL_CALL
            ),
            make_trajectory([turn(reward=0.75), turn(reward=0.0)], stop_reason=StopReason.SIMULATOR_ERROR),
            make_trajectory([], stop_reason=StopReason.ERROR),
        ]
    )


def rewards(weights: dict[str, float]) -> list[float]:
    return with_rewards(mixed_table(), weights, CONTEXT)["reward"].to_pylist()


def rewards_of(name: str, *turns: Turn, context: RewardContext = CONTEXT) -> list[float]:
    """Of a dialogue that stands between two others."""
    other = make_trajectory([turn_of_others()])
    table = make_table([other, make_trajectory(turns), other])
    return REWARDS[name](table, context)[1:-1].tolist()


def turn_of_others() -> Turn:
    return make_turn(action=say("x"), reward=0.125, progress=1.0, num_tokens=77)


def test_the_environments_reward_stays_with_its_turn():
    np.testing.assert_allclose(rewards({"environment": 1.0})[:2], [0.25, 0.5])


def test_a_reward_is_the_weighted_sum_of_its_functions():
    np.testing.assert_allclose(
        rewards({"environment": 2.0, "turn": -0.1, "no_tool_call": -0.5})[:2], [0.4, 1.0 - 0.1 - 0.5]
    )


@pytest.mark.parametrize("name", REWARDS)
def test_every_turn_of_a_failed_trajectory_is_nan_whatever_is_weighted(name: str):
    for weights in ({name: 1.0}, {name: 0.0}, {}):
        assert [math.isnan(x) for x in rewards(weights)] == [False, False, True, True, True]


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_one_number_a_turn_of_the_dialogue_alone(name: str):
    """Groups in which other dialogues stand around give the same numbers."""
    dialogue = make_trajectory(
        [make_turn(action=answer("7"), progress=0.3, num_tokens=90, reward=0.5), make_turn(text="Well.")],
        gold=[answer("7")],
    )
    other = make_trajectory([turn_of_others(), turn_of_others()])
    context = RewardContext(gammas=CONTEXT.gammas, max_completion_tokens=100, ratings=[0.5, 0.5, 0.5])
    alone = REWARDS[name](make_table([dialogue]), context)
    among = REWARDS[name](make_table([other, dialogue, other]), context)
    assert alone.dtype == np.float64 and alone.shape == (2,) and np.isfinite(alone).all()
    np.testing.assert_array_equal(alone, among[2:4])


def test_nan_is_a_number_in_the_table_and_not_a_null():
    assert with_rewards(mixed_table(), {"environment": 1.0}, CONTEXT)["reward"].null_count == 0


def test_rewards_add_one_column_and_change_no_other():
    table = mixed_table()
    weights = dict.fromkeys(REWARDS, 1.0)
    assert with_rewards(table, weights, CONTEXT).drop_columns("reward") == table


def test_the_outcome_is_the_whole_score_on_the_last_turn():
    turns = [turn(reward=reward) for reward in (0.25, 0.0, 0.5, 0.0)]
    assert rewards_of("outcome", *turns) == [0.0, 0.0, 0.0, 0.75]


def test_length_counts_thousands_of_tokens():
    turns = [make_turn(num_tokens=number) for number in (1, 250, 2000)]
    assert rewards_of("length", *turns) == [0.001, 0.25, 2.0]


def test_overlong_falls_over_the_last_fifth_of_the_longest_turn():
    """Of 100 tokens: nothing up to 80, half at 90, -1 at 100 and beyond."""
    turns = [make_turn(num_tokens=number) for number in (1, 80, 81, 90, 95, 100, 130)]
    np.testing.assert_allclose(rewards_of("overlong", *turns), [0, 0, -0.05, -0.5, -0.75, -1, -1])


GOOD = [
    CALL,
    f"  {CALL}\n",
    f"<think>\nIs it x?\n</think>\n\n{CALL}",
    f"<think></think>{CALL}",
    f"Is it x?</think>{CALL}",  # the template opened the thought
    f"<think>I could say {CALL}</think>{CALL}",
]
BAD = [
    "",
    f"Well. {CALL}",
    f"{CALL} Please.",
    f"{CALL}{CALL}",
    f"<think>Is it x?{CALL}",
    f"<think>a</think><think>b</think>{CALL}",
    f"<think>a<think>b</think>{CALL}",
    f"Well. <think>a</think>{CALL}",
    f"<think>a</think> So: {CALL}",
    f"{CALL}<tool_call>",
]


@pytest.mark.parametrize("text", GOOD)
def test_one_call_after_one_thought_has_the_form(text: str):
    assert rewards_of("format", make_turn(text=text, action=say("x"))) == [1.0]


@pytest.mark.parametrize("text", BAD)
def test_anything_beside_the_call_spoils_the_form(text: str):
    assert rewards_of("format", make_turn(text=text, action=say("x"))) == [0.0]


def test_a_call_that_is_not_valid_has_no_form():
    assert rewards_of("format", make_turn(text="<tool_call>{}</tool_call>", action=None)) == [0.0]


def test_shaping_pays_discounted_progress_and_takes_it_back_at_the_end():
    """gamma 0.9, progress 0 -> 0.5 -> 0.2 -> end: 0.45; 0.9 * 0.2 - 0.5; -0.2."""
    turns = [make_turn(progress=progress) for progress in (0.5, 0.2, 0.9)]
    np.testing.assert_allclose(rewards_of("potential", *turns), [0.45, -0.32, -0.2], atol=1e-12)


def test_shaping_of_a_single_turn_is_nothing():
    assert rewards_of("potential", make_turn(progress=1.0)) == [0.0]


@given(
    dialogues=st.lists(
        st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=16), min_size=1, max_size=5
    ),
    gamma=st.floats(0.05, 1.0),
)
def test_the_discounted_sum_of_shaping_is_zero_from_the_start_and_minus_the_potential_from_any_turn(
    dialogues: list[list[float]], gamma: float
):
    """Ng et al.: it telescopes, so that no policy gains by it; from turn t on it is -Phi(s_t)."""
    table = make_table([make_trajectory([make_turn(progress=p) for p in dialogue]) for dialogue in dialogues])
    shaping = REWARDS["potential"](table, RewardContext(gammas={"function": gamma}))
    for dialogue in dialogues:
        own, shaping = shaping[: len(dialogue)], shaping[len(dialogue) :]
        discounts = gamma ** np.arange(len(dialogue))
        assert abs(own @ discounts) < 1e-9
        for start in range(1, len(dialogue)):
            rest = own[start:] @ discounts[: len(dialogue) - start]
            assert abs(rest + dialogue[start - 1]) < 1e-9
    assert not len(shaping)


def test_under_another_discount_than_its_own_shaping_would_pay_by_itself():
    """Why gamma must be the learner's: seen with 0.5, progress made and lost again would be worth 1 - 0.5."""
    table = make_table([make_trajectory([make_turn(progress=1.0), make_turn()])])
    undiscounted = REWARDS["potential"](table, RewardContext(gammas={"function": 1.0}))
    assert undiscounted @ [1.0, 0.5] == 0.5
    own = REWARDS["potential"](table, RewardContext(gammas={"function": 0.5}))
    assert own @ [1.0, 0.5] == 0.0


def test_a_rating_stands_on_the_last_turn_and_none_is_nan_on_all():
    table = make_table([make_trajectory([make_turn(), make_turn()]) for _ in range(3)])
    ratings = RewardContext(ratings=[0.7, math.nan, 0.0])
    np.testing.assert_array_equal(REWARDS["judge"](table, ratings), [0.0, 0.7, math.nan, math.nan, 0.0, 0.0])


def test_a_dialogue_without_a_rating_has_no_reward_at_all():
    table = make_table([make_trajectory([turn(reward=0.5), turn(reward=0.5)])])
    scored = with_rewards(table, {"environment": 1.0, "judge": 0.1}, RewardContext(ratings=[math.nan]))
    assert np.isnan(scored["reward"].to_numpy()).all()


@pytest.mark.parametrize("gym", GYMS)
async def test_every_reward_of_a_real_dialogue_is_within_its_bounds(gym: str):
    """All of one: format, tool_call's sum; costs and the like above -1 a turn."""
    task = make_tasks(gym, num=1)[0]
    steps = await play_expert(task)
    turns = [
        make_turn(
            action=say("x"), text=CALL, feedback=step.feedback, reward=step.reward, progress=step.progress
        )
        for step in steps
    ]
    trajectory = make_trajectory(turns, gold=GYMS[gym].gold_actions(task))
    table = to_table(GroupOrder(group_id=0, task_key=task.key, group_size=1, seed=0), [trajectory])
    context = RewardContext(gammas={gym: 1.0}, max_completion_tokens=100, ratings=[1.0])
    parts = {name: reward(table, context) for name, reward in REWARDS.items()}
    assert all(np.isfinite(part).all() and (abs(part) <= 1).all() for part in parts.values())
    assert parts["environment"].sum() == pytest.approx(1.0) == parts["outcome"][-1]
    assert parts["potential"].sum() == pytest.approx(0.0)
    assert parts["tool_call"].sum() == 0.0  # talking is no tool call


def test_no_reward_reads_which_tokens_there_were():
    turns = [make_turn(action=call_of("f", a=1), text=CALL, num_tokens=5)]
    table = make_table([make_trajectory(turns, gold=[call_of("f", a=1)])] * 3)
    at = table.schema.get_field_index("completion_ids")
    others = pa.array([[9, 8, 7, 6, 5]] * 3, table.schema.field(at).type)
    renamed = table.set_column(at, table.schema.field(at), others)
    for name, reward in REWARDS.items():
        np.testing.assert_array_equal(reward(table, CONTEXT), reward(renamed, CONTEXT), err_msg=name)


def test_the_config_knows_every_reward_function_and_refuses_others():
    assert RewardConfig(weights={name: 0.1 for name in REWARDS if name != "judge"}).judge is None
    with pytest.raises(ValueError, match="unknown reward function"):
        RewardConfig(weights={"turns": 1.0})


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf])
def test_a_weight_is_a_finite_number(weight: float):
    with pytest.raises(ValueError, match="must be a finite number"):
        RewardConfig(weights={"turn": weight})
