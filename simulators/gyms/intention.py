"""Intention gym: the user has a vague wish; learn its hidden details by asking, then state them all.

A thing has slots, some of which hold a wish; the opening names the thing and, at level 0, the slots. Levels:
0 three slots with two or three wishes; 1 six slots with three or four; 2 six slots with four or five wishes
that differ in importance, and a user who first hesitates between two values. Splits are disjoint by meaning:
the thing with its wishes. Only a detail that the user has told counts: asking alone pays nothing, and neither
does guessing. A wrong value, or two for one detail, costs what a right one gains. Two attempts, the second
worth half.

The same rules play released intentions (intention_data); there an answer best labels each value with its
detail: `detail: value; detail: value`.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymScoring, facts_key
from simulators.gyms.intention_data import load_tasks, named_values
from simulators.gyms.stemming import stems_of
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user has a vague wish with hidden details. "
    "action: ask about one detail. "
    "answer: state every detail that you were told, one value each; you may answer twice."
)
SLOTS: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "white", "black"),
    "size": ("tiny", "small", "medium", "large", "huge"),
    "style": ("modern", "classic", "rustic", "funky", "plain"),
    "fabric": ("wool", "leather", "cotton", "denim", "silk"),
    "shape": ("round", "square", "oval", "star", "heart"),
    "price": ("cheap", "modest", "average", "costly", "luxury"),
    "season": ("spring", "summer", "autumn", "winter", "christmas"),
    "day": ("monday", "tuesday", "friday", "saturday", "sunday"),
    "flavor": ("lemon", "vanilla", "cherry", "banana", "caramel"),
    "topping": ("cream", "nuts", "sugar", "berries", "coconut"),
    "place": ("beach", "park", "roof", "forest", "museum"),
    "music": ("jazz", "rock", "folk", "opera", "techno"),
    "food": ("pizza", "salad", "soup", "curry", "pasta"),
    "guests": ("family", "friends", "colleagues", "neighbors", "children"),
    "theme": ("pirates", "space", "jungle", "circus", "castle"),
    "pattern": ("stripes", "dots", "checks", "flowers", "waves"),
    "power": ("battery", "solar", "plug", "pedal", "petrol"),
    "skill": ("novice", "junior", "advanced", "senior", "master"),
    "topic": ("history", "biology", "cooking", "painting", "finance"),
    "format": ("video", "book", "podcast", "lecture", "workshop"),
    "language": ("french", "german", "spanish", "italian", "korean"),
}
"""Slot to its values; no value belongs to two slots."""
SYNONYMS: dict[str, str] = {
    "color": "colour shade hue paint",
    "size": "big dimensions",
    "style": "look design",
    "fabric": "material cloth textile made",
    "shape": "form",
    "price": "budget cost spend pay expensive",
    "season": "seasonal holiday",
    "day": "date weekday",
    "flavor": "flavour taste",
    "topping": "garnish decoration",
    "place": "location venue",
    "music": "songs band play",
    "food": "eat meal dish menu serve",
    "guests": "people invite attend",
    "theme": "motif",
    "pattern": "print",
    "power": "energy run engine",
    "skill": "level experience",
    "topic": "subject learn",
    "format": "medium",
    "language": "speak spoken",
}
"""Other words that ask about a slot; none belongs to two slots of a thing."""
THINGS: dict[str, tuple[str, ...]] = {
    "cake": ("flavor", "topping", "shape", "size", "color", "season"),
    "party": ("place", "music", "theme", "food", "guests", "day"),
    "lamp": ("color", "shape", "power", "size", "style", "price"),
    "course": ("topic", "format", "language", "skill", "day", "price"),
    "jacket": ("fabric", "color", "pattern", "size", "season", "style"),
    "poster": ("theme", "color", "size", "style", "language", "pattern"),
    "picnic": ("food", "place", "guests", "music", "day", "season"),
    "bike": ("power", "color", "size", "style", "skill", "price"),
}
LEVELS: tuple[tuple[int, tuple[int, int], int], ...] = ((3, (2, 3), 0), (6, (3, 4), 0), (6, (4, 5), 2))
"""Level to (slots, fewest and most wishes, slots about which the user hesitates)."""
ATTEMPT_WORTH = (1.0, 0.5)
MAX_ANSWER_CHARS = 2000
OPEN = " Open are "
REFUSAL = "Please ask about one detail"
PART = re.compile(r"[;\n]|,(?=[^,;:\n]{1,80}:)")
"""Separator of the parts of an answer: a comma only before a label."""
TOPICS = ("budget", "type", "size", "format", "level", "time", "purpose", "location", "language", "style")
"""What the scripted expert asks if the task does not name its details."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    told: frozenset[str] = frozenset()
    """Slots with a wish that the user has stated."""
    hesitated: frozenset[str] = frozenset()
    num_attempts: int = 0
    score: float = 0.0


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    num_slots, num_wishes, num_unsure = LEVELS[min(key.difficulty, len(LEVELS) - 1)]
    while True:
        thing = rng.choice(list(THINGS))
        slots = THINGS[thing][:num_slots]
        wished = sorted(rng.sample(range(num_slots), rng.randint(*num_wishes)))
        wishes = {slots[at]: rng.choice(SLOTS[slots[at]]) for at in wished}
        if split_of(f"intention:{thing}:{sorted(wishes.items())}") == key.split:
            break
    opening = f"I want a {thing}."
    if key.difficulty == 0:
        opening += f"{OPEN}{', '.join(slots[:-1])} and {slots[-1]}."
    return Task(
        key=key,
        opening=opening,
        scenario={
            "options": {slot: list(SLOTS[slot]) for slot in slots},
            "hints": {slot: SYNONYMS[slot] for slot in slots},
            "wishes": wishes,
            "weights": {slot: rng.randint(1, 3) if num_unsure else 1 for slot in wishes},
            "unsure": sorted(rng.sample(list(wishes), num_unsure)),
        },
    )


