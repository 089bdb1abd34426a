"""Function gym: find a hidden function of four integers by asking for its values, then pass an exam on three
unseen inputs.

The user holds the function. Levels: 0 one variable and a constant; 1 two weighted variables and a constant; 2
all four weighted; 3 as 2 with one quadratic term. Splits are disjoint by function. Once the exam is shown,
queries are refused, so no exam input can be approached by queries; the exam allows three attempts, each worth
half of the one before it."""

import random
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymScoring
from simulators.gyms.function_data import load_tasks, value_of
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import UserCall, UserReply

SYSTEM = (
    "Find the hidden function of four integers a b c d. "
    "action: four integers, to ask for its value. "
    "search: test, to see the three exam inputs; then no more questions. "
    "answer: the three exam values."
)
OPENING = "I hold a function: {family}. Ask me for its values."
FAMILIES = (
    "one of the four plus a constant from 10 to 39",
    "two of the four with weights, plus a constant",
    "all four with weights, plus a constant",
    "all four with weights, plus a constant and one product of two of them",
)
QUERY_LIMIT = 999
"""Queries are integers in [-QUERY_LIMIT, QUERY_LIMIT]."""
EXAM_SIZE = 3
ATTEMPT_WORTH = (1.0, 0.5, 0.25)
VARIABLES = "abcd"
HUNDREDS = (100, 200, 300, 400)
STAIRS = (1, 2, 3, 4)
STEEP = (70, 67, 56, 43)
"""The expert's probes besides zero and the unit vectors."""

Term = tuple[int, tuple[int, ...]]
"""(coefficient, indices of the variables multiplied)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    exam_seen: bool = False
    num_attempts: int = 0
    score: float = 0.0


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    terms = _draw_terms(rng, key.difficulty)
    while split_of("function " + describe(terms)) != key.split:
        terms = _draw_terms(rng, key.difficulty)
    exam = [[rng.randint(0, 9) for _ in VARIABLES] for _ in range(EXAM_SIZE)]
    opening = OPENING.format(family=FAMILIES[min(key.difficulty, len(FAMILIES) - 1)])
    return Task(key=key, opening=opening, scenario={"terms": terms, "exam": exam})


def describe(terms: Sequence[Term]) -> str:
    """The function in canonical form, e.g. `3 + 2*a + -1*b*c`: equal exactly if the functions are."""
    return " + ".join(
        "*".join([str(weight), *(VARIABLES[i] for i in of)])
        for weight, of in sorted(terms, key=lambda t: t[1])
    )


def evaluate(terms: Sequence[Term], inputs: Sequence[int]) -> int:
    total = 0
    for weight, of in terms:
        for i in of:
            weight *= inputs[i]
        total += weight
    return total


def initial_state(task: Task) -> State:
    return State()


def needs_user(state: State, action: Action) -> bool:
    return action.choice == "action" and not state.exam_seen


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if action.choice == "search":
        return _show_exam(task, state, action.content)
    if action.choice == "answer":
        return _grade(task, state, action.content)
    feedback = reply.text if reply else "The exam has begun: no more questions. Answer it."
    return ActionOutcome(state=state, feedback=feedback, score=state.score)


def observation_key(action: Action | None, feedback: str, reply: UserReply | None) -> str:
    """Key of a value: the integers that were asked for, independent of how they were written."""
    if action and reply and "value" in reply.facts:
        return f"{_integers(action.content)}: {feedback}"
    return feedback


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """The function's value at four integers; anything else is refused politely."""
    inputs = _integers(call.question)
    if inputs is None or len(inputs) != len(VARIABLES):
        return UserReply(text="Give me exactly four integers.")
    if any(abs(value) > QUERY_LIMIT for value in inputs):
        return UserReply(text=f"Only integers from -{QUERY_LIMIT} to {QUERY_LIMIT}, please.")
    value = _value(call.scenario, inputs)
    if value is None:
        return UserReply(text="There is no value for these.")
    return UserReply(text=f"The value is {value}.", facts={"value": value})


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """One probe names a single variable and its constant; any other family has every coefficient probed. At
    `guess_rate` it guesses the function."""
    if not any(family in opening for family in FAMILIES):
        yield Action(choice="finish", content="")  # a published rule has no family to probe for
        return
    if rng.random() < guess_rate:
        terms, found = _draw_terms(rng, 0), ""
    elif FAMILIES[0] in opening:
        hundreds, constant = divmod((yield from _probe(HUNDREDS)), 100)
        terms = [(constant, ()), (1, (hundreds - 1,))]
        found = f"{VARIABLES[hundreds - 1]}+{constant}"
    else:
        terms, found = (yield from _probe_terms()), ""
    exam_text = yield Action(choice="search", content="test", thought=found)
    exam = [list(map(int, re.findall(r"-?\d+", line))) for line in exam_text.split("; ")]
    values = " ".join(str(evaluate(terms, inputs)) for inputs in exam)
    yield Action(
        choice="answer", content=values, thought=" ".join(_working(terms, inputs) for inputs in exam)
    )


def gold_actions(task: Task) -> Sequence[Action]:
    """The exam's values."""
    values = (_value(task.scenario, inputs) for inputs in task.scenario["exam"])
    return (Action(choice="answer", content=" ".join(map(str, values))),)


def progress(task: Task, state: State) -> float:
    """Half for having seen the exam; the rest is what the answers earned."""
    return 0.5 * state.exam_seen + 0.5 * state.score


