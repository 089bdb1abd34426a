"""Users of the published TravelGym: the rule-based traveller and search judge, their LLM form, and a simple
scripted expert."""

import json
import random
from collections.abc import Mapping
from typing import Any

from simulators.gym import Expert
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.input_limits import json_leaves
from simulators.message import Action
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

LETTERS = {"flight": "F", "hotel": "H", "restaurant": "R", "apartment": "A", "rental_car": "C"}
"""Aspect to the letter of its option ids."""
TYPES = {"small_talk": 1, "remaining_preference": 2, "other_preference": 3, "vague": 4}
NO_PREFERENCE = "I have no preference there."
TOO_VAGUE = "That is too general. Please ask me something concrete."
ALIGNMENT = ("alignment_judgement", "alignment_aspect")
SAY_LENGTH = 300
QUESTIONS = {
    "flight": (
        "class or cabin",
        "departure time",
        "airline company",
        "amenities or service",
        "layover or path",
    ),
    "hotel": ("room type", "location", "rating", "amenities", "service"),
    "restaurant": ("cuisine", "rating or reviews", "tags or atmosphere", "price expectation"),
    "apartment": ("room type", "capacity", "rating", "amenities", "service"),
    "rental_car": ("brand or model", "car categories", "seats", "insurance", "service"),
}
"""The scripted expert's questions about each aspect."""


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Tells the hint of the remaining preference that shares most content words with a question. A search is
    aligned if it names one aspect and contains half of the words of its arguments."""
    if call.choice == "search":
        return _judge_search(call)
    asked = stems_of(call.question)
    hits = [
        (len(asked & stems_of_fixed(f"{wish['subcategory'].replace('_', ' ')} {wish['preference']}")), wish)
        for wish in call.view["remaining"]
    ]
    num_words, wish = max(hits, key=lambda hit: hit[0], default=(0, {}))
    if num_words:
        return UserReply(text=wish["hint"], facts={"type": 2, "preference_id": wish["id"]})
    if "?" not in call.question:
        return UserReply(text="I see.", facts={"type": 1})
    is_concrete = bool(asked & stems_of(" ".join(LETTERS).replace("_", " ")))
    kind = 3 if is_concrete else 4
    return UserReply(text=NO_PREFERENCE if is_concrete else TOO_VAGUE, facts={"type": kind})


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks about the usual preferences of each aspect, searches with the request, and takes the cheapest
    option. At `guess_rate` it leaves a question out."""
    for aspect in LETTERS:
        name = aspect.replace("_", " ")
        if not stems_of(name) & stems_of(opening):
            continue
        for topic in QUESTIONS[aspect][:2]:
            if rng.random() >= guess_rate:
                yield Action(choice="action", content=f"What {topic} of the {name} do you prefer?")
        results = yield Action(choice="search", content=f"{name}: {opening}")
        options = [json.loads(line) for line in results.splitlines() if line.startswith("{")]
        cheapest = min(options, key=lambda option: float(option.get("cost", 0)), default={"id": "none"})
        yield Action(choice="answer", content=str(cheapest["id"]))


def random_action(task: Task, rng: random.Random) -> Action:
    choice = rng.choice(("action", "search", "answer"))
    letter = rng.choice(list(LETTERS.values()))
    content = {"action": "Hello.", "search": "anything", "answer": f"{letter}{rng.randint(1, 22)}"}[choice]
    return Action(choice=choice, content=content)


def instructions(call: UserCall) -> str:
    if call.choice == "search":
        known = json.dumps({name: aspect["arguments"] for name, aspect in call.scenario["aspects"].items()})
        return (
            f"You are a travel search engine. Gold arguments of the aspects of this trip: {known}\nSay "
            "which aspect the request is about, and whether it agrees with all of that aspect's arguments."
        )
    wishes = "; ".join(
        f"{wish['id']}: {wish['preference']} (hint: {wish['hint']})" for wish in call.view["remaining"]
    )
    return (
        f"You are a traveller with preferences that you have not told yet: {wishes}\nClassify what the agent "
        "says. If it asks concretely about one of them, name it and answer with its hint in other words, "
        "never the preference itself. Else answer shortly and tell no preference."
    )


def schema(call: UserCall) -> dict[str, Any]:
    if call.choice == "search":
        aspects = list(call.scenario["aspects"])
        return flat_schema(
            {
                "alignment_judgement": {"type": "string", "enum": ["True", "False", "N/A"]},
                "alignment_aspect": {"type": "string", "enum": aspects},
            }
        )
    ids = [wish["id"] for wish in call.view["remaining"]]
    return flat_schema(
        {
            "type": {"type": "string", "enum": list(TYPES)},
            "preference_id": {"type": "string", "enum": [*ids, "none"]},
            "say": {"type": "string", "maxLength": SAY_LENGTH},
        }
    )


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if call.choice == "search":
        return UserReply(text="", facts={name: verdict[name] for name in ALIGNMENT})
    facts = {"type": TYPES[verdict["type"]], "preference_id": verdict["preference_id"]}
    return UserReply(text=str(verdict["say"])[:SAY_LENGTH], facts=facts)


def _judge_search(call: UserCall) -> UserReply:
    asked = stems_of(call.question)
    named = [name for name in call.scenario["aspects"] if stems_of(name.replace("_", " ")) <= asked]
    if len(named) != 1:
        first = next(iter(call.scenario["aspects"]))
        return UserReply(text="", facts={"alignment_judgement": "False", "alignment_aspect": first})
    leaves = json_leaves(call.scenario["aspects"][named[0]]["arguments"])
    gold = stems_of(" ".join(str(leaf) for leaf in leaves if leaf is not None))
    aligned = "True" if 2 * len(gold & asked) >= len(gold) else "False"
    return UserReply(text="", facts={"alignment_judgement": aligned, "alignment_aspect": named[0]})


ROLE = LlmRole(instructions=instructions, schema=schema, read=read)
