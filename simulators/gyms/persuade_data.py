"""File reader of the published persuasion tasks, and the rule-based judgement of free-text arguments.

A published row has no dossier. The rules only check that an answer repeats words of the current reason with a
counter-stance; whether it is good needs a model.
"""

import re
from pathlib import Path

from simulators.dataset_files import is_parquet, read_records
from simulators.task import Task, TaskKey
from simulators.user import UserCall

COUNTER = re.compile(
    r"\b(but|however|not|no|never|nor|yet|instead|although|though|rather|contrary|actually|false|wrong|fails?"
    r"|ignores?|overlooks?|otherwise|disagree|unlikely|despite|\w+n't)\b",
    re.I,
)
MIN_TAKEN_UP = 3
"""Content words of a reason that a free-text answer must repeat."""
MIN_OWN = 3
"""Content words that it must add."""
TRIES_IN_WORDS = 2
"""Tries a reason of a published row has; the second is worth half."""


def read_views(path: Path, *, num_steps: int) -> list[Task]:
    """Published rows (JSON or Parquet) to tasks: the reasons are the main sentences of the argument, and
    share the `num_steps` of the stance. Raises ValueError with file, row and field."""
    root = "reward_model." if is_parquet(path) else ""
    fields = {f"{root}{name}": str for name in ("id", "claim", "argument")}
    rows = read_records(path, fields=fields, where={"reward_model.env_name": "PersuadeGym"})
    return [
        _task_of(
            index, claim=row[f"{root}claim"].strip(), argument=row[f"{root}argument"], num_steps=num_steps
        )
        for index, row in enumerate(rows)
    ]


def _task_of(index: int, *, claim: str, argument: str, num_steps: int) -> Task:
    paragraphs = [part for part in re.split(r"\n\s*\n", argument) if part.strip()]
    parts = [_sentences(part)[0] for part in paragraphs] if len(paragraphs) >= 3 else _sentences(argument)
    parts = [part for part in dict.fromkeys(parts) if len(content_of(part)) > MIN_TAKEN_UP] or [claim]
    num_reasons = next(number for number in (6, 3, 2, 1) if number <= len(parts))
    reasons = [
        {"topic": "", "text": text, "weight": num_steps // num_reasons} for text in parts[:num_reasons]
    ]
    hidden = {"not_held": [], "evidence": {}, "hearsay": {}, "tries": TRIES_IN_WORDS}
    return Task(
        key=TaskKey(gym="persuade", split="train", index=index, seed=0, difficulty=0),
        opening=f'I hold this view: "{claim}" Change my mind.',
        scenario={"claim": claim, "reasons": reasons, **hidden},
    )


def takes_up(call: UserCall) -> bool:
    """Whether a free text counters the current reason, and this reason more than all others together."""
    held = [set(content_of(reason["text"])) for reason in call.scenario["reasons"]]
    said = set(content_of(call.question))
    shared = [len(said & words) for words in held]
    at = call.view["reason"]
    others = set[str]().union(*held) - held[at]
    is_about_it = shared[at] >= MIN_TAKEN_UP and shared.count(max(shared)) == 1 and shared[at] == max(shared)
    is_about_it = is_about_it and len(said & others) < shared[at]
    return is_about_it and len(said - held[at]) >= MIN_OWN and COUNTER.search(call.question) is not None


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part.strip()] or [text]


def content_of(text: str) -> list[str]:
    """Words of five letters or more, each once: mostly content words."""
    return list(dict.fromkeys(re.findall(r"[a-z]{5,}", text.lower())))
