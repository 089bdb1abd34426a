"""Published TelepathyGym rules: twenty questions about an entity that the user thinks of.

Every turn calls the user, which is stateless. It sees the entity (`target_entity`, `title`) in the
scenario, `choice` action for a question or answer for a guess. Verdict facts: {"response": "Yes", "No" or
"Maybe"} for a question, shown as it is; {"judgment": "Yes" or "No"} for a guess, whose reply's text is shown.

Kept as released: the response is never checked, so anything the user can be made to say reaches the agent
(the LLM form leaves it free as well); the judge decides on every guess, lists of guesses included;
wrong guesses are free; untagged text, and any tag but the three, loses its first eight letters and is a
question. Own choice: a fixed text after a guess if the judge says nothing.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.gyms.telepathy_data import names_of, read_entities
from simulators.message import Action
from simulators.published.shared_rules import (
    CANNOT_RESPOND,
    EACH_TURN,
    data_only,
    every_turn,
    make_task,
    norm,
    parse_cutting,
    stateless,
)
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user thinks of something. Find out what it is. Your rounds are limited.\n"
    "action: a question that yes or no can answer.\n"
    "answer: your guess; you may try again."
)
SAY_LENGTH = 200


def load_tasks(path: Path) -> list[Task]:
    """The released JSON list of entities, or the Parquet rows (target entity as `ground_truth`)."""
    return [
        make_task(
            "telepathy",
            index=row,
            opening=record["description"],
            scenario={name: record[name] for name in ("title", "target_entity", "category")},
            split=record["split"],
        )
        for row, record in enumerate(read_entities(path))
    ]


def apply_action(task: Task, state: None, action: Action, reply: UserReply | None) -> ActionOutcome:
    said = reply.text if reply else ""
    facts = reply.facts if reply else {}
    if action.choice != "answer":
        feedback = str(facts.get("response", said or CANNOT_RESPOND))
        return ActionOutcome(state=state, feedback=feedback, score=0.0)
    if facts.get("judgment") == "Yes":
        return ActionOutcome(state=state, feedback=said or "Yes, that is it.", score=1.0, done=True)
    return ActionOutcome(state=state, feedback=said or "No, that is not it.", score=0.0)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Yes if the question shares a content word with the entity's description, Maybe if it has none. A guess
    is right if it contains the entity's name or title."""
    target, title = str(call.scenario["target_entity"]), str(call.scenario["title"])
    if call.choice == "answer":
        judgment = (
            "Yes" if any(is_named(name, text=call.question) for name in names_of(call.scenario)) else "No"
        )
        return UserReply(text=f"{judgment}.", facts={"judgment": judgment})
    asked = stems_of(call.question)
    known = stems_of_fixed(f"{title} {target} {call.scenario['category'].replace('_', ' ')}")
    response = "Maybe" if not asked else "Yes" if asked & known else "No"
    return UserReply(text=response, facts={"response": response})


def is_named(name: str, *, text: str) -> bool:
    """Whether all words of a name occur consecutively in the text, ignoring case and punctuation."""
    spelled = [norm(word) for word in re.findall(r"\w+", name)]
    given = [norm(word) for word in re.findall(r"\w+", text)]
    return any(given[at : at + len(spelled)] == spelled for at in range(len(given))) if spelled else False


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks generic questions, then guesses: it does not know the entities."""
    for question in ("Is it alive?", "Is it a person?", "Is it famous?", "Is it old?"):
        if rng.random() >= guess_rate:
            yield Action(choice="action", content=question)
    for guess in rng.sample(GUESSES, len(GUESSES)):
        yield Action(choice="answer", content=guess)


def gold_actions(task: Task) -> Sequence[Action]:
    return (Action(choice="answer", content=task.scenario["target_entity"]),)


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="answer", content="something")
    return Action(choice="action", content="Is it big?")


def instructions(call: UserCall) -> str:
    target = f"You think of: {call.scenario['target_entity']}\n"
    if call.choice == "answer":
        return f"{target}Judge whether the guess names it. Partly right or too general is not right."
    return f"{target}Answer the question with Yes, No, or Maybe where neither is true."


def schema(call: UserCall) -> dict[str, Any]:
    if call.choice == "answer":
        return flat_schema({"judgment": {"type": "string", "enum": ["Yes", "No"]}})
    return flat_schema({"response": {"type": "string", "maxLength": SAY_LENGTH}})


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if call.choice == "answer":
        return UserReply(text=f"{verdict['judgment']}.", facts={"judgment": verdict["judgment"]})
    response = str(verdict["response"])[:SAY_LENGTH]
    return UserReply(text=response, facts={"response": response})


GUESSES = ("Albert Einstein", "the Eiffel Tower", "a cat", "Mount Everest", "football", "the Mona Lisa")
"""The scripted expert's guesses."""

GYM = Gym(
    name="telepathy",
    system=SYSTEM,
    make_task=data_only,
    initial_state=stateless,
    needs_user=every_turn,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=LlmRole(instructions=instructions, schema=schema, read=read),
    load_tasks=load_tasks,
    gold_actions=gold_actions,
    rules=GymRules(parse_action=parse_cutting),
    scoring=EACH_TURN,
)
