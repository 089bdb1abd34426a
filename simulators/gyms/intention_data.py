"""File reader of the published intention tasks, and matching of a detail's options in free text.

The hidden value of each detail is drawn from its options by the task's id.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.dataset_files import read_records, wrong_record
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.task import Task, TaskKey

COVERAGE = 0.7
"""Share of a value's words that name it."""


def load_tasks(path: Path) -> list[Task]:
    """Tasks from the released intentions (JSON). Raises ValueError with file, row and field; the gym's
    Parquet file holds no options and is refused."""
    fields = {"id": str, "category": str, "task": str, "missing_details": list}
    return [_load_row(path, row, record) for row, record in enumerate(read_records(path, fields=fields))]


def _load_row(path: Path, row: int, record: Mapping[str, Any]) -> Task:
    options: dict[str, list[str]] = {}
    hints: dict[str, str] = {}
    weights: dict[str, int] = {}
    for number, detail in enumerate(record["missing_details"]):
        problem = _problem_of(detail)
        if problem:
            name, what = problem
            raise wrong_record(path, row=row, field=f"missing_details.{number}{name}", problem=what)
        slot = detail["description"].strip()
        if slot in options:
            slot = f"{slot} {number}"
        options[slot], hints[slot] = detail["options"], detail["inquiry"]
        weights[slot] = int(detail["importance"])
    if not options:
        raise wrong_record(path, row=row, field="missing_details", problem="is empty")
    rng = random.Random(f"intention-{record['id']}")
    wishes = {slot: rng.choice(_statable(values)) for slot, values in options.items()}
    return Task(
        key=TaskKey(gym="intention", split="train", index=row, seed=0, difficulty=0),
        opening=f"{record['task']} (In {record['category']}; {len(options)} details are open. "
        "State them as `detail: value; detail: value`.)",
        scenario={"options": options, "hints": hints, "wishes": wishes, "weights": weights, "unsure": []},
    )


def _problem_of(detail: object) -> tuple[str, str] | None:
    """(name of the field, what is wrong) of a published detail; None if it is valid."""
    if not isinstance(detail, dict):
        return "", "is no object"
    for name in ("description", "inquiry"):
        if not isinstance(detail.get(name), str) or not detail[name].strip():
            return f".{name}", "is no text"
    if detail.get("importance") not in ("1", "2", "3"):
        return ".importance", "is not one of '1', '2', '3'"
    options = detail.get("options")
    if not isinstance(options, list) or not options:
        return ".options", "is no list of texts"
    if not all(isinstance(option, str) and option.strip() for option in options):
        return ".options", "has an option that is no text"
    return None


def _statable(values: list[str]) -> list[str]:
    """The options that the rules can distinguish from the others; all if there are none."""
    return [v for v in values if named_values(values, stems_of(v)) == {v}] or values


def named_values(values: list[str], stems: frozenset[str]) -> set[str]:
    """The values of one slot that these stems name; a value contained in a longer match is that longer
    one."""
    found = {
        value: own for value in values if len((own := stems_of_fixed(value)) & stems) >= COVERAGE * len(own)
    }
    return {value for value, own in found.items() if not any(own < other for other in found.values())}