def initial_state(task: Task) -> State:
    return State()


def user_view(state: State) -> Mapping[str, Any]:
    """The slots at which the user has hesitated: asked again, it decides."""
    return {"hesitated": sorted(state.hesitated)}


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if reply is not None:
        slot, wish = reply.facts.get("slot"), reply.facts.get("wish")
        if isinstance(slot, str) and slot in task.scenario["wishes"]:
            if wish == task.scenario["wishes"][slot]:
                state = replace(state, told=state.told | {slot})
            elif reply.facts.get("between"):
                state = replace(state, hesitated=state.hesitated | {slot})
        return ActionOutcome(state=state, feedback=reply.text, score=state.score)
    if action.choice == "search":
        return ActionOutcome(state=state, feedback="There is nothing to search here.", score=state.score)
    return _grade(task, state, action.content)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Tells the wish for the one slot that a question is about, recognised by name, synonyms and values; a
    vague or double question gets a polite refusal."""
    slot = asked_slot(call.question, call.scenario)
    return _refuse(call) if slot is None else _reveal(call, slot)


def asked_slot(text: str, scenario: Mapping[str, Any]) -> str | None:
    """The slot that a text is about; None if it is about none or about several. A word that several
    slots share counts for each of them in part."""
    if (name := text.strip()) in scenario["options"]:
        return name
    index = _index_of(scenario)
    weights: dict[str, float] = {}
    for stem in stems_of(text):
        for slot in (slots := index.get(stem, ())):
            weights[slot] = weights.get(slot, 0.0) + 1 / len(slots)
    best, second, *_ = [*sorted(weights.items(), key=lambda item: -item[1]), ("", 0.0), ("", 0.0)]
    return best[0] if best[1] and second[1] <= best[1] / 2 else None


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks for every slot, again if the user hesitates, and states what it was told. At `guess_rate` it
    leaves a question out."""
    thing = next((thing for thing in THINGS if opening.startswith(f"I want a {thing}.")), "")
    slots = THINGS.get(thing, TOPICS)
    if OPEN in opening:
        slots = re.findall(r"[a-z]+", opening.partition(OPEN)[2].replace(" and ", " "))
    told: list[str] = []
    for slot in slots:
        if rng.random() < guess_rate:
            continue
        feedback = yield Action(choice="action", content=f"Which {slot}?")
        if feedback.startswith("Maybe "):
            feedback = yield Action(choice="action", content=f"Which {slot}?")
        if feedback.startswith("I want "):
            value = feedback.removeprefix("I want ").partition(". ")[0].removesuffix(".")
            told.append(value if thing else f"{slot}: {value};")
    yield Action(choice="answer", content=" ".join(told))


def gold_actions(task: Task) -> Sequence[Action]:
    """All wishes in one answer, as the expert writes them."""
    wishes = task.scenario["wishes"]
    is_generated = all(slot in SLOTS for slot in wishes)
    told = [value if is_generated else f"{slot}: {value};" for slot, value in wishes.items()]
    return (Action(choice="answer", content=" ".join(told)),)


def progress(task: Task, state: State) -> float:
    """Share of the wishes that the user has told, by importance."""
    weights = task.scenario["weights"]
    return sum(weights[slot] for slot in state.told) / sum(weights.values())


def random_action(task: Task, rng: random.Random) -> Action:
    options = task.scenario["options"]
    if rng.random() < 0.5:
        return Action(choice="action", content=f"Which {rng.choice(list(options))}?")
    guesses = (f"{slot}: {rng.choice(values)}" for slot, values in options.items())
    return Action(choice="answer", content="; ".join(guesses))


