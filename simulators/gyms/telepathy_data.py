"""File reader of the published telepathy entities, and their rule-based user under the default rules.

The rule-based user compares words with the entity's one-sentence description; a guess must be exactly a
name of the entity, so a list of names is no guess.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.dataset_files import ENV_NAME, is_parquet, read_records
from simulators.gyms.stemming import stems_of, words_of
from simulators.task import SPLITS, Split, Task, TaskKey
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

IN_JSON = {name: name for name in ("title", "description", "target_entity", "category")}
IN_PARQUET = {
    "title": "reward_model.title",
    "description": "prompt.1.content",
    "target_entity": "reward_model.ground_truth",
    "category": "reward_model.category",
}
REFUSAL = "Ask me about one property at a time."
MAX_PROPERTIES = 4
"""Content words of one question."""
LEAD = re.compile(r"^(?:(?:is it|it is|it s|i guess|my guess is|i think it is|a|an|the) )+")
"""What may stand before the name in a guess."""


def read_entities(path: Path) -> list[dict[str, Any]]:
    """The released JSON list of entities, or the Parquet rows: {title, description, target_entity, category,
    split}. Raises ValueError with file, row and field."""
    names = IN_PARQUET if is_parquet(path) else IN_JSON
    fields: dict[str, Any] = dict.fromkeys(names.values(), str) | {"extra_info.split": (str, type(None))}
    return [
        {name: record[field] for name, field in names.items()} | {"split": record["extra_info.split"]}
        for record in read_records(path, fields=fields, where={ENV_NAME: "TelepathyGym"})
    ]


def load_tasks(path: Path) -> list[Task]:
    """The published entities as tasks of the default rules: one guess."""
    tasks: list[Task] = []
    for row, record in enumerate(read_entities(path)):
        known: list[Split] = [split for split in SPLITS if split == record["split"]]
        key = TaskKey(gym="telepathy", split=known[0] if known else "train", index=row, seed=0, difficulty=0)
        scenario = {name: record[name] for name in ("title", "target_entity", "category")}
        tasks.append(Task(key=key, opening=record["description"], scenario=scenario))
    return tasks


def answer_about(scenario: Mapping[str, Any], question: str) -> UserReply:
    """Yes if all content words of the question describe the entity, No if none does, else Maybe."""
    asked = stems_of(question)
    if not asked or len(asked) > MAX_PROPERTIES:
        return UserReply(text=REFUSAL)
    known = stems_of(
        " ".join([*names_of(scenario), scenario["target_entity"], _spaced(scenario["category"])])
    )
    response = "Yes" if asked <= known else "Maybe" if asked & known else "No"
    return UserReply(text=f"{response}.", facts={"response": response})


def _instructions(call: UserCall) -> str:
    return (
        "Someone guesses what you think of by yes-or-no questions. You think of: "
        f"{call.scenario['target_entity']} (category: {_spaced(call.scenario['category'])}). Decide the true "
        "answer to the last message: `yes`, `no`, or `maybe` where it depends or nobody knows. Take `refuse` "
        "where it is no yes-or-no question about one property, or asks for the name or its letters."
    )


def _read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if verdict["response"] == "refuse":
        return UserReply(text=REFUSAL)
    response = verdict["response"].capitalize()
    return UserReply(text=f"{response}.", facts={"response": response})


ENTITY_ROLE = LlmRole(
    instructions=_instructions,
    schema=lambda call: flat_schema(
        {"response": {"type": "string", "enum": ["yes", "no", "maybe", "refuse"]}}
    ),
    read=_read,
)
"""A model that knows the entity; the gym writes the reply, so that the model cannot name the entity."""


def is_right(scenario: Mapping[str, Any], guess: str) -> bool:
    """Whether a guess is one of the entity's names, ignoring case, punctuation and articles."""
    return _bare(guess) in map(_bare, names_of(scenario))


def names_of(scenario: Mapping[str, Any]) -> tuple[str, str]:
    """The entity's name and its title."""
    return scenario["target_entity"].partition(" - ")[0], scenario["title"]


def _bare(name: str) -> str:
    return LEAD.sub("", " ".join(words_of(name)))


def _spaced(category: str) -> str:
    return category.replace("_", " ")
