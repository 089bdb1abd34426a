"""Quality metrics: hand-counted dialogues; faulty users are detected, honest ones are not."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from simulators.config import GaugeLimits
from simulators.env import GymEnv
from simulators.gyms import GYMS
from simulators.persona import PLAIN, Persona, PersonaMix, draw_persona
from simulators.task import Task
from simulators.user import User, UserCall, UserReply
from simulators.users.persona_style import PUT_OFF, persona_aware
from simulators.users.quality_metrics import (
    NO_COUNTS,
    GaugeCounts,
    UserTurn,
    alarms,
    count_gauges,
    gauge_shares,
)
from simulators.users.rule_user import RuleUser
from tests.fakes import make_tasks

SCENARIO: dict[str, Any] = {"wishes": {"cabin": "first", "seat": "window", "city": "San Marino"}, "id": 7}
LIMITS = GaugeLimits()


def turn(question: str, text: str, **facts: object) -> UserTurn:
    return UserTurn(question=question, reply=UserReply(text=text, facts=facts))


async def dialogue(task: Task, user: User, *, persona: Persona = PLAIN) -> list[UserTurn]:
    """What the gym's expert asks this user and is told."""
    env = GymEnv(GYMS[task.key.gym], task=task, user=user, persona=persona)
    expert = persona_aware(GYMS[task.key.gym].expert(task.opening, random.Random(0), 0.0))
    action, turns = next(expert), []
    while True:
        step = await env.step(str(action))
        if step.user_reply is not None:
            turns.append(UserTurn(question=action.content, reply=step.user_reply))
        if step.terminated or step.truncated:
            return turns
        try:
            action = expert.send(step.feedback)
        except StopIteration:  # a spoilt user leaves it with nothing to say
            return turns


class Spoilt:
    """The rule-based user of a gym, spoilt: every reply goes through `spoil`."""

    def __init__(self, spoil: Callable[[UserCall, UserReply], UserReply]):
        self._spoil = spoil

    async def reply(self, call: UserCall) -> UserReply:
        return self._spoil(call, RuleUser().reply_sync(call))


@pytest.mark.medium
@pytest.mark.parametrize("mix", ["plain", "varied"])
@pytest.mark.parametrize("gym", GYMS)
async def test_an_honest_user_of_any_gym_neither_leaks_nor_contradicts_itself(gym: str, mix: PersonaMix):
    total = NO_COUNTS
    for difficulty in (0, 1, 2):
        for task in make_tasks(gym, num=20, difficulty=difficulty):
            persona = draw_persona(mix, seed=task.key.task_id)
            total += count_gauges(task.scenario, await dialogue(task, RuleUser(), persona=persona))
    assert (total.dialogues, total.left) == (60, 0)
    assert (total.leaks, total.contradictions) == (0, 0)
    assert alarms(gauge_shares([(gym, total)]), replace_limits(front_loading=1.0)) == []


def replace_limits(**limits: float) -> GaugeLimits:
    return GaugeLimits.model_validate(limits)


def test_counts_of_a_dialogue_by_hand():
    turns = [
        turn("Is it first class?", "Yes.", slot="cabin", wish="first"),
        turn("Which seat?", "I want window, please.", slot="seat", wish="window"),
        turn("Which meal?", "I want whatever they have.", slot="meal", wish=None),
        turn("Which view?", "I want whatever they have.", slot="view", wish=None),
        turn("And what else?", "Please ask about one slot."),
        turn("Anything else?", "Please ask about one slot."),
        turn("Shall we take first class?", "No.", slot="cabin", wish="first"),
        turn("Which seat?", "I want window, please.", slot="seat", wish="window"),
    ]
    assert count_gauges(SCENARIO, turns) == GaugeCounts(
        dialogues=1, left=0, replies=8, leaks=0,
        facts=12, first_facts=2,  # six replies of two values each
        proposals=2, assents=1,  # of the first and the seventh
        sentences=4, repeats=1,  # the second "whatever"; the same question may get the same answer
        told_again=2, contradictions=0,  # the cabin and the seat
    )  # fmt: skip


def test_a_hidden_value_without_a_question_for_it_is_a_leak():
    leak = turn("Which cabin?", "I want first, and a window seat.", slot="cabin", wish="first")
    assert count_gauges(SCENARIO, [leak]).leaks == 1
    assert count_gauges(SCENARIO, [turn("Is it the window?", "Yes, the window.")]).leaks == 0
    assert count_gauges(SCENARIO, [leak, turn("Hm?", "The window, I said.")]).leaks == 1
    assert count_gauges(SCENARIO, [turn("Hello!", "I am off to San Marino.")]).leaks == 1
    assert count_gauges(SCENARIO, [turn("Hello!", "San Diego is nice.")]).leaks == 0
    changed = UserReply(
        text="I want window. No, wait: I want first.", facts={"wish": "first"}, decoy="window"
    )
    assert count_gauges(SCENARIO, [UserTurn(question="Which cabin?", reply=changed)]).leaks == 0


