"""File reader of the published turtle-soup stories, and rule-based matching of free text against a story.

Questions and answers are matched by the words that they share with the story. An answer that is mostly about
something else tells nothing.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.dataset_files import read_records, wrong_record
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.task import Task, TaskKey

COVERAGE = 0.6
"""Share of a statement's content words from which an answer tells it."""
PRECISION = 0.35
"""Share of an answer's words beyond the surface that must be of the story."""
SURE, NEAR = 0.75, 0.4
"""Share of a question's words that the story has, from which the user says yes, and no."""
LOST_CREDIT = re.compile(r"\s*(author|adapted by)\s*:", re.IGNORECASE)
FRAME = stems_of(
    "story reveals includes explains explained describes mentions concludes details protagonist actually "
    "motive even different original logically justifiable significant action act key crucial presence"
)
"""Words of the statements' frame, which are not about the story."""


def load_tasks(path: Path) -> list[Task]:
    """Tasks from the released stories (JSON), except those with a lost surface text. Raises ValueError with
    file, row and field; the gym's Parquet file holds no statements and is refused."""
    fields = {"new_title": str, "new_surface": str, "new_bottom": str, "evaluation": list}
    return [
        _load_row(path, row, record)
        for row, record in enumerate(read_records(path, fields=fields))
        if not LOST_CREDIT.match(record["new_surface"])
    ]


def _load_row(path: Path, row: int, record: Mapping[str, Any]) -> Task:
    statements: list[str] = []
    weights: list[int] = []
    for number, criterion in enumerate(record["evaluation"]):
        field = f"evaluation.{number}"
        if not isinstance(criterion, dict):
            raise wrong_record(path, row=row, field=field, problem="is no object")
        statement, score = criterion.get("statement"), criterion.get("score")
        if not isinstance(statement, str) or not stems_of(statement):
            raise wrong_record(path, row=row, field=f"{field}.statement", problem="is no text")
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 < score <= 1:
            raise wrong_record(path, row=row, field=f"{field}.score", problem="is no number in (0, 1]")
        statements.append(statement)
        weights.append(round(100 * score))  # integers: all of them together are exactly the whole
    if not sum(weights):
        raise wrong_record(path, row=row, field="evaluation", problem="has no weight")
    if not record["new_surface"].strip():
        raise wrong_record(path, row=row, field="new_surface", problem="is empty")
    key = TaskKey(gym="turtle", split="train", index=row, seed=0, difficulty=0)
    return Task(
        key=key,
        opening=f"{record['new_title']}: {record['new_surface']} What is the story behind it?",
        scenario={
            "surface": record["new_surface"],
            "bottom": record["new_bottom"],
            "statements": statements,
            "weights": weights,
        },
    )


def told_statements(scenario: Mapping[str, Any], answer_stems: frozenset[str]) -> list[str]:
    """The statements of which an answer has most of the words that the story itself has.

    None if most of an answer is about something else: a list of words tells no story. Words of the surface
    count on neither side.
    """
    surface, bottom = stems_of_fixed(scenario["surface"]), stems_of_fixed(scenario["bottom"])
    story = bottom.union(*map(stems_of_fixed, scenario["statements"])) - surface
    news = answer_stems - surface
    if not news or len(news & story) < PRECISION * len(news):
        return []
    told: list[str] = []
    for statement in scenario["statements"]:
        own = stems_of_fixed(statement) - surface - FRAME or stems_of_fixed(statement)
        telling = own & bottom or own
        if len(telling & answer_stems) >= COVERAGE * len(telling):
            told.append(statement)
    return told


def verdict_by_words(scenario: Mapping[str, Any], question: frozenset[str]) -> str:
    """Yes if one sentence of the story has nearly all words of a question, at least one of them not in the
    surface."""
    surface = stems_of_fixed(scenario["surface"])
    sentences = [*re.split(r"[.!?]", scenario["bottom"]), *scenario["statements"]]
    news = [own for text in sentences if (own := stems_of_fixed(text) - surface) & question]
    best = max((len((own | surface) & question) for own in news), default=0) / max(1, len(question))
    return "yes" if best >= SURE else "no" if best >= NEAR else "irrelevant"
