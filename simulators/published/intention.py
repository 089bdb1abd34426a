"""Published IntentionGym rules: uncover the missing details of a vague task by asking about them.

Every question calls the user. It sees `UserCall.view` {"remaining": [{"description", "importance",
"inquiry", "options"}, ...]}, the details not yet covered, in order. Verdict facts: {"covered": [positions in
`remaining`]}, or as the released judge writes it, {"covered_detail_indices": [...], "is_task_related": bool};
the reply's text is what the user says.

Kept as released: a turn pays 1.0, 0.7 or 0.4 for the weightiest detail covered (importance 3, 2, 1), minus
0.2 for each further one, positions named twice counted twice, cut to [0, 1]; all covered details are removed
even if the turn pays nothing; the answer's own content never counts; the sum over a task may exceed 1.
Positions that do not exist are ignored. Text of any other tag, or of none, is a question; `[finish]` is
taken in any case.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simulators.dataset_files import is_parquet, read_records, wrong_record
from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.message import Action
from simulators.published.settings import PublishedConstants
from simulators.published.shared_rules import (
    EACH_TURN,
    data_only,
    every_turn,
    make_task,
    missing_in_parquet,
    parse_any_finish,
)
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user has a task in mind and told you only half of it. Find out the missing details, one clarifying "
    "question a turn. Your rounds are limited.\n"
    "action: a question to the user."
)
WORTH = {3: 1.0, 2: 0.7, 1: 0.4}
"""Importance of a detail to its base reward."""
DETAIL_FIELDS = ("description", "importance", "inquiry", "options")
SAY_LENGTH = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    remaining: tuple[Mapping[str, Any], ...]
    """Details that no question has covered, in the order of the data."""


def load_tasks(path: Path) -> list[Task]:
    """The released JSON list of {id, category, task, missing_details}."""
    if is_parquet(path):
        fields = "importance, inquiry and options of the details"
        raise missing_in_parquet(path, gym="IntentionGym", fields=fields, cure="give the JSON of intentions")
    fields = {"id": str, "category": str, "task": str, "missing_details": list}
    tasks: list[Task] = []
    for row, record in enumerate(read_records(path, fields=fields)):
        details = [
            _detail(path, row, number, detail) for number, detail in enumerate(record["missing_details"])
        ]
        opening = f"Category: {record['category']}\nTask: {record['task']}\nAsk me for what is missing."
        scenario = {name: record[name] for name in ("id", "category", "task")} | {"details": details}
        tasks.append(make_task("intention", index=row, opening=opening, scenario=scenario))
    return tasks


def initial_state(task: Task) -> State:
    return State(remaining=tuple(task.scenario["details"]))


def user_view(state: State) -> Mapping[str, Any]:
    return {"remaining": [dict(detail) for detail in state.remaining]}


def parse_action(text: str) -> Action:
    action = parse_any_finish(text)
    if action is not None and action.choice in ("action", "answer", "finish"):
        return action
    return Action(choice="action", content=text.strip())


def apply_action(
    task: Task, state: State, action: Action, reply: UserReply | None, *, penalty: float
) -> ActionOutcome:
    covered = [place for place in _named(reply) if place < len(state.remaining)]
    left = tuple(detail for place, detail in enumerate(state.remaining) if place not in covered)
    return ActionOutcome(
        state=State(remaining=left),
        feedback=reply.text if reply else "",
        score=_worth([state.remaining[place]["importance"] for place in covered], penalty=penalty),
        done=not left,
    )


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Covers the remaining details that share a content word with the question in their description or
    inquiry; says the first option of each."""
    task_words = stems_of_fixed(str(call.scenario["task"]))
    asked = stems_of(call.question) - task_words
    remaining = call.view["remaining"]
    covered = [
        place
        for place, detail in enumerate(remaining)
        if asked & (stems_of_fixed(f"{detail['description']} {detail['inquiry']}") - task_words)
    ]
    options = [str(remaining[place]["options"][0]) for place in covered if remaining[place]["options"]]
    text = f"I would say: {', '.join(options)}." if options else "I have no special wish there."
    return UserReply(text=text, facts={"covered": covered})


