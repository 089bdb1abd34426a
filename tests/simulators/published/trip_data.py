"""A trip in the layout of the released loader, whose files are not public."""

import json
from pathlib import Path
from typing import Any

from simulators.published import PUBLISHED
from simulators.task import Task


def aspect(name: str, *, letter: str) -> dict[str, Any]:
    options = {
        "correct": [
            {"id": f"{letter}{n}", "cost": 100 + n, "type": "correct", "reason": "r"} for n in (1, 2)
        ],
        "wrong": [{"id": f"{letter}{n}", "cost": 50, "type": "wrong", "reason": "r"} for n in (3, 4)],
        "noise": [{"id": f"{letter}{n}", "cost": 500, "type": "noise", "reason": "r"} for n in (5, 6)],
    }
    return {
        "preferences": [
            [name, "breakfast", "Breakfast is included", f"I get hungry early ({name}).", "more"],
            [name, "rating", "The rating is high", f"Friends must not laugh at me ({name}).", "more"],
        ],
        "options": options,
        "arguments": {"city": "Oslo", "date": "May 4"},
        "correct_ids": [f"{letter}1", f"{letter}2"],
        "best_id": f"{letter}1",
    }


SCENARIO = {
    "scenario": "x",
    "dimensions": ["flight", "hotel"],
    "wanted_num": 2,
    "initial_description": "I fly to Oslo on May 4 and need a hotel.",
    "flight": aspect("flight", letter="F"),
    "hotel": aspect("hotel", letter="H"),
}


def write_trip(folder: Path, scenario: dict[str, Any] | None = None) -> Path:
    path = folder / "travelgym_data_22.json"
    path.write_text(json.dumps({"flight:2-1|hotel:2-1": scenario or SCENARIO}))
    return path


def load_trip(folder: Path) -> Task:
    (task,) = PUBLISHED["travel"].load_tasks(write_trip(folder))
    return task
