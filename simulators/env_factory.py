"""Factory of environments by gym name: `make_env("travel", index=3)` with rules, task, user and persona.

import asyncio
from simulators import make_env

async def talk() -> float:
    env = make_env("travel", index=3)
    print((await env.reset()).opening)
    step = await env.step("[action] Which cabin?")
    print(step.feedback, step.reward)
    await env.close()
    return step.reward

asyncio.run(talk())
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, get_args

from simulators.env import GymEnv
from simulators.gym import Gym
from simulators.gym_plugins import known_gyms
from simulators.persona import Persona, PersonaMix, draw_persona
from simulators.published import published_gyms
from simulators.published.settings import PublishedSetting
from simulators.task import SPLITS, Split, Task, TaskKey
from simulators.user import User
from simulators.users.rule_user import RuleUser, unknown_gym

Preset = Literal["default", "published"]
"""The default rules, or those of the released gyms turn by turn."""
MAX_FILES_KEPT = 32


def make_env(
    gym: str | Gym,
    *,
    preset: Preset = "default",
    constants: PublishedSetting = "evaluation",
    task: Task | None = None,
    index: int = 0,
    seed: int = 0,
    split: Split = "test",
    difficulty: int = 0,
    data: Path | str | None = None,
    published_id: str | None = None,
    user: User | None = None,
    persona: Persona | PersonaMix = "plain",
    max_turns: int | None = None,
) -> GymEnv:
    """One environment: `await reset()`, `await step("[choice] content")`, `await close()`.

    `gym` is the name of a built-in gym, or a gym of your own. The task is `task`, or else the one that split,
    difficulty, seed and index identify: drawn by the gym's generator, or with `data` the row `index` of that
    file; under the released rules also the row that has `published_id` as its id or title, such as "func-12"
    or "Albert Einstein". The user is the rule-based one unless another is given; `max_turns` None is the
    gym's own budget. Raises ValueError of one line for unknown names and invalid values.
    """
    if isinstance(persona, str):
        _check_choice("persona", persona, get_args(PersonaMix))
    if isinstance(gym, Gym):
        rules = gym if data is None else _with_tasks(gym, Path(data))
    else:
        files = {} if data is None else {gym: Path(data)}
        rules = find_gym(gym, open_gyms(preset, constants, files))
    if task is None:
        _check(split=split, index=index, difficulty=difficulty)
        if preset == "published" and data is None:
            raise ValueError(
                f"preset='published': {rules.name} plays the published tasks and has no file of them: "
                "give data=PATH, or task=..."
            )
        if published_id is not None:
            index = row_of(
                published_id, gym=rules, data=Path(data) if preset == "published" and data else None
            )
        key = TaskKey(gym=rules.name, split=split, index=index, seed=seed, difficulty=difficulty)
        task = rules.make_task(key)
    elif task.key.gym != rules.name:
        raise ValueError(f"task={task.key.task_id}: belongs to {task.key.gym}, not to {rules.name}")
    return GymEnv(
        rules,
        task=task,
        user=RuleUser({rules.name: rules}) if user is None else user,
        max_turns=max_turns,
        persona=draw_persona(persona, seed=task.key.task_id) if isinstance(persona, str) else persona,
    )


def open_gyms(
    preset: Preset, constants: PublishedSetting, data: Mapping[str, Path], modules: Sequence[str] = ()
) -> dict[str, Gym]:
    """The gyms of a preset, and those of `modules`, by name; one with a file in `data` (gym to path) takes
    its tasks from there.

    A file's row is `key.index` modulo their number; the key stays what it was. Each file is read once a
    process. Raises ValueError for a file that is missing or malformed, with file, row and field.
    """
    _check_choice("preset", preset, get_args(Preset))
    _check_choice("constants", constants, get_args(PublishedSetting))
    gyms = known_gyms(modules)
    if preset == "published":
        if modules:
            raise ValueError(
                f"preset='published': {modules[0]} has no released rules: leave gyms.modules "
                "out, or take preset='default'"
            )
        gyms = published_gyms(constants)
    opened = dict(gyms)
    for name, path in data.items():
        gym = find_gym(name, gyms)
        opened[gym.name] = _with_tasks(gym, path)
    return opened


def _with_tasks(gym: Gym, path: Path) -> Gym:
    return replace(gym, make_task=partial(_row, load_tasks(gym, path)))


def row_of(published_id: str, *, gym: Gym, data: Path | None) -> int:
    """The row of a published task in its file. Raises ValueError with the nearest id that the file has."""
    if data is None:
        raise ValueError(
            f"published_id={published_id!r}: is looked up under the released rules, in their own data: give "
            "preset='published' and data=PATH, or index=N"
        )
    rows = [_names_of(task) for task in load_tasks(gym, data)]
    found = next((row for row, names in enumerate(rows) if published_id in names), None)
    if found is None:
        known = [name for names in rows for name in names]
        nearest = get_close_matches(published_id, known, n=1, cutoff=0.0)
        meant = f"did you mean {nearest[0]!r}?" if nearest else "its rows have no ids: give index=N"
        raise ValueError(f"published_id={published_id!r}: not in {data}: {meant}")
    return found


def _names_of(task: Task) -> list[str]:
    return [str(task.scenario[name]) for name in ("id", "title") if name in task.scenario]


def find_gym(name: str, gyms: Mapping[str, Gym]) -> Gym:
    """The gym of this name in any case. Raises ValueError with the nearest name and all of them."""
    if name.lower() not in gyms:
        raise ValueError(unknown_gym(name.lower(), known=list(gyms)))
    return gyms[name.lower()]


def load_tasks(gym: Gym, path: Path) -> list[Task]:
    """The published tasks in a file, read again only if the file has changed."""
    if not path.exists():
        raise ValueError(f"data={path}: no such file: give {gym.name}'s published tasks, or leave it out")
    status = os.stat(path)
    tasks = _load(gym.load_tasks, path.resolve(), (status.st_mtime_ns, status.st_size))
    if not tasks:
        raise ValueError(f"data={path}: holds no task for {gym.name}: give another file, or leave it out")
    return tasks


@lru_cache(maxsize=MAX_FILES_KEPT)
def _load(load: Callable[[Path], list[Task]], path: Path, version: tuple[int, int]) -> list[Task]:
    return load(path)


def _row(tasks: list[Task], key: TaskKey) -> Task:
    return replace(tasks[key.index % len(tasks)], key=key)


def _check(*, split: str, index: int, difficulty: int) -> None:
    _check_choice("split", split, SPLITS)
    for name, value in (("index", index), ("difficulty", difficulty)):
        if value < 0:
            raise ValueError(f"{name}={value}: counts from 0: give 0 or more")


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known: it is one of {', '.join(known)}")
