"""Loader of published customer service tasks: UserRL's JSON and Parquet files (retail and airline) and tau2's
retail tasks.

The path is the tasks file, or a folder that holds it. The databases are located automatically: `db.json` next
to the tasks, or `retail/` and `airline/` (in a folder `tau/` or not) next to them or up to three folders
above. Each has `policy.md` next to its tables, which the agent is shown.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from simulators.dataset_files import is_parquet, read_records, wrong_record
from simulators.task import SPLITS, Split, Task, TaskKey
from simulators.tau.customer_phrasing import make_wish
from simulators.tau.database import Database
from simulators.tau.grading import replay
from simulators.tau.instruction_parser import customer_details, first_person
from simulators.tau.shop_registry import TABLES, TOOLS, read_tables
from simulators.tau.tools import TauToolCall, run_call

TASK_FILES = ("tasks*.json", "tau*.json", "gyms/tau*.json", "userrl/gyms/tau*.json")
"""Patterns of task files in a folder, and in the folders above a Parquet file."""
DATABASE_FOLDERS = ("", "tau", "data/tau")
NUM_FOLDERS_UP = 4
USERRL_FIELDS = {
    "id": str,
    "obs": str,
    "info.task.user_id": str,
    "info.task.instruction": str,
    "info.task.actions": list,
    "info.task.outputs": list,
}
TAU2_FIELDS = {
    "id": str,
    "user_scenario.instructions.reason_for_call": str,
    "user_scenario.instructions.known_info": str,
    "user_scenario.instructions.task_instructions": str,
    "evaluation_criteria.actions": (list, type(None)),
    "evaluation_criteria.communicate_info": (list, type(None)),
}
OPENING = "Hi! I need some help, please."
"""First line if the file has none."""


def load_tasks(path: Path) -> list[Task]:
    """All tasks of a file. Raises ValueError with file, row, field and cure."""
    path = path.resolve()
    if path.is_dir():
        path = _tasks_in(path)
    if is_parquet(path):
        return _parquet_tasks(path)
    rows = read_records(path, fields={"id": str})
    if "evaluation_criteria" in rows[0]:
        rows = read_records(path, fields=TAU2_FIELDS)
        return [_task(path, index, _from_tau2(path, index, row)) for index, row in enumerate(rows)]
    rows = read_records(path, fields=USERRL_FIELDS)
    return [_task(path, index, _from_userrl(path, index, row)) for index, row in enumerate(rows)]


def _tasks_in(folder: Path) -> Path:
    for pattern in TASK_FILES:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ValueError(
        f"data={folder}: holds no tasks file ({', '.join(TASK_FILES)}): give the file's own path"
    )


def _parquet_tasks(path: Path) -> list[Task]:
    """The rows name their tasks by id; the tasks themselves are in the gym's JSON files."""
    rows = read_records(path, fields={"reward_model.id": str}, where={"reward_model.env_name": "TauGym"})
    folders = [path.parent, *path.parents[1 : 1 + NUM_FOLDERS_UP]]
    files = [file for folder in folders for pattern in TASK_FILES for file in sorted(folder.glob(pattern))]
    known: dict[str, Task] = {}
    for file in dict.fromkeys(files):
        if "evaluation_criteria" not in read_records(file, fields={"id": str})[0]:
            known |= {task.scenario["id"]: task for task in load_tasks(file)}
    tasks: list[Task] = []
    for index, row in enumerate(rows):
        if row["reward_model.id"] not in known:
            problem = f"names task {row['reward_model.id']!r}, which no tau*.json next to it holds"
            raise wrong_record(path, row=index, field="reward_model.id", problem=problem)
        tasks.append(known[row["reward_model.id"]])
    return tasks


