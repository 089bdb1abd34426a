"""Hostile texts of policies, models and people: every reader takes bounded time and raises only its own
errors."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.tool_call_reward import LOOKS_LIKE_A_CALL, match_score, read_call
from simulators.env import GymEnv, TurnResult
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.input_limits import MAX_ACTION_CHARS, MAX_DEPTH, MAX_REPLY_CHARS, depth_of, load_json
from simulators.message import CHOICES, parse_action
from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from simulators.task import Task
from simulators.tau.shop_registry import TOOLS
from simulators.tau.tools import MAX_CALL_CHARS, ToolError, list_tools, parse_call
from simulators.user import SimulatorError, UserCall, UserReply, flat_schema
from simulators.users.json_verdict import (
    MAX_CHARS,
    InvalidVerdict,
    has_open_reasoning,
    parse_verdict,
    without_reasoning,
)
from simulators.users.llm_user import AGENT_TALK, FAREWELL, encode
from simulators.users.quality_metrics import UserTurn, count_gauges
from simulators.users.rule_user import RuleUser
from tests.effort import examples
from tests.fakes import make_key
from tests.simulators.hostile import hostile_texts

MOST_S = 0.1
"""CPU seconds. Time that grows with the square of such a length takes longer by far."""
SCHEMA = flat_schema({"holds": {"type": "boolean"}, "say": {"type": "string"}})
SPOKEN: Any = [choice for choice in CHOICES if choice != "finish"]

PUBLISHED_SCENARIOS: dict[str, dict[str, Any]] = {
    "function": {"id": "f", "rule": "a + b * c - d", "test_case": [1, 2, 3, 4], "expected_result": 3.0},
    "intention": {
        "id": "i",
        "category": "travel",
        "task": "Plan a trip",
        "details": [
            {"description": "The budget", "importance": 3, "inquiry": "Which budget?", "options": ["low"]}
        ],
    },
    "persuade": {"id": "p", "claim": "Cats are best.", "argument": "They purr and they are clean animals."},
    "search": {"id": "s", "question": "Who wrote Hamlet?", "answer": "William Shakespeare"},
    "telepathy": {
        "title": "Albert Einstein",
        "description": "A scientist.",
        "target_entity": "Albert Einstein - physicist",
        "category": "real_person",
    },
    "travel": {
        "id": "t",
        "aspects": {
            "hotel": {
                "preferences": [
                    {
                        "id": "P1",
                        "aspect": "hotel",
                        "subcategory": "room_type",
                        "preference": "twin",
                        "hint": "Two.",
                    }
                ],
                "options": [{"id": "H1", "cost": 1}],
                "best_id": "H1",
                "correct_ids": ["H1"],
                "arguments": {"city": "Rome"},
            }
        },
    },
    "turtle": {
        "title": "The soup",
        "surface": "A man eats soup and dies.",
        "bottom": "He had eaten his wife.",
        "statements": ["He ate his wife."],
        "weights": [1.0],
    },
}


def cases() -> list[tuple[str, Gym, Task]]:
    found = [(f"{name}-{level}", gym, level) for name, gym in GYMS.items() for level in (0, 1)]
    cases = [(name, gym, gym.make_task(make_key(gym.name, difficulty=level))) for name, gym, level in found]
    for name, scenario in PUBLISHED_SCENARIOS.items():
        task = make_task(name, index=0, opening="Hello.", scenario=scenario)
        cases.append((f"published-{name}", PUBLISHED[name], task))
    shop = GYMS["tau"].make_task(make_key("tau", difficulty=1))
    return [*cases, ("published-tau", PUBLISHED["tau"], shop)]


CASES = {name: (gym, task) for name, gym, task in cases()}


def in_time(work: Callable[[], object], *, what: str) -> None:
    began = time.process_time()
    work()
    spent = time.process_time() - began
    assert spent < MOST_S, f"{spent:.2f} s for {what[:60]!r}"


@pytest.mark.medium
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("choice", SPOKEN)
async def test_no_action_stops_a_gym_or_breaks_it(name: str, choice: str) -> None:
    gym, task = CASES[name]
    user = RuleUser({gym.name: gym})
    tag = f"[{choice}] "
    for text in hostile_texts(MAX_ACTION_CHARS - len(tag))[::2]:
        env = GymEnv(gym, task=task, user=user)
        await env.reset()
        began = time.process_time()
        try:
            step = await env.step(tag + text)
        except SimulatorError:  # its own way to say that there is no answer
            pass
        else:
            assert len(step.feedback) < 4 * MAX_ACTION_CHARS, "nothing is echoed many times over"
        spent = time.process_time() - began
        assert spent < MOST_S, f"{spent:.2f} s for {text[:60]!r}"


@pytest.mark.parametrize("name", CASES)
async def test_a_longer_action_is_a_lost_turn_and_is_not_read(name: str) -> None:
    gym, task = CASES[name]

    class Unreachable:
        async def reply(self, call: UserCall) -> UserReply:
            raise AssertionError("the user was asked")

    env = GymEnv(gym, task=task, user=Unreachable())
    step: TurnResult = await env.step("[action] " + "a" * MAX_ACTION_CHARS)
    assert step.feedback.startswith(f"Too long: at most {MAX_ACTION_CHARS} characters.")
    assert (step.reward, step.terminated, step.user_reply) == (0.0, False, None)


async def test_a_user_that_talks_without_end_fails_and_the_state_stays() -> None:
    gym, task = CASES["function-0"]
    replies = ["x" * (MAX_REPLY_CHARS + 1), "The value is 3."]

    class Talker:
        async def reply(self, call: UserCall) -> UserReply:
            return UserReply(text=replies.pop(0), simulator="talker")

    env = GymEnv(gym, task=task, user=Talker())
    with pytest.raises(SimulatorError, match="function: a reply of 16001 characters: at most 16000") as error:
        await env.step("[action] 1 2 3 4")
    assert error.value.simulator == "talker"
    assert (await env.step("[action] 1 2 3 4")).feedback == "The value is 3."


def verdict(text: str) -> None:
    try:
        parse_verdict(text, SCHEMA)
    except InvalidVerdict as error:
        assert len(str(error)) < 1000


def tau_call(text: str) -> None:
    try:
        parse_call(text, TOOLS["retail"])
    except ToolError as error:
        assert len(str(error)) < 1000


def leaks(text: str) -> None:
    turn = UserTurn(question=text, reply=UserReply(text=text, facts={"a": 1, "b": 2}))
    count_gauges({"hidden": ["the red a", "a ab b", "1 1 2", "why not", text[:50]]}, [turn, turn])


READERS: dict[str, tuple[Callable[[str], object], int]] = {
    "verdict": (verdict, MAX_CHARS),
    "reasoning": (lambda text: (without_reasoning(text), has_open_reasoning(text)), MAX_REPLY_CHARS),
    "agent talk": (AGENT_TALK.search, MAX_REPLY_CHARS),
    "farewell": (FAREWELL.search, MAX_REPLY_CHARS),
    "action": (parse_action, MAX_ACTION_CHARS),
    "tool call": (tau_call, MAX_CALL_CHARS),
    "looks like a call": (LOOKS_LIKE_A_CALL.match, MAX_ACTION_CHARS),
    "rewarded call": (lambda text: read_call("answer", text), MAX_ACTION_CHARS),
    "gauges": (leaks, MAX_REPLY_CHARS),
    "prompt": (encode, MAX_ACTION_CHARS),
    "depth": (depth_of, 4 * MAX_ACTION_CHARS),
}


@pytest.mark.medium
@pytest.mark.parametrize("reader", READERS)
def test_no_text_stops_a_reader_or_breaks_it(reader: str) -> None:
    read, num_chars = READERS[reader]
    for text in hostile_texts(num_chars):
        in_time(lambda text=text: read(text), what=text)


def test_deep_json_is_refused_before_it_is_parsed_and_never_as_a_recursion_error() -> None:
    for depth in (MAX_DEPTH + 1, 500, 990, 5000):
        for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            with pytest.raises(ValueError, match=r"nested too deeply|characters: at most"):
                load_json(text)
    fits = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert depth_of(fits) == MAX_DEPTH and load_json(fits)


def test_a_call_that_is_deep_costs_its_reward_and_nothing_else() -> None:
    """Parsed, it would be compared by a function that calls itself."""
    gold = read_call("answer", '{"name": "get_user_details", "arguments": {"user_id": "a"}}')
    for depth in (60, 100, 190, 500, 900):
        bomb = "[" * depth + "]" * depth
        for text in (
            f'{{"user_id": {bomb}}}',
            f'{{"name": "get_user_details", "arguments": {{"user_id": {bomb}}}}}',
        ):
            assert 0 <= match_score([gold], [read_call("answer", text)]) < 1


@given(st.text(max_size=200), st.sampled_from(SPOKEN), st.sampled_from(sorted(CASES)))
@settings(max_examples=examples(300), deadline=None)
def test_no_short_text_breaks_a_gym(text: str, choice: str, name: str) -> None:
    gym, task = CASES[name]
    user = RuleUser({gym.name: gym})
    action = gym.rules.parse_action(f"[{choice}] {text}")
    state = gym.initial_state(task)
    reply = None
    if action is not None and action.choice != "finish":
        if gym.needs_user(state, action):
            call = UserCall(
                gym=gym.name,
                scenario=task.scenario,
                question=action.content,
                choice=action.choice,
                view=gym.user_view(state),
            )
            try:
                reply = user.reply_sync(call)
            except SimulatorError:
                return
        gym.apply_action(task, state, action, reply)


ARGUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
@settings(max_examples=examples(200), deadline=None)
def test_no_arguments_break_a_tool_and_those_of_another_form_change_nothing(data: st.DataObject) -> None:
    from simulators.tau.database import Database
    from simulators.tau.tools import TauToolCall, run_call

    domain = data.draw(st.sampled_from(sorted(TOOLS)))
    tools = TOOLS[domain]
    name = data.draw(st.sampled_from(sorted(tools)))
    keys = st.sampled_from([*tools[name].properties, "database", "self", "other"])
    arguments = data.draw(st.dictionaries(keys, ARGUMENTS, max_size=6))
    tables = {table: {} for table in ("users", "orders", "products", "reservations", "flights")}
    database = Database(tables=tables)
    for validated in (True, False):
        after, text = run_call(
            database, TauToolCall(name=name, arguments=arguments), tools, validated=validated
        )
        assert isinstance(text, str) and after.changes == {}


def test_every_tool_of_every_shop_says_its_arguments_in_a_schema() -> None:
    for tools in TOOLS.values():
        assert len(list_tools(tools).splitlines()) == len(tools)
        for tool in tools.values():
            schema = tool.schema()
            assert set(schema["required"]) == set(tool.properties)
            assert all(spec for spec in tool.properties.values())
