"""File reader of the published TravelGym tasks, with the checks of the released loader. The public release
lacks the files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.dataset_files import is_parquet, read_records, wrong_record
from simulators.published.shared_rules import make_task
from simulators.task import Task

BUDGET = "My budget is limited: of the options that suit me, I want the cheapest of each."
HIDDEN_FIELDS = ("type", "reason")
ASPECT_FIELDS: dict[str, type] = {"preferences": list, "options": dict, "correct_ids": list, "best_id": str}


def load_tasks(path: Path) -> list[Task]:
    """The released JSON object, scenario id to scenario. The released Parquet rows hold no preferences and
    no options, and are refused."""
    if is_parquet(path):
        raise ValueError(
            f"data={path}: Parquet rows of TravelGym carry no preferences, options, arguments and "
            "correct_ids: give a travelgym_data_*.json, which the public release lacks, or generate tasks"
        )
    fields = {"key": str, "dimensions": list, "initial_description": str}
    tasks: list[Task] = []
    for row, record in enumerate(read_records(path, fields=fields)):
        aspects = {str(name): _aspect(path, row, record, str(name)) for name in record["dimensions"]}
        _number_preferences(aspects)
        opening = f"{record['initial_description']}\n{BUDGET}"
        tasks.append(
            make_task(
                "travel", index=row, opening=opening, scenario={"id": record["key"], "aspects": aspects}
            )
        )
    return tasks


def _aspect(path: Path, row: int, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One aspect's part of a record, checked and laid out for the rules."""
    part = record.get(name)
    if not isinstance(part, dict):
        raise wrong_record(path, row=row, field=name, problem="is missing, though `dimensions` names it")
    for field, kind in ASPECT_FIELDS.items():
        if not isinstance(part.get(field), kind):
            raise wrong_record(path, row=row, field=f"{name}.{field}", problem=f"is not a {kind.__name__}")
    if not re.fullmatch(r"[ACFHR][0-9]+", part["best_id"]):
        problem = "is not one of the letters ACFHR and a number"
        raise wrong_record(path, row=row, field=f"{name}.best_id", problem=problem)
    options = [option for group in ("correct", "wrong", "noise") for option in part["options"].get(group, [])]
    if not all(isinstance(option, dict) and "id" in option for option in options):
        raise wrong_record(path, row=row, field=f"{name}.options", problem="holds an option without an id")
    return {
        "preferences": [
            _preference(path, row, name, number, entry) for number, entry in enumerate(part["preferences"])
        ],
        "options": [
            {field: value for field, value in option.items() if field not in HIDDEN_FIELDS}
            for option in options
        ],
        "arguments": part.get("arguments"),
        "correct_ids": part["correct_ids"],
        "best_id": part["best_id"],
    }


def _preference(path: Path, row: int, name: str, number: int, entry: Any) -> dict[str, str]:
    """A released preference is a list: aspect, subcategory, preference, hint, and more that is not used."""
    if not isinstance(entry, list) or len(entry) < 4:
        field = f"{name}.preferences.{number}"
        problem = "is not [aspect, subcategory, preference, hint]"
        raise wrong_record(path, row=row, field=field, problem=problem)
    return dict(zip(("aspect", "subcategory", "preference", "hint"), map(str, entry[:4]), strict=True))


def _number_preferences(aspects: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives all preferences of a trip the released ids: P1, P2 …"""
    wishes = [wish for aspect in aspects.values() for wish in aspect["preferences"]]
    for number, wish in enumerate(wishes, 1):
        wish["id"] = f"P{number}"
