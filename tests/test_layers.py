"""The order of the rooms, read from the imports themselves: data moves right, imports point left."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.syntax_trees import tree_of

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "simulators": set(),
    "actors": {"simulators"},
    "rewards": {"simulators", "actors"},
    "learners": {"simulators", "actors"},
    "cluster": {"simulators", "actors", "rewards", "learners"},
}
PACKAGE_ORDER: dict[str, list[set[str]]] = {
    "simulators": [
        {"message", "persona", "task", "input_limits", "fair_semaphore", "plug_ins"},
        {"user"},
        {"llm_client"},
        {"gym", "config", "dataset_files"},
        {"env"},
        {"tau"},
        {"gyms"},
        {"published", "gym_plugins"},
        {"users"},
        {"env_factory", "gym_check", "serving"},
        {"gymnasium_env"},
    ],
    "actors": [
        {
            "config",
            "trajectory",
            "tool_call_parser",
            "process_info",
            "gc_freeze",
            "dialogue_slots",
            "rllib_env_runner",
            "scripts",
        },
        {"chat_form"},
        {
            "renderer",
            "trajectory_table",
            "group_transport",
            "early_stop",
            "concurrency_target",
        },
        {"engines", "partial_rollouts", "group_summary"},
        {"weights", "rollout"},
        {"rollout_setup"},
        {"rollout_actor"},
    ],
    "rewards": [{"tool_call_reward"}, {"reward_functions"}, {"config"}, {"judge"}, {"scorer"}],
    "learners": [
        {"drop_reasons", "sft_config"},
        {"advantages"},
        {"loss_config", "buffer"},
        {"config"},
        {"batch", "losses"},
        {"model", "sft"},
        {"training"},
        {"policy_learner"},
        {"learner"},
    ],
    "cluster": [
        {"config", "console"},
        {"run_folder", "ray_cluster"},
        {"preflight"},
        {"workers"},
        {"evaluation", "sft"},
        {"tracking", "report"},
        {"driver"},
        {"status", "chaos", "jobs", "play"},
        {"cli"},
    ],
}
"""Per room, its packages and files: each imports only from earlier rows, and not from its own row."""

FOLDERS = {*MAY_IMPORT, "tests", "recipes", "docs", "bench", "examples", "requirements"}
FILES = {"README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "pyproject.toml"}

MAX_FILES_PER_FOLDER = 20
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 300
"""Gyms apart: a gym is one file."""

STANDS_ONLY_IN: dict[str, list[str]] = {
    "ray.rllib": [
        "actors/rllib_env_runner.py",
        "learners/learner.py",
        "cluster/driver/algorithm*.py",
        "cluster/driver/rllib_checkpoints.py",
        "cluster/driver/tune_tracking.py",
    ],
    "ray.serve": ["simulators/serving/*.py", "cluster/*.py"],
    "vllm": ["actors/engines/vllm_*.py", "actors/weights/*.py"],
    "openai": ["simulators/llm_client/client.py"],
    "wandb": ["cluster/tracking/wandb/*.py"],
    "wandb_workspaces": ["cluster/tracking/wandb/workspace.py"],
    "peft": ["learners/model/lora.py"],
    "cryptography": ["cluster/ray_cluster/encrypted_env.py"],
    "ray.job_submission": ["cluster/jobs/client.py"],
    "trl": ["tests/*", "bench/*"],
}
"""Package to the files that may import it, at any depth of the code."""

NOT_AT_IMPORT_TIME: dict[str, set[str]] = {
    "simulators/*": {"torch", "vllm", "transformers"},
    "rewards/*": {"torch", "vllm", "transformers"},
    "*/config.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
    "cluster/config/*.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
    "learners/*_config.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
    "cluster/cli/*.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
}
"""Files to the packages that they may import inside a function at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One import statement: `module` is what it names, `path` where it stands."""

    path: str
    line: int
    module: str
    runs_on_import: bool
    """False inside a function and under `if TYPE_CHECKING`."""


def _walk(node: ast.AST, *, path: str, runs_on_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(path=path, line=child.lineno, module=alias.name, runs_on_import=runs_on_import)
        elif isinstance(child, ast.ImportFrom):
            # `from ray import serve` names ray.serve as much as `from ray.serve import run` does.
            for alias in child.names:
                module = f"{'.' * child.level}{child.module or ''}.{alias.name}"
                yield Import(path=path, line=child.lineno, module=module, runs_on_import=runs_on_import)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from _walk(child, path=path, runs_on_import=runs_on_import and not deferred)


def _imports_of_the_rooms() -> list[Import]:
    files = [file for room in MAY_IMPORT for file in sorted((ROOT / room).rglob("*.py"))]
    return [
        found
        for file in files
        for found in _walk(tree_of(file), path=file.relative_to(ROOT).as_posix(), runs_on_import=True)
    ]


IMPORTS = _imports_of_the_rooms()


def _is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _places(offences: list[Import]) -> list[str]:
    return [f"{offence.path}:{offence.line} imports {offence.module}" for offence in offences]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_to_its_left(room: str) -> None:
    forbidden = (MAY_IMPORT.keys() | {"tests", "bench"}) - MAY_IMPORT[room] - {room}
    mine = [found for found in IMPORTS if found.path.startswith(f"{room}/")]
    assert not _places([found for found in mine if found.module.split(".")[0] in forbidden])


def test_rooms_are_imported_by_their_full_names() -> None:
    assert not _places([found for found in IMPORTS if found.module.startswith(".")])


def _module(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _part(module: str) -> tuple[str, str]:
    """(room, package or file in it) of a module's name."""
    room, _, rest = module.partition(".")
    return room, rest.partition(".")[0]