def random_action(task: Task, rng: random.Random) -> Action:
    choice = rng.choice(("action", "search", "answer"))
    if choice == "search":
        return Action(choice="search", content="test")
    count = len(VARIABLES) if choice == "action" else EXAM_SIZE
    return Action(choice=choice, content=" ".join(str(rng.randint(0, 30)) for _ in range(count)))


def _draw_terms(rng: random.Random, difficulty: int) -> list[Term]:
    if difficulty == 0:
        return [(rng.randint(10, 39), ()), (1, (rng.randrange(4),))]
    constant: Term = (rng.randint(0, 9), ())
    weights = [-3, -2, -1, 1, 2, 3]
    variables = range(4) if difficulty >= 2 else sorted(rng.sample(range(4), 2))
    terms: list[Term] = [constant, *((rng.choice(weights), (i,)) for i in variables)]
    if difficulty >= 3:
        terms.append((rng.choice(weights), tuple(sorted(rng.choices(range(4), k=2)))))
    return terms


def _show_exam(task: Task, state: State, content: str) -> ActionOutcome:
    if content.strip().lower() != "test":
        return ActionOutcome(state=state, feedback="The only search is: test.", score=state.score)
    exam = "; ".join(
        " ".join(f"{name}={value}" for name, value in zip(VARIABLES, inputs, strict=True))
        for inputs in task.scenario["exam"]
    )
    return ActionOutcome(state=replace(state, exam_seen=True), feedback=f"Exam: {exam}", score=state.score)


def _grade(task: Task, state: State, content: str) -> ActionOutcome:
    if not state.exam_seen:
        return ActionOutcome(state=state, feedback="Search test first.", score=state.score)
    values = _integers(content)
    if values is None or len(values) != EXAM_SIZE:
        return ActionOutcome(state=state, feedback=f"Give exactly {EXAM_SIZE} integers.", score=state.score)
    gold = [_value(task.scenario, inputs) for inputs in task.scenario["exam"]]
    num_right = sum(value == right for value, right in zip(values, gold, strict=True))
    # One right value is luck as often as not: it earns nothing.
    worth = ATTEMPT_WORTH[state.num_attempts] * max(0, num_right - 1) / (EXAM_SIZE - 1)
    state = replace(state, num_attempts=state.num_attempts + 1, score=max(state.score, worth))
    done = num_right == EXAM_SIZE or state.num_attempts == len(ATTEMPT_WORTH)
    return ActionOutcome(
        state=state, feedback=f"{num_right} of {EXAM_SIZE} are right.", score=state.score, done=done
    )


def _value(scenario: Mapping[str, Any], inputs: Sequence[int]) -> float | None:
    """The hidden function's value: of generated terms, or of a published rule."""
    return value_of(scenario["rule"], inputs) if "rule" in scenario else evaluate(scenario["terms"], inputs)


def _integers(text: str) -> list[int] | None:
    """The integers of a text of nothing else than integers, spaces and commas; None otherwise."""
    tokens = text.replace(",", " ").split()
    return (
        [int(token) for token in tokens]
        if all(re.fullmatch(r"-?\d{1,9}", token) for token in tokens)
        else None
    )


def _working(terms: Sequence[Term], inputs: Sequence[int]) -> str:
    """The sum behind one exam value, the variables filled in: `5+7`."""
    return "+".join(str(evaluate([term], inputs)) for term in reversed(terms))


def _probe(inputs: Sequence[int]) -> Generator[Action, str, int]:
    feedback = yield Action(choice="action", content=" ".join(map(str, inputs)))
    return int(feedback.rstrip(".").split()[-1])


def _probe_terms() -> Generator[Action, str, list[Term]]:
    """All weights, and at most one quadratic term, from one-hot probes and the residuals at `STAIRS` and
    `STEEP`."""
    constant = yield from _probe([0] * len(VARIABLES))
    stairs = (yield from _probe(STAIRS)) - constant
    steep = (yield from _probe(STEEP)) - constant
    units: list[int] = []
    for i in range(len(VARIABLES)):
        units.append((yield from _probe([int(i == j) for j in range(len(VARIABLES))])) - constant)
    mixed = (yield from _probe([1, 1, 1, 1])) - constant - sum(units)
    over_stairs = stairs - sum(unit * x for unit, x in zip(units, STAIRS, strict=True))
    over_steep = steep - sum(unit * x for unit, x in zip(units, STEEP, strict=True))
    weights = dict(enumerate(units))
    quadratic: list[Term] = []
    if mixed:
        # Products of two different entries of STAIRS are all different, so the pair can be read off.
        pairs = [(i, j) for i in weights for j in weights if i < j]
        quadratic = [(mixed, next(p for p in pairs if mixed * STAIRS[p[0]] * STAIRS[p[1]] == over_stairs))]
    elif over_steep:
        # A square with coefficient q leaves q * (x * x - x) at both probes; their ratio names the variable.
        at = next(
            i
            for i in weights
            if over_stairs * (STEEP[i] ** 2 - STEEP[i]) == over_steep * (STAIRS[i] ** 2 - STAIRS[i])
        )
        coefficient = over_steep // (STEEP[at] ** 2 - STEEP[at])
        weights[at] -= coefficient
        quadratic = [(coefficient, (at, at))]
    return [(constant, ()), *((weight, (i,)) for i, weight in weights.items()), *quadratic]


GYM = Gym(
    name="function",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    needs_user=needs_user,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    load_tasks=load_tasks,
    gold_actions=gold_actions,
    scoring=GymScoring(progress=progress, observation_key=observation_key),
)
