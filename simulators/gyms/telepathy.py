"""Telepathy gym: the user thinks of one of the numbered cards; find it by yes-or-no questions, then guess
once.

A card shows one of a family's kinds and, above level 0, more attributes; no two cards look alike. Levels set
how many attributes and cards there are. Splits are disjoint by the card thought of, its look and number; no
look or number alone tells a split. One guess only: with all candidates on the table, a second guess would pay
for enumeration.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymScoring, facts_key
from simulators.gyms.telepathy_data import ENTITY_ROLE, REFUSAL, answer_about, is_right, load_tasks
from simulators.message import Action
from simulators.task import Split, Task, TaskKey, split_of
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user thinks of one of the cards. "
    "action: a yes-or-no question about one property. "
    "answer: the number of the card; you may guess once."
)
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("bird", "fish", "insect"),
    "plant": ("tree", "moss", "flower"),
    "tool": ("hammer", "knife", "brush"),
    "food": ("bread", "cheese", "soup"),
}
"""Family to its kinds."""
ATTRIBUTES: tuple[tuple[str, ...], ...] = (
    ("red", "blue", "green", "white"),
    ("tiny", "small", "big", "huge"),
)
PROPERTIES = tuple(word for words in (KINDS, *KINDS.values(), *ATTRIBUTES) for word in words)
"""All properties that can be asked about."""
LEVELS: tuple[tuple[int, int], ...] = ((0, 12), (1, 20), (2, 32))
"""Level to (attributes besides family and kind, cards on the table)."""
NUMBERS = tuple(str(number) for number in range(10, 100))
"""Numbers of the cards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The guess ends the dialogue; before it, only the stated facts change."""

    heard: frozenset[tuple[str, bool]] = frozenset()
    """(property, whether the card has it), as the user said."""


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    num_attributes, num_cards = LEVELS[min(key.difficulty, len(LEVELS) - 1)]
    kinds = [(family, kind) for family, kinds_of in KINDS.items() for kind in kinds_of]
    looks = [(*kind, *values) for kind in kinds for values in product(*ATTRIBUTES[:num_attributes])]
    cards = _deal(rng, looks, num_cards=num_cards)
    while not (owned := [number for number, look in cards.items() if _split(number, look) == key.split]):
        cards = _deal(rng, looks, num_cards=num_cards)
    table = "; ".join(f"{' '.join(look)} {number}" for number, look in cards.items())
    return Task(
        key=key,
        opening=f"I think of one of these cards: {table}. Which one?",
        scenario={"cards": cards, "target": rng.choice(owned)},
    )


def initial_state(task: Task) -> State:
    return State()


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if reply is not None:
        asked, holds = reply.facts.get("property"), reply.facts.get("holds")
        if asked in PROPERTIES and isinstance(holds, bool):
            state = State(heard=state.heard | {(asked, holds)})
        return ActionOutcome(state=state, feedback=reply.text, score=0.0)
    if action.choice == "search":
        return ActionOutcome(state=state, feedback="There is nothing to search here.", score=0.0)
    if "target_entity" in task.scenario:
        return _judged(state, right=is_right(task.scenario, action.content))
    guesses = _named(action.content, task.scenario["cards"])
    if len(guesses) != 1:
        return ActionOutcome(state=state, feedback="Give the number of exactly one card.", score=0.0)
    return _judged(state, right=guesses[0] == task.scenario["target"])


def _judged(state: State, *, right: bool) -> ActionOutcome:
    if right:
        return ActionOutcome(state=state, feedback="Yes, that is it!", score=1.0, done=True)
    return ActionOutcome(state=state, feedback="No, that is not it.", score=0.0, done=True)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Yes or No to a question about exactly one property; never a word about numbers."""
    if "target_entity" in call.scenario:
        return answer_about(call.scenario, call.question)
    asked = [word for word in PROPERTIES if _mentions(call.question, word)]
    if len(asked) != 1 or _named(call.question, call.scenario["cards"]):
        return UserReply(text=REFUSAL)
    return _reveal(call, asked[0])


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Determines family, kind and attributes in turn, asking only about properties of remaining cards. At
    `guess_rate` it guesses one of them."""
    if "cards: " not in opening:
        yield Action(choice="finish", content="")  # a published entity stands on no table
        return
    entries = [entry.split() for entry in opening.partition(": ")[2].partition(".")[0].split("; ")]
    remaining = {entry[-1]: entry[:-1] for entry in entries}
    for position in range(len(entries[0]) - 1):
        values = sorted({look[position] for look in remaining.values()}, key=PROPERTIES.index)
        while len(values) > 1:
            if rng.random() < guess_rate:
                values = [rng.choice(values)]
                break
            value = values.pop(0)
            feedback = yield Action(choice="action", content=f"Is it {value}?")
            if feedback == "Yes.":
                values = [value]
        remaining = {number: look for number, look in remaining.items() if look[position] == values[0]}
    number, look = next(iter(remaining.items()))
    yield Action(choice="answer", content=_named_card(number, look))


def gold_actions(task: Task) -> Sequence[Action]:
    """The card's number, with its look as the expert says it; or the published entity."""
    scenario = task.scenario
    if "target_entity" in scenario:
        return (Action(choice="answer", content=scenario["target_entity"]),)
    number = scenario["target"]
    return (Action(choice="answer", content=_named_card(number, scenario["cards"][number])),)


