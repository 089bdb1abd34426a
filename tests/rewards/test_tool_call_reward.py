"""ToolRL's match of calls with gold calls: hand-computed, optimally paired, and paid turn by turn."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.tool_call_reward import match_score, read_call, tool_call_rewards
from simulators.gyms import GYMS
from simulators.message import Action, ToolCall
from tests.fakes import make_tasks
from tests.rewards.judged_dialogues import answer, call_of, make_table, make_trajectory, make_turn, say


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def paid(gold: list[Action], *made: Action | None) -> list[float]:
    """What each turn of a dialogue gets."""
    turns = [make_turn(action=action) for action in made]
    return tool_call_rewards(make_table([make_trajectory(turns, gold=gold)])).tolist()


def test_a_perfect_match_is_one_and_no_call_is_zero():
    gold = [call("f", a=1, b="x"), call("g")]
    assert match_score(gold, list(reversed(gold))) == 1.0
    assert match_score(gold, []) == 0.0
    assert match_score([], gold) == 0.0


@pytest.mark.parametrize(
    ("made", "score"),
    [
        ([call("f", a=1, b=2)], (1 + 1 + 2) / 4),
        ([call("f", a=1, b=3)], (1 + 1 + 1) / 4),  # a wrong value
        ([call("f", a=1)], (1 + 1 / 2 + 1) / 4),  # a missing argument
        ([call("f", a=1, b=2, c=3)], (1 + 2 / 3 + 2) / 4),  # one too many
        ([call("f", c=1)], (1 + 0 + 0) / 4),  # nothing but the name
        ([call("g", a=1, b=2)], 0.0),  # everything but the name
        ([call("f", a=1, b=2), call("g")], (1 / 2 + 1 + 2) / 4),  # another tool beside it
        ([call("f", a=9, b=9), call("f", a=1, b=2)], (1 + 1 + 2) / 4),  # the better of two tries
    ],
)
def test_name_argument_names_and_values_are_credited_apart(made: list[ToolCall], score: float):
    """Gold f(a=1, b=2): 1 for the name, 1 for the names of the arguments, 2 for their values, of 4."""
    assert match_score([call("f", a=1, b=2)], made) == pytest.approx(score)


def test_two_gold_calls_of_one_tool_share_no_call():
    """Gold f(1), f(2), made f(1): 1 for the name and 2 for the pair, of 1 + 2 + 2."""
    assert match_score([call("f", a=1), call("f", a=2)], [call("f", a=1)]) == pytest.approx(3 / 5)


def test_the_best_pairing_is_found_and_not_the_first():
    """Gold f(a=1, b=1), f(a=1, b=2); made f(a=1, b=2), f(a=1, b=3). Taking the first good pair for the first
    gold call would leave (1 + 1) + (1 + 1); the best is (1 + 2) + (1 + 1)."""
    gold = [call("f", a=1, b=1), call("f", a=1, b=2)]
    made = [call("f", a=1, b=2), call("f", a=1, b=3)]
    assert match_score(gold, made) == pytest.approx((1 + 3 + 2) / 7)
    assert match_score(gold, list(reversed(made))) == pytest.approx((1 + 3 + 2) / 7)


CALLS = st.builds(
    ToolCall,
    name=st.sampled_from(["f", "g"]),
    arguments=st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
)


@given(gold=st.lists(CALLS, min_size=1, max_size=4), made=st.lists(CALLS, max_size=4))
def test_no_pairing_is_better_than_the_one_that_is_scored(gold: list[ToolCall], made: list[ToolCall]):
    """Against all pairings, tried one by one; and always within [0, 1]."""

    def worth(wanted: ToolCall, other: ToolCall | None) -> float:
        if other is None or other.name != wanted.name:
            return 0.0
        keys, others = set(wanted.arguments), set(other.arguments)
        names = len(keys & others) / len(keys | others) if keys | others else 1.0
        return names + sum(other.arguments[k] == v for k, v in wanted.arguments.items() if k in others)

    padded = [*made, *[None] * len(gold)]
    best = max(
        sum(worth(wanted, other) for wanted, other in zip(gold, order, strict=True))
        for order in itertools.permutations(padded, len(gold))
    )
    named, called = {c.name for c in gold}, {c.name for c in made}
    most = 1 + len(gold) + sum(len(c.arguments) for c in gold)
    score = match_score(gold, made)
    assert score == pytest.approx((len(named & called) / len(named | called) + best) / most)
    assert 0.0 <= score <= 1.0


def test_each_turn_is_paid_what_it_adds():
    """Gold f(a=1), g(): f alone is (1/2 + 2) / 4, g alone (1/2 + 1) / 4; either completes the other."""
    gold = [call_of("f", a=1), call_of("g")]
    assert paid(gold, say("Hello."), call_of("f", a=1), call_of("g")) == pytest.approx([0, 0.625, 0.375])
    assert paid(gold, call_of("g"), call_of("f", a=1)) == pytest.approx([0.375, 0.625])


def test_a_call_of_another_tool_costs_what_it_takes_from_the_names():
    gold = [call_of("f", a=1)]
    assert paid(gold, call_of("f", a=1), call_of("g")) == pytest.approx([1.0, -1 / 6])


def test_asking_and_searching_are_no_calls_where_the_gold_is_an_answer():
    asked = [say("Is it red?"), Action(choice="search", content="red"), None]
    assert paid([answer("7")], *asked, answer("7")) == pytest.approx([0, 0, 0, 1.0])


def test_without_gold_calls_nothing_is_paid():
    assert paid([], call_of("f", a=1), answer("7")) == [0.0, 0.0]


def test_every_dialogue_of_a_group_is_matched_by_itself():
    gold = [answer("7")]
    right, wrong = make_turn(action=answer("7")), make_turn(action=answer("8"))
    table = make_table([make_trajectory(turns, gold=gold) for turns in ([right], [wrong], [wrong, right])])
    # "8": the name and the argument's name, of 3.
    np.testing.assert_allclose(tool_call_rewards(table), [1.0, 2 / 3, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("content", "same"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', True),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', True),
        ("f a=1", True),
        ('f {"a": 1}', True),
        ('f: {"a": "1"}', True),
        ('{"name": "f", "arguments": {"a": 2}}', False),
        ("f", False),
        ('{"name": "f", "arguments": {"a": 1}', False),
    ],
)
def test_a_call_counts_in_every_form_in_which_it_can_be_made(content: str, same: bool):
    assert (match_score([call("f", a=1)], [read_call("answer", content)]) == 1.0) == same


def test_a_text_is_one_argument_and_its_case_and_spacing_do_not_count():
    assert read_call("answer", "F30") == call("answer", content="F30")
    assert match_score([read_call("answer", "Old  Town")], [read_call("answer", " old town")]) == 1.0
    assert match_score([read_call("answer", "Old Town")], [read_call("search", "Old Town")]) == 0.0


def test_a_json_object_is_arguments_by_name():
    assert read_call("answer", '{"city": "Oslo", "n": 2}') == call("answer", city="Oslo", n=2)
    assert read_call("answer", "[1, 2]") == call("answer", content="[1, 2]")


@given(content=st.text(max_size=80))
def test_whatever_was_written_can_be_read(content: str):
    read = read_call("answer", content)
    assert 0.0 <= match_score([read], [read_call("answer", content)]) <= 1.0
    json.dumps(dict(read.arguments))


@pytest.mark.parametrize("content", ["{" * 5000, '{"a":' * 3000, "9" * 5000, "f a=" + "[" * 4000])
def test_what_is_no_call_at_all_is_a_text_and_no_crash(content: str):
    assert read_call("answer", content).arguments == {"content": content}


@pytest.mark.parametrize("gym", GYMS)
@pytest.mark.parametrize("difficulty", [0, 1, 2])
def test_the_gold_calls_of_every_gym_match_themselves(gym: str, difficulty: int):
    for task in make_tasks(gym, num=3, difficulty=difficulty):
        gold = list(GYMS[gym].gold_actions(task))
        assert sum(paid(gold, *gold)) == pytest.approx(1.0)
        assert sum(paid(gold, say("What?"), answer("no idea"))) < 1.0


def test_taus_calls_match_in_the_short_form_too():
    for task in make_tasks("tau", num=6):
        gold = list(GYMS["tau"].gold_actions(task))
        calls = [json.loads(action.content) for action in gold]
        pairs = [[f"{key}={value}" for key, value in each["arguments"].items()] for each in calls]
        short = [answer(" ".join([each["name"], *own])) for each, own in zip(calls, pairs, strict=True)]
        assert sum(paid(gold, *short)) == pytest.approx(1.0)
