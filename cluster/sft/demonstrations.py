"""Sources of demonstrations: scripted experts, the best trajectories of earlier runs, ShareGPT files.

Every source gives tables in the object store. Tasks read and render in parallel with the driver, which holds
references and counts.
"""

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from actors.renderer import Renderer
from actors.trajectory import GroupOrder
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.console.progress import stage_progress
from cluster.ray_cluster.start import task_on_driver_node
from cluster.run_folder.paths import RunFolder
from cluster.sft.demonstration_cache import DemonstrationCache
from cluster.workers.play_orders import OrderPlayer
from learners.sft.batches import sample_lengths, without_overlong
from learners.sft.best_trajectories import best_trajectories, load_trajectories
from learners.sft.sharegpt import SharedDialogue, read_dialogues
from learners.sft.sharegpt_table import dialogues_table
from simulators.task import TaskSource

ROWS_PER_TASK = 512
"""Rows of a file that one task renders. Fixed, so that the order of the samples is the same everywhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCounts:
    """What a task made, in numbers."""

    num_trajectories: Mapping[str, int]
    """By the table's `gym`: of a file, its name."""
    num_samples: int
    num_overlong: int
    """Trajectories that were left out, since the policy's context does not hold them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstrationSet:
    """All that is imitated, as references in a fixed order, and what the driver knows of it."""

    tables: Sequence[ray.ObjectRef]
    num_samples: Mapping[str, int]
    """By source, except the experts, whose failures only the learners know."""


def gather_demonstrations(
    config: RunConfig, *, player: OrderPlayer, policy_folder: str, has_begun: bool = False
) -> DemonstrationSet:
    """Asks every source that the recipe names. `has_begun` says that the policy has imitated some of them:
    experts' dialogues that failed are not tried again then. Raises `BadInput` for a source that cannot be
    used or gives nothing."""
    parts: dict[str, list[tuple[ray.ObjectRef, TaskCounts]]] = {}
    # Before the experts play, which takes longest: what is refused is refused at once.
    if config.sft.runs:
        parts["runs"] = _from_runs(config, policy_folder=policy_folder)
    if config.sft.files:
        parts["files"] = _from_files(config, policy_folder=policy_folder)
    experts = config.sft.num_demonstrations > 0
    played = _from_experts(config, player=player, has_begun=has_begun) if experts else []
    return DemonstrationSet(
        tables=[*played, *(table for part in parts.values() for table, _ in part)],
        num_samples={name: sum(made.num_samples for _, made in part) for name, part in parts.items()},
    )


def _from_experts(config: RunConfig, *, player: OrderPlayer, has_begun: bool) -> list[ray.ObjectRef]:
    """Rollouts with the scripted expert in place of the engine; cached ones are not played again."""
    seed = config.run.seed
    source = TaskSource(config.gyms.trained, split="train", seed=seed, difficulty=config.gyms.difficulty)
    orders = [
        GroupOrder(group_id=i, task_key=source.draw(), group_size=1, seed=seed)
        for i in range(config.sft.num_demonstrations)
    ]
    folder = RunFolder.of(config).demonstrations
    files = DemonstrationCache(folder)
    missing = files.missing(orders, are_failed_missing=not has_begun)
    if len(missing) < len(orders):
        info(f"{len(orders) - len(missing)} demonstrations are in {folder} from before")
    chunks = files.files_for(missing)
    with stage_progress("demonstrations", total=len(missing)) as advance:
        for name, table in player.sample(chunks, policy=config.sft.demonstrator):
            files.add(name, table)
            advance(len(chunks[name]), "")
    files.finish()
    return files.tables


def _from_runs(config: RunConfig, *, policy_folder: str) -> list[tuple[ray.ObjectRef, TaskCounts]]:
    """The best trajectories of earlier runs, of the gyms that are trained on and no other."""
    gyms, max_tokens = list(config.gyms.trained), config.engine.max_model_len
    table, made = task_on_driver_node(_load_best, num_returns=2).remote(
        config.sft.runs,
        gyms=gyms,
        per_gym=config.sft.best_per_gym,
        policy_folder=policy_folder,
        max_tokens=max_tokens,
    )
    best = _result(made, key="sft.runs")
    if not best.num_samples:
        raise BadInput(
            f"sft.runs: nothing in {', '.join(map(str, config.sft.runs))} can be imitated: no dialogue on a "
            f"training task of {', '.join(gyms)} ended with a score above 0 within "
            f"engine.max_model_len={max_tokens} tokens: leave the runs out"
        )
    counts = ", ".join(f"{gym} {best.num_trajectories.get(gym, 0)}" for gym in gyms)
    info(f"best of {len(config.sft.runs)} run(s): {counts}{_overlong([best], max_tokens=max_tokens)}")
    return [(table, best)]


def _from_files(config: RunConfig, *, policy_folder: str) -> list[tuple[ray.ObjectRef, TaskCounts]]:
    """Dialogues of files, rendered for this policy, some hundred in a task and a task a core."""
    max_tokens = config.engine.max_model_len
    chunks, num_rows = _read_files(config.sft.files)
    task = task_on_driver_node(_render_rows, num_returns=2)
    running: dict[ray.ObjectRef, tuple[int, ray.ObjectRef]] = {}
    done: dict[int, tuple[ray.ObjectRef, TaskCounts]] = {}
    with stage_progress("dialogues of files", total=num_rows) as advance:
        while chunks or running:
            while chunks and len(running) < (os.cpu_count() or 1):
                file, rows = chunks.popleft()  # rendered rows need not stay in the object store
                table, made = task.remote(
                    rows, gym=file.stem, policy_folder=policy_folder, max_tokens=max_tokens
                )
                running[made] = len(done) + len(running), table
            (ready,), _ = ray.wait(list(running), num_returns=1)
            index, table = running.pop(ready)
            harvest = _result(ready, key="sft.files")
            done[index] = table, harvest
            advance(sum(harvest.num_trajectories.values()) + harvest.num_overlong, "")
    parts = [done[index] for index in sorted(done)]
    harvests = [made for _, made in parts]
    kept = sum(sum(made.num_trajectories.values()) for made in harvests)
    if not kept:
        raise BadInput(
            f"sft.files: each of the {num_rows} rows is longer than "
            f"engine.max_model_len={max_tokens} tokens: raise it, or leave the files out"
        )
    info(f"dialogues of {len(config.sft.files)} file(s): {kept}{_overlong(harvests, max_tokens=max_tokens)}")
    return parts


def _read_files(files: Sequence[Path]) -> tuple[deque[tuple[Path, ray.ObjectRef]], int]:
    """References to the files' rows, some hundred each, and how many rows there are. Each file is read once,
    by a task of its own, and whole before anything is rendered."""
    chunks: deque[tuple[Path, ray.ObjectRef]] = deque()
    num_rows = 0
    task = task_on_driver_node(_read_rows, num_returns="streaming")
    for file, reading in [(file, task.remote(file)) for file in files]:
        *rows, count = reading
        num_rows += _result(count, key="sft.files")
        chunks.extend((file, ref) for ref in rows)
    return chunks, num_rows


def _overlong(harvests: Sequence[TaskCounts], *, max_tokens: int) -> str:
    count = sum(made.num_overlong for made in harvests)
    return f" | {count} left out, longer than engine.max_model_len={max_tokens}" if count else ""


def _result(made: ray.ObjectRef, *, key: str) -> Any:
    """What the task says it made. Raises `BadInput` with the task's own line where its input was bad."""
    try:
        return ray.get(made)
    except RayTaskError as error:
        if not isinstance(error.cause, ValueError):
            raise
        reason = str(error.cause)
    raise BadInput(f"{key}: {reason}")  # outside the `except`: the task's traceback says nothing more


