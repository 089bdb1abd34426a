"""Travel gym: learn a traveller's wishes by asking, search with them, and book the cheapest option that fits.

Each part of a trip (flight, hotel, ...) has options with three slots and a price; the traveller has wishes
for some slots. For every wish there is a cheaper option that breaks only this wish, and others that are
dearer, so no price reveals the best option unless all wishes were asked for. Levels: 0 one part with two
wishes; 1 two parts with two; 2 three parts with three. Splits are disjoint by trip part (the part with its
wishes). One recommendation a part; an option that was never shown cannot be recommended. Its value is
multiplied by the share of the part's wishes that the traveller has stated: otherwise enough searches of the
catalogue alone would reveal which values occur together most often."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymScoring, facts_key
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "Book the cheapest option that fits all wishes of the user. "
    "action: ask the user about one slot of one part. "
    "search: the part and the wished values, to see what fits. "
    "answer: the id of the option to book; one a part."
)
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "flight": {
        "cabin": ("economy", "premium", "business", "first", "sleeper"),
        "seat": ("window", "aisle", "middle", "front", "rear"),
        "departure": ("dawn", "morning", "noon", "evening", "midnight"),
    },
    "hotel": {
        "room": ("single", "double", "twin", "suite", "studio"),
        "view": ("sea", "garden", "street", "pool", "mountain"),
        "meals": ("breakfast", "brunch", "dinner", "halfboard", "fullboard"),
    },
    "restaurant": {
        "cuisine": ("thai", "french", "mexican", "indian", "greek"),
        "seating": ("terrace", "booth", "bar", "rooftop", "counter"),
        "mood": ("quiet", "lively", "romantic", "family", "formal"),
    },
    "apartment": {
        "floor": ("ground", "lower", "middle", "upper", "top"),
        "kitchen": ("full", "shared", "mini", "open", "outdoor"),
        "heating": ("gas", "electric", "wood", "solar", "oil"),
    },
    "car": {
        "fuel": ("petrol", "diesel", "electric", "hybrid", "gas"),
        "body": ("sedan", "wagon", "van", "coupe", "pickup"),
        "insurance": ("basic", "standard", "extended", "complete", "premium"),
    },
}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "cabin": ("class",),
    "seat": ("sit",),
    "departure": ("depart", "leave", "time"),
    "room": ("bed",),
    "view": ("overlook", "outlook"),
    "meals": ("meal", "eat", "board"),
    "cuisine": ("food", "dishes"),
    "seating": ("table",),
    "mood": ("atmosphere", "ambience", "vibe"),
    "floor": ("storey",),
    "kitchen": ("cook",),
    "heating": ("heated", "warm"),
    "fuel": ("engine", "tank"),
    "body": ("shape",),
    "insurance": ("insured", "cover"),
}
"""Other words that ask about a slot; none belongs to two slots."""
LEVELS: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (3, 3))
"""Level to (parts of the trip, wishes a part)."""
REFUSAL = "Please ask about one slot."
NUM_OPTIONS = 16
NUM_SHOWN = 4
SECOND_BEST = 0.8
"""Value of an option that fits but is not the cheapest that fits (UserRL's choice reward)."""
CITIES = ("Paris", "Oslo", "Rome", "Lima", "Cairo", "Delhi", "Quito", "Seoul", "Perth", "Dakar")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    shown: frozenset[str] = frozenset()
    """Ids of all options that a search has shown."""
    told: frozenset[str] = frozenset()
    """Slots with a wish that the traveller has stated; no slot belongs to two parts."""
    booked: frozenset[str] = frozenset()
    """Parts with a recommendation."""
    score: float = 0.0


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    num_parts, num_wishes = LEVELS[min(key.difficulty, len(LEVELS) - 1)]
    wishes: dict[str, dict[str, str]] = {}
    while len(wishes) < num_parts:
        part = rng.choice([part for part in PARTS if part not in wishes])
        slots = sorted(rng.sample(list(PARTS[part]), num_wishes))
        wished = {slot: rng.choice(PARTS[part][slot]) for slot in slots}
        if split_of(f"travel:{part}:{sorted(wished.items())}") == key.split:
            wishes[part] = wished
    catalogue = {part: _draw_options(rng, part=part, wished=wished) for part, wished in wishes.items()}
    needs = " and a ".join(wishes)
    return Task(
        key=key,
        opening=f"I am going to {rng.choice(CITIES)}. Please book a {needs} for me.",
        scenario={"wishes": wishes, "catalogue": catalogue},
    )


def initial_state(task: Task) -> State:
    return State()


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if reply is not None:
        part, slot, wish = (reply.facts.get(name) for name in ("part", "slot", "wish"))
        if isinstance(wish, str) and (part, slot, wish) in _wishes_of(task):
            state = replace(state, told=state.told | {slot})
        return ActionOutcome(state=state, feedback=reply.text, score=state.score)
    return (
        _search(task, state, action.content)
        if action.choice == "search"
        else _book(task, state, action.content)
    )


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Tells the wish for the one slot that is asked about; a vague or double question gets a polite
    refusal."""
    asked = [
        (part, slot)
        for part, slots in PARTS.items()
        for slot in slots
        if any(_mentions(call.question, word) for word in (slot, *SYNONYMS[slot]))
    ]
    return _reveal(call, *asked[0]) if len(asked) == 1 else UserReply(text=REFUSAL)


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks for every slot of every part, searches with all wishes, books the first (cheapest) option
    shown. At `guess_rate` it leaves a question out."""
    for part in (part for part in PARTS if _mentions(opening, part)):
        wished: list[str] = []
        for slot in PARTS[part]:
            if rng.random() < guess_rate:
                continue
            feedback = yield Action(choice="action", content=f"Which {slot}?")
            if feedback.startswith("I want "):
                wished.append(feedback.removeprefix("I want ").rstrip("."))
        results = yield Action(choice="search", content=" ".join([part, *wished]))
        yield Action(choice="answer", content=results.split()[0])


def gold_actions(task: Task) -> Sequence[Action]:
    """The cheapest option that fits, for each part of the trip."""
    wishes, catalogue = task.scenario["wishes"], task.scenario["catalogue"]
    return [
        Action(choice="answer", content=_fitting(catalogue[part], wishes[part])[0])
        for part in PARTS
        if part in wishes
    ]


def progress(task: Task, state: State) -> float:
    """Share of the wishes told and the parts booked, all weighted equally."""
    num_all = len(_wishes_of(task)) + len(task.scenario["wishes"])
    return (len(state.told) + len(state.booked)) / num_all


def random_action(task: Task, rng: random.Random) -> Action:
    part = rng.choice(list(task.scenario["wishes"]))
    choice = rng.choice(("action", "search", "answer"))
    content = {
        "action": f"Which {rng.choice(list(PARTS[part]))}?",
        "search": part,
        "answer": f"{part[0].upper()}{rng.randint(1, 99)}",
    }[choice]
    return Action(choice=choice, content=content)


def _draw_options(rng: random.Random, *, part: str, wished: Mapping[str, str]) -> list[dict[str, Any]]:
    """Options of a part: the best, a more expensive one that fits, two pairs for each wish that violate only
    this wish, and others.

    The pairs look alike: without asking for a wish, no price reveals which of the slot's values it is.
    """
    slots = PARTS[part]
    ids = rng.sample(range(10, 100), NUM_OPTIONS)
    best_price = rng.randint(300, 500)

    def option(values: Mapping[str, str], price: int) -> dict[str, Any]:
        filled = {slot: values.get(slot) or rng.choice(choices) for slot, choices in slots.items()}
        return {"id": f"{part[0].upper()}{ids.pop()}", "values": filled, "price": price}

    def pair(values: Mapping[str, str], price: int) -> list[dict[str, Any]]:
        return [option(values, price), option(values, price + rng.randint(20, 90))]

    options = pair(wished, best_price)
    for slot, wish in wished.items():
        cheaper, other = rng.sample([value for value in slots[slot] if value != wish], 2)
        options += pair({**wished, slot: cheaper}, best_price - rng.randint(20, 90))
        options += pair({**wished, slot: other}, best_price + rng.randint(-90, 90))
    misfits = [
        kind
        for kind in product(*slots.values())
        if not _fits(dict(zip(slots, kind, strict=True)), wished.values())
    ]
    while ids:
        kind = dict(zip(slots, rng.choice(misfits), strict=True))
        options.append(option(kind, rng.randint(100, 900)))
    return sorted(options, key=lambda option: (option["price"], option["id"]))


def _search(task: Task, state: State, query: str) -> ActionOutcome:
    parts = [part for part in task.scenario["catalogue"] if _mentions(query, part)]
    if len(parts) != 1:
        return ActionOutcome(state=state, feedback="Search for one part of the trip.", score=state.score)
    known = [value for values in PARTS[parts[0]].values() for value in values]
    asked = [value for value in known if _mentions(query, value)]
    fitting = [option for option in task.scenario["catalogue"][parts[0]] if _fits(option["values"], asked)]
    if not fitting:
        return ActionOutcome(state=state, feedback="No option fits.", score=state.score)
    shown = fitting[:NUM_SHOWN]
    feedback = "; ".join(f"{option['id']} costs {option['price']}" for option in shown)
    ids = frozenset(option["id"] for option in shown)
    return ActionOutcome(state=replace(state, shown=state.shown | ids), feedback=feedback, score=state.score)


def _book(task: Task, state: State, content: str) -> ActionOutcome:
    ids = re.findall(r"\b[A-Z]\d{2}\b", content)
    if len(ids) != 1 or ids[0] not in state.shown:
        return ActionOutcome(state=state, feedback="Give one id that a search has shown.", score=state.score)
    catalogue = task.scenario["catalogue"]
    part = next(
        part for part, options in catalogue.items() if any(option["id"] == ids[0] for option in options)
    )
    if part in state.booked:
        return ActionOutcome(state=state, feedback=f"The {part} is booked already.", score=state.score)
    wishes = task.scenario["wishes"][part]
    fitting = _fitting(catalogue[part], wishes)
    worth = 1.0 if ids[0] == fitting[0] else SECOND_BEST if ids[0] in fitting else 0.0
    heard = len(state.told & wishes.keys()) / len(wishes)
    state = replace(state, booked=state.booked | {part}, score=state.score + worth * heard / len(catalogue))
    verdict = {1.0: "the best choice", SECOND_BEST: "fine, but not the cheapest"}.get(
        worth, "not what I want"
    )
    done = len(state.booked) == len(catalogue)
    return ActionOutcome(state=state, feedback=f"That is {verdict}.", score=state.score, done=done)


def _fitting(options: Sequence[Mapping[str, Any]], wishes: Mapping[str, str]) -> list[str]:
    """Ids of the options that fit all wishes, cheapest first."""
    return [option["id"] for option in options if _fits(option["values"], wishes.values())]


def _wishes_of(task: Task) -> list[tuple[str, str, str]]:
    """(part, slot, value) of every wish."""
    return [(part, *wish) for part, wishes in task.scenario["wishes"].items() for wish in wishes.items()]


def _reveal(call: UserCall, part: str, slot: str) -> UserReply:
    """The wish for one slot; a refusal for a part that is not in the trip."""
    wishes = call.scenario["wishes"]
    if part not in wishes:
        return UserReply(text=REFUSAL)
    facts = {"part": part, "slot": slot, "wish": wishes[part].get(slot)}
    if facts["wish"] is None:
        return UserReply(text="Any is fine.", facts=facts)
    other = next(value for value in PARTS[part][slot] if value != facts["wish"])
    return UserReply(text=f"I want {facts['wish']}.", facts=facts, decoy=f"I want {other}.")


def _instructions(call: UserCall) -> str:
    slots = ", ".join(f"{part}.{slot}" for part in call.scenario["wishes"] for slot in PARTS[part])
    return (
        "You are the ear of a traveller. Someone who books a trip for the traveller speaks. Decide which one "
        f"slot of the trip the last message asks about. The slots are: {slots}. Take `none` where it asks "
        "about none of them, about more than one, or about everything at once."
    )


def _slots(call: UserCall) -> dict[str, Any]:
    slots = [f"{part}.{slot}" for part in call.scenario["wishes"] for slot in PARTS[part]]
    return flat_schema({"slot": {"type": "string", "enum": [*slots, "none"]}})


def _read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    part, _, slot = verdict["slot"].partition(".")
    return _reveal(call, part, slot) if slot else UserReply(text=REFUSAL)


def _fits(values: Mapping[str, str], wished: Iterable[str]) -> bool:
    return set(wished) <= set(values.values())


def _mentions(text: str, word: str) -> bool:
    return word in _words(text)


@lru_cache(maxsize=64)
def _words(text: str) -> frozenset[str]:
    """Lower-case words of a text. Cached: one text is searched for many words in a row."""
    return frozenset(re.findall(r"\w+", text.lower()))


GYM = Gym(
    name="travel",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=LlmRole(instructions=_instructions, schema=_slots, read=_read),
    gold_actions=gold_actions,
    scoring=GymScoring(progress=progress, observation_key=facts_key),
)