QUESTIONS = (
    "What is the purpose or goal?",
    "What budget do you have?",
    "When, and for how long: which date, duration or timeframe?",
    "Which location or place?",
    "Who is the target audience?",
    "Which format, output or style do you prefer?",
    "Which specific topic, type or aspect?",
    "How many: what size, number or length?",
    "Which tool, platform, language or method?",
    "What level of detail, skill or experience?",
    "Which source or data?",
    "Are there limits, restrictions or requirements?",
    "Which criteria or preferences?",
    "Which region or country?",
    "Which features or functionality?",
)
"""The scripted expert's questions, the same for every task."""


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks for commonly missing details in turn. At `guess_rate` it leaves a question out."""
    for question in QUESTIONS:
        if rng.random() >= guess_rate:
            yield Action(choice="action", content=question)
    yield Action(choice="finish", content="")


def random_action(task: Task, rng: random.Random) -> Action:
    return Action(choice="action", content=rng.choice(("Hello?", "Anything else?", "Really?")))


def instructions(call: UserCall) -> str:
    details = "; ".join(
        f"{place}: {detail['description']} (as in: {detail['inquiry']})"
        for place, detail in enumerate(call.view["remaining"])
    )
    return (
        f"You gave this vague task: {call.scenario['task']}\nAn assistant asks you about it. Details still "
        f"open: {details}. Say for each whether the question asks about it; none if the question is off the "
        "task. Answer the question in one short sentence, and volunteer nothing that it does not ask."
    )


def schema(call: UserCall) -> dict[str, Any]:
    flags = {f"asks_about_{place}": {"type": "boolean"} for place in range(len(call.view["remaining"]))}
    return flat_schema({"say": {"type": "string", "maxLength": SAY_LENGTH}, **flags})


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    places = range(len(call.view["remaining"]))
    covered = [place for place in places if verdict[f"asks_about_{place}"] is True]
    return UserReply(text=str(verdict["say"])[:SAY_LENGTH], facts={"covered": covered})


def make_gym(constants: PublishedConstants) -> Gym:
    return Gym(
        name="intention",
        system=SYSTEM,
        make_task=data_only,
        initial_state=initial_state,
        needs_user=every_turn,
        apply_action=partial(apply_action, penalty=constants.intention_detail_penalty),
        rule_based_reply=rule_based_reply,
        expert=expert,
        random_action=random_action,
        llm_role=LlmRole(instructions=instructions, schema=schema, read=read),
        load_tasks=load_tasks,
        user_view=user_view,
        rules=GymRules(parse_action=parse_action),
        scoring=EACH_TURN,
    )


def _named(reply: UserReply | None) -> list[int]:
    """The positions that a verdict names; none if the question is not task-related. Digit strings are
    accepted."""
    facts = reply.facts if reply else {}
    named: Any = facts.get("covered", facts.get("covered_detail_indices"))
    if not _is_list(named) or not facts.get("is_task_related", True):
        return []
    digits = (str(place) for place in named if isinstance(place, int | str))
    return [int(place) for place in digits if re.fullmatch("[0-9]{1,9}", place)]


def _worth(importances: list[int], *, penalty: float) -> float:
    if not importances:
        return 0.0
    worth = WORTH[max(importances)] - penalty * (len(importances) - 1)
    return min(1.0, max(0.0, worth))


def _detail(path: Path, row: int, number: int, detail: Any) -> dict[str, Any]:
    field = f"missing_details.{number}"
    if not isinstance(detail, dict) or any(name not in detail for name in DETAIL_FIELDS):
        raise wrong_record(path, row=row, field=field, problem=f"does not have {', '.join(DETAIL_FIELDS)}")
    importance = str(detail["importance"])
    if importance not in map(str, WORTH):
        raise wrong_record(
            path, row=row, field=f"{field}.importance", problem=f"is {importance!r}, not 1, 2 or 3"
        )
    if not _is_list(detail["options"]):
        raise wrong_record(path, row=row, field=f"{field}.options", problem="is not a list")
    return {**{name: detail[name] for name in DETAIL_FIELDS}, "importance": int(importance)}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