def progress(task: Task, state: State) -> float:
    """1 - log n / log N: of N cards on the table, n fit all replies so far. 0 for a published entity."""
    if "target_entity" in task.scenario:
        return 0.0
    looks = list(task.scenario["cards"].values())
    num_left = sum(all((asked in look) == holds for asked, holds in state.heard) for look in looks)
    return 1.0 - math.log(max(1, num_left)) / math.log(len(looks))


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="answer", content=rng.choice(NUMBERS))
    return Action(choice="action", content=f"Is it {rng.choice(PROPERTIES)}?")


def _deal(
    rng: random.Random, looks: Sequence[tuple[str, ...]], *, num_cards: int
) -> dict[str, tuple[str, ...]]:
    """Number to look, sorted by look: the list is easy to read, and its order gives nothing away."""
    numbers = rng.sample(NUMBERS, num_cards)
    on_table = sorted(
        rng.sample(looks, num_cards), key=lambda look: [PROPERTIES.index(word) for word in look]
    )
    return dict(zip(numbers, on_table, strict=True))


def _split(number: str, look: Sequence[str]) -> Split:
    return split_of(f"telepathy:{' '.join(look)} {number}")


def _reveal(call: UserCall, asked: str) -> UserReply:
    """Whether the user's card has the property."""
    holds = asked in call.scenario["cards"][call.scenario["target"]]
    yes, no = ("Yes.", "No.") if holds else ("No.", "Yes.")
    return UserReply(text=yes, facts={"property": asked, "holds": holds}, decoy=no)


def _instructions(call: UserCall) -> str:
    if "target_entity" in call.scenario:
        return ENTITY_ROLE.instructions(call)
    return (
        "Someone guesses a card by yes-or-no questions. Decide which one property of the card the last "
        f"message asks about. The properties are: {', '.join(PROPERTIES)}. Take `none` where it asks about "
        "none of them, about several, denies one, asks for anything but yes or no, or for the card's number."
    )


def _properties(call: UserCall) -> dict[str, Any]:
    if "target_entity" in call.scenario:
        return ENTITY_ROLE.schema(call)
    return flat_schema({"property": {"type": "string", "enum": [*PROPERTIES, "none"]}})


def _read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if "target_entity" in call.scenario:
        return ENTITY_ROLE.read(call, verdict)
    asked = verdict["property"]
    return UserReply(text=REFUSAL) if asked == "none" else _reveal(call, asked)


def _named_card(number: str, look: Sequence[str]) -> str:
    """The card without its family, which the kind implies."""
    return " ".join(["the", *look[1:], number])


def _mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}s?\b", text, re.IGNORECASE) is not None


def _named(text: str, cards: Iterable[str]) -> list[str]:
    words = set(re.findall(r"\w+", text))
    return [number for number in cards if number in words]


GYM = Gym(
    name="telepathy",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    load_tasks=load_tasks,
    gold_actions=gold_actions,
    llm_role=LlmRole(instructions=_instructions, schema=_properties, read=_read),
    scoring=GymScoring(progress=progress, observation_key=facts_key),
)
