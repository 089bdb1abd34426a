"""The human user in the terminal: the protocol of a model, a menu with validation, no blocked event loop."""

import asyncio
import time
from collections.abc import Callable

import pytest

from simulators.gyms import GYMS
from simulators.user import Failure, SimulatorError, UserCall
from simulators.users.human_user import HumanUser, parse_line, printable
from simulators.users.rule_user import RuleUser
from tests.fakes import make_tasks

SCENARIO = make_tasks("telepathy", num=1)[0].scenario
CALL = UserCall(gym="telepathy", scenario=SCENARIO, question="Is it a bird?")


def typed(*lines: str) -> Callable[[str], str]:
    left = iter(lines)

    def read(prompt: str) -> str:
        line = next(left, None)
        if line is None:
            raise EOFError
        return line

    return read


def human(*lines: str, shown: list[str] | None = None) -> HumanUser:
    show = [] if shown is None else shown
    return HumanUser(GYMS, rules=RuleUser(), read_line=typed(*lines), show=show.append)


async def test_a_person_picks_the_verdict_and_the_gym_replies():
    shown: list[str] = []
    reply = await human("bird", shown=shown).reply(CALL)
    expected = await RuleUser().reply(CALL)
    assert (reply.text, reply.facts, reply.simulator) == (expected.text, expected.facts, "human")
    text = "\n".join(shown)
    assert SCENARIO["target"] in text and "Is it a bird?" in text and reply.text in text


async def test_a_line_that_is_not_on_the_menu_is_asked_for_again():
    shown: list[str] = []
    reply = await human("0", "999", "unicorn", "bird", shown=shown).reply(CALL)
    assert reply.facts and sum("is not on the menu" in line for line in shown) == 3


@pytest.mark.parametrize(
    ("lines", "failure"), [((), Failure.USER_LEFT), (("?",) * 5, Failure.INVALID_VERDICT)]
)
async def test_a_person_who_leaves_or_types_nonsense_is_a_failure(lines: tuple[str, ...], failure: Failure):
    with pytest.raises(SimulatorError) as error:
        await human(*lines).reply(CALL)
    assert error.value.failure is failure and error.value.simulator == "human"


async def test_reading_does_not_block_the_loop_and_ends_in_time():
    def slow(prompt: str) -> str:
        time.sleep(0.3)
        return "bird"

    user = HumanUser(GYMS, rules=RuleUser(), read_line=slow, show=lambda text: None, timeout_s=0.1)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(SimulatorError) as error:
        await user.reply(CALL)
    ticking.cancel()
    assert error.value.failure is Failure.TIMEOUT and ticks >= 5


async def test_a_gym_without_an_llm_form_needs_no_person():
    call = UserCall(gym="function", scenario=make_tasks("function", num=1)[0].scenario, question="1 2 3 4")
    assert (await human().reply(call)).simulator == "rules"


@pytest.mark.parametrize(
    ("line", "spec", "value"),
    [
        ("2", {"enum": ["a", "b"]}, "b"),
        ("B", {"enum": ["a", "b"]}, "b"),
        ("1", {"type": "boolean"}, True),
        ("no", {"type": "boolean"}, False),
        ("none", {"enum": ["a", None]}, None),
        ("7", {"type": "integer", "maximum": 9}, 7),
        ("0.5", {"type": "number"}, 0.5),
        ("hello", {"type": "string", "maxLength": 5}, "hello"),
    ],
)
def test_a_line_means_a_value(line: str, spec: dict[str, object], value: object):
    parsed = parse_line(line, spec)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("line", "spec"),
    [
        ("3", {"enum": ["a", "b"]}),
        ("", {"type": "boolean"}),
        ("ten", {"type": "integer"}),
        ("10", {"type": "integer", "maximum": 9}),
        ("hello!", {"type": "string", "maxLength": 5}),
    ],
)
def test_a_line_that_fits_nothing_is_refused_with_its_cure(line: str, spec: dict[str, object]):
    with pytest.raises(ValueError, match=r": type (a number|one|another)"):
        parse_line(line, spec)


def test_the_agents_text_cannot_steer_the_terminal():
    assert printable("a\x1b[2Jb\r\x07\u202ec\nd") == "a[2Jbc\nd"
