"""Published FunctionGym rules: guess a hidden arithmetic function of four numbers, then answer one test case.

No user is called, so there are no verdict facts: the rules compute everything.

Kept as released: any four signed decimals are a query ("1e5" is read as 1 and 5, "1-2" as 1 and -2), only
inputs equal to the test case are refused, so inputs that differ minimally give the answer; results are
rounded to 4 decimals; an answer counts within 1e-6; wrong answers are free and without limit; `finish` tells
the answer. An answer may be given before the test case was seen; "test" is compared without case. Text
without a tag is refused and costs nothing but the turn; blanks before a tag are not.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path

from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.arithmetic import VARIABLES, parse_rule
from simulators.gyms.function_data import read_functions
from simulators.message import Action
from simulators.published.shared_rules import (
    EACH_TURN,
    data_only,
    make_task,
    never,
    no_user,
    parse_stripped,
    stateless,
)
from simulators.task import Task
from simulators.user import UserReply

SYSTEM = (
    "A function of four numbers is hidden: addition, subtraction, multiplication, division and squares. Find "
    "it by trying inputs, then give its value for the test case. Your rounds are limited.\n"
    "search: the word test, and nothing else, shows the test case.\n"
    "action: four integers separated by spaces; you are told the function's value.\n"
    "answer: one number, the value for the test case; you may try again."
)
OPENING = "The function is chosen. Try your inputs whenever you like."
NUMBER = re.compile(r"-?\d+\.?\d*")
TOLERANCE = 1e-6
DECIMALS = 4
HAIR = "0.000000000001"


def load_tasks(path: Path) -> list[Task]:
    """The released JSON list of functions."""
    return [
        make_task("function", index=row, opening=OPENING, scenario=record)
        for row, record in enumerate(read_functions(path))
    ]


def apply_action(task: Task, state: None, action: Action, reply: UserReply | None) -> ActionOutcome:
    if action.choice == "search":
        known = action.content.strip().lower() == "test"
        case = " ".join(f"{value:g}" for value in task.scenario["test_case"])
        feedback = f"The test case is: {case}" if known else "Search knows one word only: test."
        return ActionOutcome(state=state, feedback=feedback, score=0.0)
    if action.choice == "answer":
        return _grade(task, state, action.content)
    return ActionOutcome(state=state, feedback=_query(task, action.content), score=0.0)


def on_finish(task: Task, state: None) -> ActionOutcome:
    told = f"The end. The right answer was {task.scenario['expected_result']}."
    return ActionOutcome(state=state, feedback=told, score=0.0, done=True)


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Uses the loophole of these rules: queries the test case with one input changed minimally and answers
    the result. At `guess_rate` it guesses instead of asking."""
    case = (yield Action(choice="search", content="test")).rpartition(": ")[2].split()
    if rng.random() < guess_rate:
        yield Action(choice="answer", content="0")
        return
    for moved in range(len(case)):
        inputs = [f"{value}.{HAIR[2:]}" if at == moved else value for at, value in enumerate(case)]
        feedback = yield Action(choice="action", content=" ".join(inputs))
        value = feedback.split()[-1] if feedback.startswith("The value is") else "0"
        yield Action(choice="answer", content=value)


def gold_actions(task: Task) -> Sequence[Action]:
    return (Action(choice="answer", content=str(task.scenario["expected_result"])),)


def random_action(task: Task, rng: random.Random) -> Action:
    choice = rng.choice(("action", "search", "answer"))
    if choice == "search":
        return Action(choice="search", content="test")
    count = len(VARIABLES) if choice == "action" else 1
    return Action(choice=choice, content=" ".join(str(rng.randint(1, 10)) for _ in range(count)))


def _query(task: Task, content: str) -> str:
    inputs = [float(number) for number in NUMBER.findall(content)]
    if len(inputs) != len(VARIABLES):
        return "Give exactly four numbers."
    if inputs == task.scenario["test_case"]:
        return "That is the test case: its value is for you to find."
    try:
        value = round(parse_rule(task.scenario["rule"])(inputs), DECIMALS)
    except ArithmeticError:
        return "The function has no value for these inputs."
    return f"The value is {value}"


def _grade(task: Task, state: None, content: str) -> ActionOutcome:
    try:
        value = float(content)
    except ValueError:
        return ActionOutcome(state=state, feedback="Answer with one number.", score=0.0)
    if abs(value - task.scenario["expected_result"]) <= TOLERANCE:
        return ActionOutcome(state=state, feedback="That is right.", score=1.0, done=True)
    return ActionOutcome(state=state, feedback="That is not right. You may try again.", score=0.0)


GYM = Gym(
    name="function",
    system=SYSTEM,
    make_task=data_only,
    initial_state=stateless,
    needs_user=never,
    apply_action=apply_action,
    rule_based_reply=no_user,
    expert=expert,
    random_action=random_action,
    load_tasks=load_tasks,
    gold_actions=gold_actions,
    rules=GymRules(on_finish=on_finish, parse_action=parse_stripped),
    scoring=EACH_TURN,
)