def _load_best(
    runs: Sequence[Path], *, gyms: Sequence[str], per_gym: int, policy_folder: str, max_tokens: int
) -> tuple[pa.Table, TaskCounts]:
    """A task's work: chooses, then loads."""
    best = best_trajectories(runs, gyms=gyms, per_gym=per_gym)
    chosen = [one for of_gym in best.values() for one in of_gym]
    return _harvest(load_trajectories(chosen, renderer=_renderer(policy_folder)), max_tokens=max_tokens)


def _read_rows(file: Path) -> Iterator[list[SharedDialogue] | int]:
    """A task's work: the file's rows in chunks, and last how many they are. Where a row is refused, that is
    what comes last."""
    count, dialogues = 0, read_dialogues(file)
    while chunk := list(islice(dialogues, ROWS_PER_TASK)):
        count += len(chunk)
        yield chunk
    yield count


def _render_rows(
    dialogues: Sequence[SharedDialogue], *, gym: str, policy_folder: str, max_tokens: int
) -> tuple[pa.Table, TaskCounts]:
    """A task's work: renders some rows of a file."""
    table = dialogues_table(dialogues, gym=gym, renderer=_renderer(policy_folder))
    return _harvest(table, max_tokens=max_tokens)


def _harvest(table: pa.Table, *, max_tokens: int) -> tuple[pa.Table, TaskCounts]:
    table, num_overlong = without_overlong(table, max_tokens=max_tokens)
    first_turns = table.filter(pa.array(table["turn"].to_numpy() == 0))
    num_trajectories = Counter(first_turns["gym"].to_pylist())
    num_samples = len(sample_lengths(table))
    return table, TaskCounts(
        num_trajectories=num_trajectories, num_samples=num_samples, num_overlong=num_overlong
    )


@cache
def _renderer(policy_folder: str) -> Renderer:
    return Renderer.from_folder(policy_folder)