def _from_userrl(path: Path, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    instruction = row["info.task.instruction"]
    domain = "airline" if "airline" in row["id"] else "retail"
    is_template = "-train-" in row["id"] and domain == "retail"
    return {
        "id": row["id"],
        "domain": domain,
        "source": str(_database_folder(path.parent, domain)),
        "user_id": row["info.task.user_id"],
        "known": customer_details(instruction),
        "request": "" if is_template else first_person(instruction),
        "line": row["obs"],
        "gold": _gold(path, index, row["info.task.actions"], field="info.task.actions", key="kwargs"),
        "outputs": _outputs(path, index, row["info.task.outputs"], field="info.task.outputs"),
    }


def _from_tau2(path: Path, index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    fields = list(TAU2_FIELDS)
    reason, info, manner, actions, outputs = (row[field] for field in fields[1:])
    source = _database_folder(path.parent, "retail")
    gold = _gold(path, index, actions or [], field=fields[4], key="arguments")
    known = customer_details(info)
    return {
        "id": row["id"],
        "domain": "retail",
        "source": str(source),
        "user_id": _user_of(source, known, gold),
        "known": known,
        "request": first_person(" ".join(text for text in (reason, manner) if len(text) > 1)),
        "line": OPENING,
        "gold": gold,
        "outputs": _outputs(path, index, outputs or [], field=fields[5]),
    }


def _task(path: Path, index: int, scenario: dict[str, Any]) -> Task:
    source, domain = Path(scenario["source"]), scenario["domain"]
    database = Database(tables=read_tables(str(source), domain))
    user = database.find("users", scenario["user_id"])
    if user is not None and "name" not in scenario["known"]:
        scenario["known"]["name"] = f"{user['name']['first_name']} {user['name']['last_name']}"
    wishes: list[dict[str, Any]] = []
    for action in scenario["gold"]:
        after = replay(database, [action], TOOLS[domain])
        if after.state_hash() != database.state_hash():
            wishes.append(make_wish(database, action["name"], action["arguments"]))
        database = after
    if not wishes and not scenario["request"]:
        scenario["request"] = "I want what I wrote to you about."
    named: list[Split] = [name for name in SPLITS if name in path.name]
    key = TaskKey(gym="tau", split=named[0] if named else "test", index=index, seed=0, difficulty=2)
    opening = f"{_policy(source)}\n\nThe customer: {scenario['line']}"
    return Task(key=key, opening=opening, scenario={**scenario, "wishes": wishes})


@cache
def _policy(folder: Path) -> str:
    path = folder / "policy.md"
    if not path.is_file():
        raise ValueError(f"data={path}: no such file: put the shop's policy next to its tables")
    return path.read_text(encoding="utf-8").strip()


def _gold(path: Path, index: int, actions: list[Any], *, field: str, key: str) -> list[dict[str, Any]]:
    for action in actions:
        if (
            not isinstance(action, dict)
            or not isinstance(action.get("name"), str)
            or not isinstance(action.get(key), dict)
        ):
            problem = f"holds an action without a name or without {key}"
            raise wrong_record(path, row=index, field=field, problem=problem)
    return [{"name": action["name"], "arguments": action[key]} for action in actions]


def _outputs(path: Path, index: int, outputs: list[Any], *, field: str) -> list[str]:
    if not all(isinstance(output, str) for output in outputs):
        raise wrong_record(path, row=index, field=field, problem="holds something that is no text")
    return outputs


@cache
def _database_folder(tasks_folder: Path, domain: str) -> Path:
    """The nearest folder with this shop's tables, searched from the folder of the tasks."""
    if domain == "retail" and (tasks_folder / "db.json").is_file():
        return tasks_folder
    for folder in [tasks_folder, *tasks_folder.parents][:NUM_FOLDERS_UP]:
        for name in DATABASE_FOLDERS:
            candidate = folder / name / domain
            if all((candidate / f"{table}.json").is_file() for table in TABLES[domain]):
                return candidate
    tables = ", ".join(f"{table}.json" for table in TABLES[domain])
    raise ValueError(
        f"data={tasks_folder}: no database of the {domain} shop near it: put {tables} and policy.md into a "
        f"folder {domain}/ or tau/{domain}/ next to the tasks"
    )


def _user_of(source: Path, known: Mapping[str, str], gold: list[dict[str, Any]]) -> str:
    """The user that the instruction or the gold actions are about; empty if unknown."""
    if "user_id" in known:
        return known["user_id"]
    database = Database(tables=read_tables(str(source), "retail"))
    for action in gold:
        arguments = action["arguments"]
        if "user_id" in arguments:
            return arguments["user_id"]
        if order := database.find("orders", str(arguments.get("order_id"))):
            return order["user_id"]
    first, _, last = known.get("name", "").partition(" ")
    arguments = {"first_name": first, "last_name": last, "zip": known.get("zip", "")}
    _, text = run_call(
        database, TauToolCall(name="find_user_id_by_name_zip", arguments=arguments), TOOLS["retail"]
    )
    return "" if text.startswith("Error") else text
