"""File reader of the published function tasks, and their conversion to tasks of the default rules.

Published functions divide and take powers, so a value may be fractional; exam inputs are drawn among those
with whole values."""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulators.dataset_files import is_parquet, read_records, wrong_record
from simulators.gyms.arithmetic import VARIABLES, parse_rule
from simulators.task import Task, TaskKey

OPENING = "I hold a function: all four in one rule of + - * / and powers. Ask me for its values."
EXAM_SIZE = 3
MAX_EXAM_VALUE = 99_999
MAX_DRAWS = 5000
DECIMALS = 4
FIELDS: dict[str, Any] = {"id": str, "rule": str, "test_case": list, "expected_result": float}


def read_functions(path: Path) -> list[dict[str, Any]]:
    """The released JSON list of {id, rule, test_case, expected_result}, every rule read once. Raises
    ValueError with file, row and field."""
    if is_parquet(path):
        raise ValueError(
            f"data={path}: Parquet rows of FunctionGym carry no rule and test_case: give the JSON file"
        )
    found = [{name: record[name] for name in FIELDS} for record in read_records(path, fields=FIELDS)]
    for row, record in enumerate(found):
        case = record["test_case"]
        if len(case) != len(VARIABLES) or not all(map(_is_number, case)):
            raise wrong_record(path, row=row, field="test_case", problem="is not four numbers")
        try:
            parse_rule(record["rule"])
        except ValueError as error:
            raise wrong_record(path, row=row, field="rule", problem=f"cannot be read ({error})") from error
    return found


def load_tasks(path: Path) -> list[Task]:
    """The published functions as tasks of the default rules: an exam replaces their test case."""
    return [
        Task(
            key=TaskKey(gym="function", split="train", index=row, seed=0, difficulty=0),
            opening=OPENING,
            scenario={"rule": record["rule"], "exam": _draw_exam(path, row, record)},
        )
        for row, record in enumerate(read_functions(path))
    ]


def value_of(rule: str, inputs: Sequence[int]) -> float | None:
    """The rule's value: an int if it is whole, else rounded to 4 decimals; None if it has none."""
    try:
        value = parse_rule(rule)(inputs)
    except ArithmeticError:
        return None
    if not math.isfinite(value) or abs(value) > 1e15:
        return None
    return int(value) if value == int(value) else round(value, DECIMALS)


def _draw_exam(path: Path, row: int, record: Mapping[str, Any]) -> list[list[int]]:
    """Three inputs with whole values, all different if the draws find such."""
    rng = random.Random(f"function-{record['id']}")
    exam: dict[float, list[int]] = {}
    spare: list[list[int]] = []
    for _ in range(MAX_DRAWS):
        inputs = [rng.randint(1, 9) for _ in VARIABLES]
        value = value_of(record["rule"], inputs)
        if not isinstance(value, int) or abs(value) > MAX_EXAM_VALUE:
            continue
        if value in exam:
            spare.append(inputs)
        exam.setdefault(value, inputs)
        if len(exam) == EXAM_SIZE:
            return list(exam.values())
    drawn = [*exam.values(), *spare][:EXAM_SIZE]
    if len(drawn) < EXAM_SIZE:
        raise wrong_record(path, row=row, field="rule", problem="has no three whole values on inputs 1 to 9")
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
