"""The order of the rooms, read from the imports themselves: data moves right, imports point left."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "simulators": set(),
    "actors": {"simulators"},
    "rewards": {"simulators", "actors"},
    "learners": {"simulators", "actors"},
    "cluster": {"simulators", "actors", "rewards", "learners"},
}
FOLDERS = {*MAY_IMPORT, "tests", "recipes", "docs", "bench", "requirements"}
FILES = {"README.md", "LICENSE", "Makefile", "pyproject.toml"}

STANDS_ONLY_IN: dict[str, list[str]] = {
    "ray.rllib": ["actors/rollout_actor.py", "learners/learner.py", "cluster/algorithm*.py"],
    "ray.serve": ["simulators/serve*.py", "cluster/*.py"],
    "vllm": ["actors/vllm_*.py", "actors/weights/weight_receiver.py"],
    "openai": ["simulators/llm_client/client.py"],
    "wandb": ["cluster/wandb_*.py", "cluster/dashboard.py"],
    "wandb_workspaces": ["cluster/dashboard.py"],
    "peft": ["learners/model/lora.py"],
    "cryptography": ["cluster/sealed.py"],
    "ray.job_submission": ["cluster/jobs.py"],
    "trl": ["tests/*", "bench/*"],
}
"""Package to the files that may import it, at any depth of the code."""

NOT_AT_IMPORT_TIME: dict[str, set[str]] = {
    "simulators/*": {"torch", "vllm", "transformers"},
    "rewards/*": {"torch", "vllm", "transformers"},
    "*/config.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
    "learners/*_config.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
    "cluster/cli.py": {"torch", "vllm", "transformers", "ray", "pyarrow"},
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
        for found in _walk(
            ast.parse(file.read_text()), path=file.relative_to(ROOT).as_posix(), runs_on_import=True
        )
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


@pytest.mark.parametrize("module", ["cluster.cli", "cluster.config"])
def test_the_command_line_starts_without_heavy_packages(module: str) -> None:
    """Bad input must be refused in under 3 s, so neither file may reach these, however indirectly."""
    heavy = ["torch", "ray", "vllm", "transformers", "pyarrow", "wandb"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "[]"