@pytest.mark.parametrize("room", PACKAGE_ORDER)
def test_a_package_imports_only_from_earlier_ones(room: str) -> None:
    level = {name: row for row, names in enumerate(PACKAGE_ORDER[room]) for name in names}
    offences = []
    for found in IMPORTS:
        importer = _part(_module(found.path))
        imported = _part(found.module)
        is_within = importer[0] == imported[0] == room and importer[1] != imported[1]
        if is_within and level.get(imported[1], -1) >= level.get(importer[1], 99):
            offences.append(found)
    assert not _places(offences)


@pytest.mark.parametrize("room", PACKAGE_ORDER)
def test_every_package_and_file_of_a_room_has_its_place_in_the_order(room: str) -> None:
    there = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    there |= {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
    assert there == {name for names in PACKAGE_ORDER[room] for name in names}


def _cycle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where none do."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    """At any depth of the code: an import inside a function is an arrow, too."""
    modules = {_module(found.path) for found in IMPORTS}
    graph: dict[str, set[str]] = {}
    for found in IMPORTS:
        importer = _module(found.path)
        imported = found.module if found.module in modules else found.module.rpartition(".")[0]
        if imported in modules and imported != importer:
            graph.setdefault(importer, set()).add(imported)
    assert not _cycle(graph)


def _top_level_names() -> dict[str, list[str]]:
    """Public classes and types of the five rooms to the files that define them, gyms' own files apart."""
    names: dict[str, list[str]] = {}
    for path in sorted(file for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(("simulators/gyms/", "simulators/published/")):
            continue
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, []).append(where)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name[0].isupper() and not name.isupper():
                    names.setdefault(name, []).append(where)
    return {name: files for name, files in names.items() if not name.startswith("_")}


def test_no_public_class_name_stands_twice() -> None:
    assert not {name: files for name, files in _top_level_names().items() if len(files) > 1}


def test_a_folder_holds_at_most_twenty_files() -> None:
    folders = [path for room in MAY_IMPORT for path in (ROOT / room, *(ROOT / room).rglob("*/"))]
    counts = {path.relative_to(ROOT).as_posix(): len(list(path.glob("*.py"))) for path in folders}
    assert not {folder: count for folder, count in counts.items() if count > MAX_FILES_PER_FOLDER}


def test_files_and_functions_stay_short() -> None:
    long: list[str] = []
    for path in (file for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")):
        text, where = path.read_text(), path.relative_to(ROOT).as_posix()
        is_gym = path.parent.name == "gyms"
        if not is_gym and text.count("\n") > MAX_FILE_LINES:
            long.append(f"{where}: {text.count(chr(10))} lines")
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{where}:{node.lineno} {node.name}: {length} lines")
    assert not long


@pytest.mark.parametrize("package", STANDS_ONLY_IN)
def test_a_heavy_dependency_stands_in_few_named_files(package: str) -> None:
    users = [found for found in IMPORTS if _is_part_of(found.module, package)]
    allowed = STANDS_ONLY_IN[package]
    assert not _places([found for found in users if not any(fnmatch(found.path, name) for name in allowed)])


@pytest.mark.parametrize("files", NOT_AT_IMPORT_TIME)
def test_light_files_load_nothing_heavy(files: str) -> None:
    light = [found for found in IMPORTS if found.runs_on_import and fnmatch(found.path, files)]
    heavy = NOT_AT_IMPORT_TIME[files]
    assert not _places([found for found in light if found.module.split(".")[0] in heavy])


def test_top_level_holds_nothing_but_the_rooms_and_what_stands_beside_them() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = {Path(line).parts[0] for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    # my_gym.py and the like: somebody tries out a gym of their own, as docs/add-a-gym.md says.
    unexpected = {name for name in names if not name.startswith((".", "my_"))} - FOLDERS - FILES
    assert not unexpected


@pytest.mark.parametrize("module", ["cluster.cli.main", "cluster.config.run_config"])
def test_the_command_line_starts_without_heavy_packages(module: str) -> None:
    """Bad input must be refused in under 3 s, so neither file may reach these, however indirectly."""
    heavy = ["torch", "ray", "vllm", "transformers", "pyarrow", "wandb"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "[]"
