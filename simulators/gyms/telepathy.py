"""Telepathy: the user thinks of one of the named things; find it with yes-or-no questions, then guess once.

Every thing has a value of each attribute and no two things share all values. Levels set how many attributes and things
there are. Splits are disjoint by the thing thought of. One guess only: with a list of candidates on the table, a second
guess would pay for enumeration.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from simulators.env import Expert, Gym, Outcome
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import UserCall, UserReply

SYSTEM = (
    "The user thinks of one of the things. "
    "action: a yes-or-no question about one property. "
    "answer: the name of the thing; you may guess once."
)
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "white"),
    "shape": ("round", "flat", "long"),
    "size": ("tiny", "small", "big", "huge"),
    "feel": ("soft", "hard", "wet"),
}
LEVELS: tuple[tuple[int, int], ...] = ((2, 12), (3, 20), (4, 32))
"""Level to (attributes in play, things on the table)."""
ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
NAMES = tuple(
    (first + vowel + second + last).capitalize()
    for first, vowel, second, last in product(ONSETS, VOWELS, ONSETS, VOWELS)
    if first != second
)


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Nothing changes before the guess, and the guess ends the dialogue."""


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    num_attributes, num_things = LEVELS[min(key.difficulty, len(LEVELS) - 1)]
    kinds = list(product(*list(ATTRIBUTES.values())[:num_attributes]))
    names = rng.sample(NAMES, num_things)
    while not (owned := [name for name in names if split_of("telepathy:" + name) == key.split]):
        names = rng.sample(NAMES, num_things)
    things = dict(zip(names, rng.sample(kinds, num_things), strict=True))
    table = "; ".join(f"{' '.join(values)} {name}" for name, values in things.items())
    return Task(
        key=key,
        opening=f"I think of one of these: {table}. Which one?",
        scenario={"things": things, "target": rng.choice(owned)},
    )


def start(task: Task) -> State:
    return State()


def asks_user(state: State, action: Action) -> bool:
    return action.choice == "action"


def apply(task: Task, state: State, action: Action, reply: UserReply | None) -> Outcome:
    if reply is not None:
        return Outcome(state=state, feedback=reply.text, score=0.0)
    if action.choice == "search":
        return Outcome(state=state, feedback="There is nothing to search here.", score=0.0)
    guesses = _named(action.content, task.scenario["things"])
    if len(guesses) != 1:
        return Outcome(state=state, feedback="Name exactly one thing of the list.", score=0.0)
    if guesses[0] == task.scenario["target"]:
        return Outcome(state=state, feedback="Yes, that is it!", score=1.0, done=True)
    return Outcome(state=state, feedback="No, that is not it.", score=0.0, done=True)


def answer(call: UserCall, rng: random.Random) -> UserReply:
    """Yes or No to a question about exactly one property; never a word about names."""
    asked = [value for values in ATTRIBUTES.values() for value in values if _mentions(call.question, value)]
    if len(asked) != 1 or _named(call.question, call.scenario["things"]):
        return UserReply(text="Ask me about one property at a time.")
    holds = asked[0] in call.scenario["things"][call.scenario["target"]]
    return UserReply(text="Yes." if holds else "No.", facts={"property": asked[0], "holds": holds})


def expert(opening: str, rng: random.Random) -> Expert:
    """Settles the attributes in turn, asking only about values that some remaining thing has."""
    entries = [entry.split() for entry in opening.partition(": ")[2].partition(".")[0].split("; ")]
    remaining = {entry[-1]: entry[:-1] for entry in entries}
    for position in range(len(entries[0]) - 1):
        values = sorted({kind[position] for kind in remaining.values()}, key=_attribute_order)
        while len(values) > 1:
            value = values.pop(0)
            feedback = yield Action(choice="action", content=f"Is it {value}?")
            if feedback == "Yes.":
                values = [value]
        remaining = {name: kind for name, kind in remaining.items() if kind[position] == values[0]}
    yield Action(choice="answer", content=" ".join([*next(iter(remaining.values())), next(iter(remaining))]))


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="answer", content=rng.choice(list(task.scenario["things"])))
    return Action(choice="action", content=f"Is it {rng.choice(rng.choice(list(ATTRIBUTES.values())))}?")


def _mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _named(text: str, things: Sequence[str]) -> list[str]:
    words = set(re.findall(r"\w+", text.lower()))
    return [name for name in things if name.lower() in words]


def _attribute_order(value: str) -> int:
    return [known for values in ATTRIBUTES.values() for known in values].index(value)


GYM = Gym(
    name="telepathy",
    system=SYSTEM,
    make_task=make_task,
    start=start,
    asks_user=asks_user,
    apply=apply,
    answer=answer,
    expert=expert,
    random_action=random_action,
)
