"""The delayed user: distribution of delays, and unchanged replies."""

import asyncio
import time
from statistics import fmean, quantiles
from typing import Any

import pytest
from pydantic import ValidationError

from simulators.config import SimulatorConfig
from simulators.gyms import GYMS
from simulators.user import Failure, SimulatorError, UserCall, UserReply
from simulators.users.delayed_user import DelayedUser
from simulators.users.factory import connect_users
from simulators.users.rule_user import RuleUser
from tests.fakes import ScriptedUser, make_tasks


def ask(seed: int, *, turn: int = 0, question: str = "hm") -> UserCall:
    return UserCall(gym="travel", scenario={}, question=question, seed=seed, history=(("a", "b"),) * turn)


def config_of(**rules: Any) -> SimulatorConfig:
    return SimulatorConfig.model_validate({"users": [{"type": "rules", **rules}]})


def test_delays_are_log_normal_around_their_mean():
    user = DelayedUser(RuleUser(), delay_s=0.2)
    delays = [user.delay_s(ask(seed)) for seed in range(20_000)]
    assert fmean(delays) == pytest.approx(0.2, rel=0.02)
    percentiles = quantiles(delays, n=100)
    # exp(-0.125) = 0.8825 of the mean is the median; exp(-0.125 + 0.5 * 2.3263) = 2.824 the 99th percentile
    assert percentiles[49] == pytest.approx(0.2 * 0.8825, rel=0.02)
    assert percentiles[98] == pytest.approx(0.2 * 2.824, rel=0.05)


def test_the_same_call_always_takes_as_long_and_another_one_does_not():
    one, other = DelayedUser(RuleUser(), delay_s=0.2), DelayedUser(RuleUser(), delay_s=0.2)
    assert one.delay_s(ask(3, turn=2)) == other.delay_s(ask(3, turn=2))
    calls = [ask(3), ask(4), ask(3, turn=1), ask(3, question="well")]
    assert len({one.delay_s(call) for call in calls}) == 4


async def test_a_slow_user_says_the_same_later():
    (task,) = make_tasks("travel", num=1)
    call = UserCall(gym="travel", scenario=task.scenario, question="Which wing seats do you like?", seed=1)
    quick, slow = RuleUser(), DelayedUser(RuleUser(), delay_s=0.05)
    began = time.monotonic()
    reply, expected = await slow.reply(call), await quick.reply(call)
    assert time.monotonic() - began >= slow.delay_s(call)
    assert (reply.text, reply.facts) == (expected.text, expected.facts)
    assert reply.latency_s >= slow.delay_s(call)


@pytest.mark.medium
async def test_thousands_wait_at_the_same_time():
    class Quick:
        async def reply(self, call: UserCall) -> UserReply:
            return UserReply(text="yes")

    slow = DelayedUser(Quick(), delay_s=0.1)
    calls = [ask(seed) for seed in range(5000)]
    longest = max(slow.delay_s(call) for call in calls)
    began = time.monotonic()
    await asyncio.gather(*(slow.reply(call) for call in calls))
    took = time.monotonic() - began
    assert longest <= took < longest + 20.0, "one after the other would take 500 s"


async def test_a_failure_passes_through():
    failing = ScriptedUser(fails_on=frozenset({0}), error=SimulatorError("gone", Failure.TIMEOUT))
    with pytest.raises(SimulatorError, match="gone"):
        await DelayedUser(failing, delay_s=0.001).reply(ask(0))


def test_a_recipe_makes_rules_slow_and_by_default_leaves_them_as_they_are():
    rules = RuleUser()
    slow = connect_users(config_of(delay_s=0.2), rules=rules, gyms=GYMS)
    assert isinstance(slow, DelayedUser) and 0 < slow.delay_s(ask(0)) < 2
    assert connect_users(config_of(), rules=rules, gyms=GYMS) is rules
    named = connect_users(config_of(delay_s=0.2, weight=1.0), rules=rules, gyms=GYMS, names=["rules"])
    assert isinstance(named, DelayedUser)


@pytest.mark.parametrize("delay_s", [-0.1, float("inf"), float("nan")])
def test_a_delay_that_is_none_is_refused(delay_s: float):
    with pytest.raises(ValidationError, match="delay_s"):
        config_of(delay_s=delay_s)