def test_telling_all_at_once_is_front_loading():
    first = turn("Hi", "All of it.", cabin="first", seat="window", meals=["lunch", "dinner"])
    later = turn("And?", "Noon.", time="noon")
    shares = gauge_shares([("eager", count_gauges({}, [first, later]))])
    assert shares["users/eager/front_loading"] == 4 / 5
    assert shares["users/eager/front_loading/num_cases"] == 5
    assert "users/eager/front_loading" not in gauge_shares([("eager", count_gauges({}, [first]))])


def test_telling_a_property_otherwise_is_a_contradiction_however_it_is_asked():
    asked = [
        turn("Which seat?", "Window.", slot="seat", wish="window"),
        turn("Where will you sit?", "Aisle.", slot="seat", wish="aisle"),
        turn("Which cabin?", "First.", slot="cabin", wish="first"),
        turn("And the cabin?", "First.", slot="cabin", wish="first"),
    ]
    counted = count_gauges({}, asked)
    assert (counted.told_again, counted.contradictions) == (2, 1)
    put_off = [turn("Which seat?", PUT_OFF), turn("Which seat?", "Window.", slot="seat", wish="window")]
    assert count_gauges({}, put_off).told_again == 0


def test_another_verdict_on_a_new_text_is_no_contradiction():
    answers = [turn(text, "Hm.", reason=1, verdict=verdict) for text, verdict in (("a", "no"), ("b", "yes"))]
    assert count_gauges({}, answers).contradictions == 0
    assert count_gauges({}, [*answers, turn("a", "Right.", reason=1, verdict="yes")]).contradictions == 1


def test_small_talk_corrections_and_put_offs_are_no_assent_and_no_repetition():
    turns = [
        turn("Is it red?", "Yes. No, wait: No. — By the way, the weather here is awful."),
        turn("Is it blue?", PUT_OFF),
        turn("Is it big?", PUT_OFF),
    ]
    counted = count_gauges({}, turns)
    assert (counted.proposals, counted.assents, counted.sentences, counted.repeats) == (1, 0, 0, 0)


@pytest.mark.parametrize("gym", ["telepathy", "travel"])
async def test_users_who_leak_agree_or_repeat_themselves_are_caught(gym: str):
    def leak(call: UserCall, reply: UserReply) -> UserReply:
        values = call.scenario.get("wishes") or call.scenario["cards"][call.scenario["target"]]
        return replace(reply, text=f"{reply.text} You know, {values}.")

    def agree(call: UserCall, reply: UserReply) -> UserReply:
        return replace(reply, text="Yes, absolutely.")

    def repeat(call: UserCall, reply: UserReply) -> UserReply:
        return replace(reply, text="I have told you all that I know.")

    caught: dict[str, set[str]] = {}
    for spoil in (leak, agree, repeat):
        counts = [
            (
                spoil.__name__,
                count_gauges(task.scenario, await dialogue(task, Spoilt(spoil)), user_left=False),
            )
            for task in make_tasks(gym, num=30, difficulty=1)
        ]
        lines = alarms(gauge_shares(counts), replace_limits(front_loading=1.0))
        caught[spoil.__name__] = {line.partition("=")[0].rpartition("/")[2] for line in lines}
    assert "goal_leaks" in caught["leak"]
    assert caught["repeat"] == {"repetition"}
    assert caught["agree"] == ({"agreeableness"} if gym == "telepathy" else set())


async def test_a_user_who_contradicts_itself_is_caught():
    class Wavering:
        async def reply(self, call: UserCall) -> UserReply:
            holds = len(call.history) % 2 == 0
            return UserReply(text="Yes." if holds else "No.", facts={"property": "red", "holds": holds})

    counts = []
    for task in make_tasks("telepathy", num=25):
        env, turns = GymEnv(GYMS["telepathy"], task=task, user=Wavering()), []
        for _ in range(2):
            step = await env.step("[action] Is it red?")
            assert step.user_reply is not None
            turns.append(UserTurn(question="Is it red?", reply=step.user_reply))
        counts.append(("wavering", count_gauges(task.scenario, turns)))
    assert alarms(gauge_shares(counts), LIMITS) == ["users/wavering/contradictions=1.00 of 25 is above 0.02"]


def test_users_who_leave_are_counted_by_simulator():
    counts = [("llm", count_gauges({}, [], user_left=at < 6)) for at in range(30)] + [
        ("rules", count_gauges({}, []))
    ] * 30
    shares = gauge_shares(counts)
    assert (shares["users/llm/early_stop"], shares["users/rules/early_stop"]) == (0.2, 0.0)
    assert alarms(shares, LIMITS) == ["users/llm/early_stop=0.20 of 30 is above 0.1"]
    assert alarms(gauge_shares(counts[:10]), LIMITS) == [], "ten cases are too few"


def test_adding_counts_is_adding_fields():
    one = count_gauges(SCENARIO, [turn("Which seat?", "I want window.", wish="window")])
    assert one + NO_COUNTS == one
    assert (one + one).replies == 2 and sum([one] * 3, NO_COUNTS).dialogues == 3


async def test_counting_costs_microseconds_a_turn():
    played = [(task, await dialogue(task, RuleUser())) for task in make_tasks("travel", num=20, difficulty=2)]
    began = time.perf_counter()
    counted = sum((count_gauges(task.scenario, turns) for task, turns in played), NO_COUNTS)
    assert (time.perf_counter() - began) / counted.replies < 100e-6  # 20e-6 on an idle core
