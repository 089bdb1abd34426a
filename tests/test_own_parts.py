"""Parts from outside the project (user, reward, loss, estimator) work as documented, alone and in a run."""

import asyncio
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.config.recipe import BadInput, validate
from cluster.config.run_config import RunConfig, load
from cluster.driver.algorithm import GRPO
from examples.own_advantage import above_median
from examples.own_loss import topr
from examples.own_reward import one_question
from examples.own_user import HurriedUser
from learners.advantages.estimators import CreditRule, GroupTurns
from learners.loss_config import CustomLossConfig
from learners.losses.policy_loss import LossTokens, policy_loss
from rewards.reward_functions import RewardContext
from rewards.scorer import with_rewards
from simulators.config import CustomUserConfig, SimulatorConfig
from simulators.gyms import GYMS
from simulators.user import UserCall
from simulators.users.factory import connect_users
from simulators.users.rule_user import RuleUser
from tests.cluster.driver.test_algorithm import tiny_config
from tests.docs_pages import ROOT
from tests.fakes import make_tasks

RECIPE = re.search(r"```toml\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL)
LOSS = CustomLossConfig(function="examples.own_loss:topr", options={"most": 1.0})


def recipe(folder: Path) -> RunConfig:
    """The recipe of docs/extend.md."""
    assert RECIPE is not None
    path = folder / "recipe.toml"
    path.write_text(RECIPE[1])
    return load(path)


def test_the_reward_is_one_for_at_most_one_question() -> None:
    table = pa.table(
        {
            "choice": ["action", "action", "answer"],
            "content": ["Which seat?", "Which seat? Which meal?", "aisle"],
        }
    )
    assert one_question(table, RewardContext()).tolist() == [1.0, 0.0, 0.0]


def test_the_loss_bounds_only_the_weights_of_bad_actions() -> None:
    """Ratios 2, 2 and 1/2 with advantages 1, -1, -1: weights 1, 1 (clipped) and 1/2."""
    behavior = torch.log(torch.tensor([0.2, 0.2, 0.4]))
    policy = torch.log(torch.tensor([0.4, 0.4, 0.2])).requires_grad_()
    tokens = LossTokens(
        policy_logprobs=policy,
        behavior_logprobs=behavior,
        advantages=torch.tensor([1.0, -1.0, -1.0]),
        turns=torch.zeros(3, dtype=torch.int64),
        sequences=torch.zeros(3, dtype=torch.int64),
    )
    assert topr(tokens, LOSS).clipped.tolist() == [False, True, False]
    policy_loss(tokens, weights=torch.ones(3), num_tokens=1, config=LOSS).loss.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-1.0, 1.0, 0.5])


def test_the_estimator_subtracts_the_median() -> None:
    """Scores 1, 0 and 0.25: the median is 0.25."""
    rewards = [np.array([0.5, 0.5]), np.array([0.0]), np.array([0.25])]
    rule = CreditRule(
        advantage="custom", function="examples.own_advantage:above_median", trajectory_score="sum", gamma=1.0
    )
    expected = [[0.75, 0.75], [-0.25], [0.0]]
    found = above_median(GroupTurns(rewards=rewards, num_tokens=[], states=[]), rule)
    assert [row.tolist() for row in found] == expected
    assert [row.tolist() for row in rule.advantages(rewards)] == expected


def test_the_user_replies_under_its_name_with_the_facts_of_the_rules() -> None:
    own = CustomUserConfig(name="hurried", factory="examples.own_user:HurriedUser")
    user = connect_users(SimulatorConfig(users=(own,)), rules=RuleUser(), gyms=GYMS)
    assert isinstance(user, HurriedUser)
    (task,) = make_tasks("telepathy", num=1)
    call = UserCall(gym="telepathy", scenario=task.scenario, question="Is it an animal?")
    hurried, plain = asyncio.run(user.reply(call)), asyncio.run(RuleUser().reply(call))
    assert (hurried.simulator, hurried.facts) == ("hurried", plain.facts)
    assert hurried.text == plain.text.lower().removesuffix(".")


def test_the_pages_recipe_names_four_modules_that_travel_with_a_job(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    assert set(config.plug_in_modules.values()) == {
        f"examples.own_{part}" for part in ("user", "reward", "loss", "advantage")
    }
    path = tmp_path / "again.toml"
    path.write_text(config.to_toml())
    assert load(path) == config


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ({"reward": {"weights": {"polite": 1.0}}}, "'polite': unknown reward function: the known ones are"),
        ({"reward": {"weights": {"nowhere:polite": 1.0}}}, "nowhere: no such module"),
        ({"reward": {"weights": {"a:b:c": 1.0}}}, "'a:b:c': not a reference: write module:function"),
        (
            {"learner": {"loss": {"type": "custom", "function": "examples.own_loss:tapir"}}},
            "examples.own_loss has no function tapir: correct the name",
        ),
        ({"learner": {"advantage": "custom"}}, "learner.advantage.function: missing"),
        (
            {"simulator": {"users": [{"type": "custom", "name": "x", "factory": "own_user"}]}},
            "'own_user': not a reference",
        ),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(section: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=re.escape(line)) as refused:
        validate(section, model=RunConfig)
    assert "\n" not in str(refused.value)


def test_a_reward_of_the_wrong_length_is_named() -> None:
    table = pa.table({"failed": [False, False], "env_reward": [0.0, 1.0]})
    with pytest.raises(ValueError, match=r"^tests.test_own_parts:too_few: returned \(1,\) numbers"):
        with_rewards(table, {"tests.test_own_parts:too_few": 1.0}, RewardContext())


def too_few(table: pa.Table, context: RewardContext) -> np.ndarray:
    return np.zeros(1)


def discounted(rewards: pd.Series) -> float:
    """The page's gamma is 0.9."""
    return float(rewards.to_numpy() @ 0.9 ** np.arange(len(rewards)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_has_all_four(tmp_path: Path) -> None:
    own = recipe(tmp_path)
    config = tiny_config(tmp_path, name="own").environment(
        reward={"weights": own.reward.weights},
        simulator={"users": [user.model_dump() for user in own.simulator.users]},
    )
    config.training(learner={"loss": own.learner.loss, "advantage": own.learner.advantage})
    algorithm = config.build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        algorithm.train()
        folder = algorithm.folder.trajectories
    finally:
        algorithm.stop()
    table = pq.read_table(folder / "step-00001.parquet")
    reward = table["env_reward"].to_numpy() + 0.05 * one_question(table, RewardContext())
    rows = table.to_pandas()
    assert "hurried" in set(rows.simulator) and set(rows.simulator) <= {"hurried", ""}
    assert rows.reward.to_numpy() == pytest.approx(np.where(rows.failed, np.nan, reward), nan_ok=True)
    assert (rows.reward > rows.env_reward).any()
    num_trained = 0
    for _, group in rows[~rows.failed].groupby("group_id"):
        scores = group.groupby("trajectory").reward.agg(discounted)
        trained = group[group.outcome == "trained"]
        expected = trained.trajectory.map(scores - scores.median())
        assert trained.advantage.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
        num_trained += len(trained)
    assert num_trained > 0
