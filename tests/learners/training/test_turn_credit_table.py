"""The credit table: advantages of the loss, values, credits and gains, against numbers computed by hand."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actors.trajectory import StopReason
from learners.advantages.config import SpreadConfig, TurnConfig, TurnGaeConfig
from learners.advantages.estimators import ADVANTAGES, CreditRule
from learners.batch.aggregation import select_and_weigh
from learners.batch.samples import TrainingSample
from learners.buffer.credit_columns import CREDITS, KEYS
from learners.config import LearnerConfig
from learners.loss_config import TokenBudgetConfig
from learners.model.policy import Policy
from learners.training.information_gain import INFORMATION_GAINS, InformationGain
from learners.training.step_batch import samples_of_step, trajectories_of
from learners.training.turn_credit_table import credit_table
from tests.learners.model.test_critic import expecting, two_turns
from tests.learners.test_non_finite_rewards import GOOD, group_of, turns_of
from tests.learners.tiny_parts import make_table, make_turn, random_table, scorer_of, tiny_policy

DONE, FAILED = StopReason.TERMINATED, StopReason.ENGINE_ERROR
UNUSED: Any = None


def step_of(
    tables: list[pa.Table], config: LearnerConfig, *, policy: Policy | None = None, renderer: Any = None
) -> tuple[list[TrainingSample], pa.Table]:
    """The samples that a step learns from, and its table."""
    scorer = scorer_of(policy or tiny_policy())
    samples, _, groups = samples_of_step(tables, config=config, renderer=renderer, scorer=scorer)
    samples, _ = select_and_weigh(samples, config=config, gym_shares={}, seed=0)
    trained = trajectories_of(samples)
    return samples, credit_table(groups, credit_of=config.credit_of, trained=trained, loss_advantages={})


def column(table: pa.Table, name: str) -> list[float | None]:
    return table[name].to_pylist()


def by_turn(table: pa.Table) -> dict[tuple[int, int, int], float | None]:
    """Advantages."""
    keys = zip(*(table[name].to_pylist() for name in KEYS.names), strict=True)
    return dict(zip(keys, column(table, "advantage"), strict=True))


def assert_null_but_of(table: pa.Table, learned: set[int]) -> None:
    """Of one group: trajectories that were learned from have advantage and credit in every row, the others
    nothing."""
    for row in table.to_pylist():
        known = {name for name in CREDITS.names if row[name] is not None}
        assert known == ({"advantage", "credit"} if row["trajectory"] in learned else set()), row


@pytest.mark.parametrize("advantage", list(ADVANTAGES))
def test_advantages_equal_those_of_the_loss_bit_for_bit(advantage: Any):
    config = LearnerConfig.model_validate({"advantage": {"type": advantage, "gamma": 0.9}})
    policy = expecting(0.5) if advantage == "turn_gae" else None
    tables = [random_table(group_id=group_id, seed=3) for group_id in (5, 2, 8)]
    samples, table = step_of(tables, config, policy=policy)
    assert table.select(KEYS.names).equals(pa.concat_tables(tables).select(KEYS.names))
    assert table.schema.equals(pa.unify_schemas([KEYS, CREDITS]))
    found = by_turn(table)
    assert None not in found.values()
    for sample in samples:
        for turn, own in zip(sample.turns.tolist(), sample.advantages.tolist(), strict=True):
            assert found.pop((sample.group_id, sample.trajectory, turn)) == own
    assert not found, "every turn of these groups has tokens"


def test_advantages_and_credits_by_hand():
    """R = 1/2 and 0 give A = 1 and -1. With gamma = 1/2 the credits of (0, 1) are 1/2 and 1; over one token
    and two they add up to 5/2: a turn has A c 3 / (5/2). Credits of nothing are zeros."""
    table = group_of(turns_of(1.0), turns_of(0.0))
    config = LearnerConfig(advantage=SpreadConfig(turn_credit="reward_to_go", gamma=0.5))
    _, credits = step_of([table], config)
    assert column(credits, "credit") == [0.5, 1.0, 0.0, 0.0]
    assert column(credits, "advantage") == pytest.approx([0.6, 1.2, 0.0, 0.0])
    assert column(credits, "value") == column(credits, "gain") == [None] * 4


@pytest.mark.parametrize(
    ("advantage", "turn_credit", "expected"),
    [
        ("grpo", "equalized", [1, 1, 1]),
        ("dr_grpo", "naive", [1, 0, 2]),
        ("rloo", "reward_to_go", [1.5, 1, 2]),
        ("grpo", "exponential", [1, 0.5, 1]),
        ("userrl_printed", "exponential", [1, 0.5, 1]),
        ("userrl_compat", "exponential", [1, 0.5, 1.0677]),
        ("turn_mean", "equalized", [1.5, 1, 2]),
        ("turn_loo", "equalized", [1.5, 1, 2]),
        ("gigpo", "equalized", [1.5, 1, 2]),
        ("mt_grpo", "equalized", [1, 0, 2]),
        ("igpo", "equalized", [1, 0, 2]),
        ("turn_gae", "equalized", [1, 0, 2]),
    ],
)
def test_a_turns_credit_by_every_rule(advantage: Any, turn_credit: Any, expected: list[float]):
    """Rewards (1, 0, 2) with gamma = 1/2."""
    rule = CreditRule(advantage=advantage, trajectory_score="sum", turn_credit=turn_credit, gamma=0.5)
    (credits,) = rule.estimator.credit(rule, [np.array([1.0, 0.0, 2.0])])
    assert credits == pytest.approx(expected)


def test_untrained_trajectories_have_no_credits_for_any_reason():
    bad = [turns_of(math.nan), turns_of(0.5, logprob=math.inf), turns_of(0.5, completion=())]
    cut = [FAILED, StopReason.TIME_LIMIT, StopReason.SURPLUS]
    table = group_of(*GOOD, *bad, *[turns_of(1.0)] * 3, ends=[DONE] * 6 + cut)
    assert_null_but_of(step_of([table], LearnerConfig())[1], {0, 1, 2})


def test_a_masked_trajectory_counts_in_the_baseline_and_has_no_credits():
    config = LearnerConfig(truncated="mask", advantage=SpreadConfig(trajectory_score="sum"))
    table = group_of(turns_of(1.0), turns_of(0.0), turns_of(0.5), ends=[DONE, DONE, StopReason.MAX_TURNS])
    _, credits = step_of([table], config)
    assert_null_but_of(credits, {0, 1})
    half = math.sqrt(1.5)  # of three: 1/2 over a deviation of 1 / sqrt(6)
    assert column(credits, "advantage") == pytest.approx([half, half, -half, -half, None, None])


def test_trajectories_beyond_the_token_budget_have_no_credits():
    """Trajectories of three tokens, a budget of four: two of three are taken."""
    config = LearnerConfig(aggregation=TokenBudgetConfig(tokens=4))
    samples, credits = step_of([group_of(*GOOD)], config)
    assert len(samples) == 2
    assert_null_but_of(credits, {sample.trajectory for sample in samples})


def test_the_critics_value_is_in_its_turns_row():
    """V = 1/2, gamma = lambda = 1/2: advantages -1/8 and 1/2, as in test_critic. Before a turn without tokens
    nobody asks, V = 0: its delta is 1, that before it 0 + 0 - 1/2, and 1/4 x 1 is added."""
    silent = [make_turn([1], [2], reward=0.0, forked=True), make_turn([3], [], reward=1.0, forked=False)]
    config = LearnerConfig(advantage=TurnGaeConfig(gamma=0.5, gae_lambda=0.5))
    table = make_table([(two_turns(reward=1.0), DONE), (silent, DONE), (two_turns(reward=0.0), FAILED)])
    _, credits = step_of([table], config, policy=expecting(0.5))
    assert column(credits, "value") == [0.5, 0.5, 0.5, 0.0, None, None]
    assert column(credits, "credit") == [0.0, 1.0, 0.0, 1.0, None, None]
    assert column(credits, "advantage") == pytest.approx([-0.125, 0.5, -0.25, 1.0, None, None])


def test_a_gain_is_included_in_the_credit_and_has_its_own_column(monkeypatch: pytest.MonkeyPatch):
    """Rewards (0, 1) and (0, 0), a gain of 1/4 that counts twice: rewards-to-go (3/2, 1) and (0, 0)."""
    gain = InformationGain(by_turn={(0, 0, 0): 0.25}, num_too_long=0)
    monkeypatch.setitem(INFORMATION_GAINS, "gold_answer", lambda *asked: gain)
    config = LearnerConfig(
        advantage=TurnConfig(type="turn_loo", gamma=1.0),
        information_gain="gold_answer",
        information_gain_weight=2.0,
    )
    table = group_of(turns_of(1.0), turns_of(0.0))
    _, credits = step_of([table], config, renderer="is not asked")
    assert column(credits, "gain") == [0.25, None, None, None]
    assert column(credits, "credit") == [1.5, 1.0, 0.0, 0.0]
    assert column(credits, "advantage") == [1.5, 1.0, -1.5, -1.0]


def test_each_gym_has_its_own_rule():
    table = group_of(turns_of(1.0), turns_of(0.0))
    other = table.set_column(0, "group_id", pa.array([1] * 4))
    other = other.set_column(other.schema.get_field_index("gym"), "gym", pa.array(["tau"] * 4))
    config = LearnerConfig(
        advantage=SpreadConfig(gamma=0.5), by_gym={"tau": TurnConfig(type="turn_loo", gamma=0.5)}
    )
    _, credits = step_of([table, other], config)
    assert column(credits, "credit") == [1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0]
    assert column(credits, "advantage") == [1.0, 1.0, -1.0, -1.0, 0.5, 1.0, -0.5, -1.0]


def test_advantages_changed_by_the_loss_replace_the_groups_advantages():
    table = group_of(turns_of(1.0), turns_of(0.0))
    config = LearnerConfig()
    samples, _, groups = samples_of_step(
        [table], config=config, renderer=None, scorer=scorer_of(tiny_policy())
    )
    in_loss = {(0, 0, 1): 0.75, (0, 1, 0): -1.25}
    trained = trajectories_of(samples)
    credits = credit_table(groups, credit_of=config.credit_of, trained=trained, loss_advantages=in_loss)
    assert column(credits, "advantage") == [1.0, 0.75, -1.25, -1.0]


def test_a_credit_beyond_float32_is_null():
    """Of 1e100 and -1e100 GRPO makes +1 and -1; the rewards themselves have no float32."""
    table = group_of(turns_of(1e100), turns_of(-1e100))
    samples, credits = step_of(
        [table], LearnerConfig(advantage=SpreadConfig(turn_credit="naive", trajectory_score="sum"))
    )
    assert len(samples) == 2
    assert column(credits, "advantage") == pytest.approx([0.0, 1.0, 0.0, -1.0])
    assert column(credits, "credit") == [0.0, None, 0.0, None]


def test_a_step_without_groups_has_a_table_without_rows():
    credits = credit_table([], credit_of=UNUSED, trained=set(), loss_advantages={})
    assert credits.num_rows == 0 and credits.column_names == [*KEYS.names, *CREDITS.names]
