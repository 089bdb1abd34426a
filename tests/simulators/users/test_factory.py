"""The factory of users: valid recipes, the choice of a user per dialogue, and names."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from simulators.config import ReplayConfig, SimulatorConfig
from simulators.gyms import GYMS
from simulators.user import User, UserCall, UserReply
from simulators.users.factory import chat_config, connect_users
from simulators.users.llm_user import LlmUser
from simulators.users.mixed_user import MixedUser
from simulators.users.rule_user import RuleUser


@dataclass
class Named:
    """Answers with its name."""

    name: str

    async def reply(self, call: UserCall) -> UserReply:
        return UserReply(text=self.name)


def ask(seed: int, *, turn: int = 0) -> UserCall:
    return UserCall(gym="travel", scenario={}, question="hm", seed=seed, history=(("a", "b"),) * turn)


def config_of(*users: dict[str, Any]) -> SimulatorConfig:
    return SimulatorConfig.model_validate({"users": users})


def connect(config: SimulatorConfig, **settings: Any) -> User:
    return connect_users(config, rules=RuleUser(), gyms=GYMS, **settings)


ENDPOINT = {
    "type": "endpoint",
    "name": "far",
    "base_url": "http://127.0.0.1:9/v1",
    "model": "m",
    "api_key_env": "",
}
HOSTED = {"type": "llm", "name": "near", "model": "Qwen/Qwen3-0.6B", "weight": 0.0}


async def test_one_user_plays_a_dialogue_from_beginning_to_end_and_the_mix_follows_the_weights():
    mix = MixedUser({"a": Named("a"), "b": Named("b")}, weights={"a": 3.0, "b": 1.0})
    first = [(await mix.reply(ask(seed))).text for seed in range(2000)]
    later = [(await mix.reply(ask(seed, turn=5))).text for seed in range(2000)]
    assert first == later
    assert Counter(first)["b"] == pytest.approx(500, abs=80)


async def test_the_order_of_users_in_a_recipe_changes_nothing():
    one = MixedUser({"a": Named("a"), "b": Named("b")}, weights={"a": 1.0, "b": 1.0})
    two = MixedUser({"b": Named("b"), "a": Named("a")}, weights={"b": 1.0, "a": 1.0})
    assert [one.pick(ask(seed)) for seed in range(100)] == [two.pick(ask(seed)) for seed in range(100)]


def test_a_user_of_no_weight_never_plays():
    mix = MixedUser({"a": Named("a"), "b": Named("b")}, weights={"a": 0.0, "b": 1.0})
    assert {mix.pick(ask(seed)) for seed in range(200)} == {"b"}


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}, {"b": 1.0}, {}])
def test_a_mix_without_a_player_is_refused(weights: dict[str, float]):
    with pytest.raises(ValueError, match="weights"):
        MixedUser({"a": Named("a")}, weights=weights)


def test_the_default_is_the_rule_based_user_alone():
    rules = RuleUser()
    assert connect_users(SimulatorConfig(), rules=rules, gyms=GYMS) is rules


def test_a_recipe_mixes_kinds_and_keeps_held_out_ones_for_their_name():
    config = config_of({"type": "rules", "weight": 2.0}, ENDPOINT, HOSTED)
    mix = connect(config)
    assert isinstance(mix, MixedUser)
    assert {mix.pick(ask(seed)) for seed in range(300)} == {"rules", "far"}
    with pytest.raises(ValueError, match="'near': its model is not hosted"):
        connect(config, names=["near"])
    assert isinstance(connect(config, names=["near"], llm_urls={"near": "http://127.0.0.1:9/v1"}), LlmUser)
    both = connect(config, names=["far", "rules"])
    assert isinstance(both, MixedUser)
    picked = Counter(both.pick(ask(seed)) for seed in range(1000))
    assert picked["far"] == pytest.approx(500, abs=80)


def test_rules_can_always_be_named():
    assert isinstance(connect(config_of(ENDPOINT), names=["rules"]), RuleUser)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(
        ValueError, match=r"'fra' is not known: did you mean 'far'\? The simulators are rules, far"
    ):
        connect(config_of(ENDPOINT), names=["fra"])
    with pytest.raises(ValueError, match="name at least one"):
        connect(config_of(ENDPOINT), names=[])


def test_processes_share_a_runs_budget_and_concurrency():
    user = config_of({**ENDPOINT, "max_calls": 10, "max_total_tokens": 2, "max_concurrency": 10}).users[0]
    assert user.type == "endpoint"
    chat = chat_config(user, num_processes=4)
    assert (chat.max_concurrency, chat.max_calls, chat.max_total_tokens) == (3, 2, 1)
    assert chat_config(user).max_calls == 10


def test_a_missing_key_is_refused_when_users_are_connected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"OPENAI_API_KEY.*not set"):
        connect(config_of({**ENDPOINT, "api_key_env": "OPENAI_API_KEY"}))


@pytest.mark.parametrize(
    ("users", "rule"),
    [
        ((), "no user has a weight above 0"),
        (({"type": "rules", "weight": 0},), "no user has a weight above 0"),
        ((ENDPOINT, ENDPOINT), "two users are named 'far'"),
        (({**ENDPOINT, "name": "rules"},), "only the rule-based user is named 'rules'"),
        (({"type": "rules", "name": "easy"},), "always named 'rules'"),
        (({**ENDPOINT, "weight": -1},), "greater than or equal to 0"),
        (({**ENDPOINT, "weight": float("inf")},), "finite"),
        (({**ENDPOINT, "name": "a b"},), "stands in URLs"),
        (({**ENDPOINT, "key": "sk-1"},), "Extra inputs"),
        (({**HOSTED, "num_replicas": 3, "max_replicas": 2},), "max_replicas=2 is less than num_replicas=3"),
        (({"type": "replay", "name": "r", "path": "p", "record": "q"},), "recorded already"),
        (({"type": "oracle", "name": "o"},), "rules"),
    ],
)
def test_what_a_recipe_may_not_say(users: tuple[dict[str, Any], ...], rule: str):
    with pytest.raises(ValidationError) as error:
        config_of(*users)
    assert rule in str(error.value) and "sk-1" not in str(error.value)


@pytest.mark.parametrize(
    "search",
    [
        {"url": "https://host/search?key=hunter2"},
        {"url": "https://me:hunter2@host/search"},
        {"url": "host/search"},
        {"url": "https://host/search", "api_key_env": "hunter2-hunter2"},
    ],
)
def test_a_search_endpoint_holds_no_secret(search: dict[str, str]):
    with pytest.raises(ValidationError) as error:
        SimulatorConfig.model_validate({"web_search": search})
    assert "hunter2" not in str(error.value)


def test_folders_of_a_recipe_are_absolute_for_processes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    users = [{"type": "rules", "record": "r"}, {"type": "replay", "name": "again", "path": "r"}]
    rules, again = SimulatorConfig.model_validate({"users": users}).users
    assert isinstance(again, ReplayConfig)
    assert rules.record == again.path == str(tmp_path / "r")


def test_a_run_hosts_the_models_that_play():
    config = config_of(ENDPOINT, HOSTED, {**HOSTED, "name": "next", "weight": 1.0})
    assert [user.name for user in config.llms()] == ["next"]