def _grade(task: Task, state: State, content: str) -> ActionOutcome:
    """Right values told by the user, less wrong ones, each by its importance."""
    scenario = task.scenario
    named = _stated(scenario, content) if len(content) <= MAX_ANSWER_CHARS else {}
    if not any(named.values()):
        return ActionOutcome(state=state, feedback="State the details, one value each.", score=state.score)
    wishes, weights = scenario["wishes"], scenario["weights"]
    right = [slot for slot in state.told if named[slot] == {wishes[slot]}]
    wrong = [slot for slot in wishes if named[slot] and named[slot] != {wishes[slot]}]
    gained = sum(weights[slot] for slot in right) - sum(weights[slot] for slot in wrong)
    worth = ATTEMPT_WORTH[state.num_attempts] * max(0, gained) / sum(weights.values())
    state = replace(state, num_attempts=state.num_attempts + 1, score=max(state.score, worth))
    done = len(right) == len(wishes) or state.num_attempts == len(ATTEMPT_WORTH)
    return ActionOutcome(
        state=state, feedback=f"{len(right)} of {len(wishes)} are right.", score=state.score, done=done
    )


def _stated(scenario: Mapping[str, Any], content: str) -> dict[str, set[str]]:
    """Slot to the values that an answer names for it. A part `label: value` counts for the label's slot only,
    and then parts without a label do not count for that slot."""
    index = _index_of(scenario)
    labelled: dict[str, frozenset[str]] = {}
    loose: frozenset[str] = frozenset()
    for part in PART.split(content):
        label, colon, value = part.partition(":")
        slot = asked_slot(label, scenario) if colon else None
        if slot is None or not all(slot in index.get(stem, ()) for stem in stems_of(label)):
            loose |= stems_of(part)
        else:
            labelled[slot] = labelled.get(slot, frozenset()) | stems_of(value)
    return {
        slot: named_values(values, labelled.get(slot, loose)) for slot, values in scenario["options"].items()
    }


def _index_of(scenario: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    hints = scenario["hints"]
    return _index(tuple((slot, hints[slot], *values) for slot, values in scenario["options"].items()))


@lru_cache(maxsize=1 << 12)
def _index(slots: tuple[tuple[str, ...], ...]) -> dict[str, tuple[str, ...]]:
    """Stem to the slots (name, hint, values) that have it."""
    index: dict[str, tuple[str, ...]] = {}
    for slot, *texts in slots:
        for stem in stems_of(" ".join((slot, *texts))):
            index[stem] = (*index.get(stem, ()), slot)
    return index


def _reveal(call: UserCall, slot: str) -> UserReply:
    scenario = call.scenario
    wish = scenario["wishes"].get(slot)
    if wish is None:
        return UserReply(text="Any is fine.", facts={"slot": slot, "wish": None})
    other = next((value for value in scenario["options"][slot] if value != wish), wish)
    if slot in scenario["unsure"] and slot not in call.view.get("hesitated", ()):
        between = [value for value in scenario["options"][slot] if value in (wish, other)]
        text = f"Maybe {between[0]} or {between[1]}. Ask me again."
        return UserReply(text=text, facts={"slot": slot, "between": between})
    tail = " That matters a lot." if scenario["weights"][slot] == 3 else ""
    facts = {"slot": slot, "wish": wish}
    return UserReply(text=f"I want {wish}.{tail}", facts=facts, decoy=f"I want {other}.")


def _refuse(call: UserCall) -> UserReply:
    """Asks for a question about one detail; in generated tasks it names the slots in turn as examples. It
    does not reveal which slots hold a wish; the details of a published task must be found by the agent."""
    slots = [slot for slot in call.scenario["options"] if slot in SLOTS]
    example = f", such as the {slots[len(call.history) % len(slots)]}" if slots else ""
    return UserReply(text=f"{REFUSAL}{example}.")


def _labels(call: UserCall) -> dict[str, str]:
    """Label in the model's schema to slot: the slot's name, or its number if the name is free text."""
    options = enumerate(call.scenario["options"], start=1)
    return {slot if slot in SLOTS else str(number): slot for number, slot in options}


def _instructions(call: UserCall) -> str:
    hints = call.scenario["hints"]
    slots = "\n".join(f"{label}: {slot}; {hints[slot]}" for label, slot in _labels(call).items())
    return (
        "You are the ear of someone with a wish. An assistant asks for the details of the wish. Decide which "
        f"one detail the last message asks about. The details are:\n{slots}\nTake `none` where it asks about "
        "none of them, about more than one, or about everything at once."
    )


def _schema(call: UserCall) -> dict[str, Any]:
    return flat_schema({"slot": {"enum": [*_labels(call), "none"]}})


def _read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    slot = _labels(call).get(verdict["slot"])
    return _refuse(call) if slot is None else _reveal(call, slot)


GYM = Gym(
    name="intention",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=LlmRole(instructions=_instructions, schema=_schema, read=_read),
    load_tasks=load_tasks,
    user_view=user_view,
    gold_actions=gold_actions,
    scoring=GymScoring(progress=progress, observation_key=facts_key),
)
