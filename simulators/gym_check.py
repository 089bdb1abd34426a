"""Validation of a gym plug-in before a run: plays short dialogues and reports broken rules in one line.

During a run, a faulty gym causes failed dialogues; here it causes one error line before anything starts. All
laws: tests/simulators/test_gyms.py.
"""

import asyncio
import json
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import TypeVar

from simulators.env import GymEnv
from simulators.gym import Gym
from simulators.task import Split, Task, TaskKey
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser

_ResultT = TypeVar("_ResultT")
Act = Callable[[str | None], str]
"""(the last feedback; None at first) to the next text."""

NUM_TASKS = 20
"""Of each of two splits; takes some hundredths of a second."""
NONSENSE = ("", "hello", "[action] ", "[action] hello", "[answer] ", "[answer] hello", "[search] hello")
LEAST_MARGIN = 0.5
"""By which the expert's mean score must exceed that of silence. The laws want 0.95 and 0.1."""


def check_gym(gym: Gym, *, difficulty: int) -> None:
    """Refuses a gym whose tasks change, mix splits or are not JSON, whose rules raise or pay more than 1, or
    whose expert does not succeed. Raises ValueError, one line: rule, observation, cure."""
    train, test = (_tasks(gym, split=split, difficulty=difficulty) for split in ("train", "test"))
    both = {_hidden(task) for task in train} & {_hidden(task) for task in test}
    if both:
        raise ValueError(
            f"{gym.name}: train and test share the scenario {min(both)[:80]}: draw until "
            "split_of(what is hidden) is key.split"
        )
    for text in NONSENSE:
        _score(gym, test[0], _always(text), when=f"after {text!r}")
    silence = mean(_score(gym, task, _always("[finish]"), when="after '[finish]'") for task in test)
    expert = mean(_score(gym, task, _expert(gym, task), when="with its expert") for task in test)
    if expert < silence + LEAST_MARGIN:
        raise ValueError(
            f"{gym.name}: the expert scores {expert:.2f} and silence {silence:.2f}, mean of {NUM_TASKS} "
            "tasks: such demonstrations teach nothing: fix the expert or the rules"
        )


def _tasks(gym: Gym, *, split: Split, difficulty: int) -> list[Task]:
    tasks = []
    for index in range(NUM_TASKS):
        key = TaskKey(gym=gym.name, split=split, index=index, seed=0, difficulty=difficulty)
        task, again = (
            _guarded(gym, lambda key=key: gym.make_task(key), when="in make_task") for _ in range(2)
        )
        if (task.key, _hidden(task), task.opening) != (key, _hidden(again), again.opening):
            raise ValueError(
                f"{gym.name}: a key must name one task: return Task(key=key, ...), drawn from key.rng() alone"
            )
        tasks.append(task)
    return tasks


def _hidden(task: Task) -> str:
    try:
        return json.dumps(task.scenario, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{task.key.gym}: a scenario travels as JSON: {error}: use dicts, lists, texts and numbers"
        ) from None


def _always(text: str) -> Act:
    return lambda feedback: text


def _expert(gym: Gym, task: Task) -> Act:
    expert = persona_aware(gym.expert(task.opening, random.Random(task.key.index), 0.0))

    def act(feedback: str | None) -> str:
        try:
            return str(next(expert) if feedback is None else expert.send(feedback))
        except StopIteration:  # as in a run: an expert without a next action finishes
            return "[finish]"

    return act


def _score(gym: Gym, task: Task, act: Act, *, when: str) -> float:
    score = _guarded(gym, lambda: asyncio.run(_play(gym, task, act)), when=when)
    if not 0 <= score <= 1 + 1e-9:
        raise ValueError(
            f"{gym.name}: a dialogue paid {score:g} {when}: ActionOutcome.score is the value of what has "
            "been reached, in [0, 1]"
        )
    return score


async def _play(gym: Gym, task: Task, act: Act) -> float:
    env, feedback, score = GymEnv(gym, task=task, user=RuleUser({gym.name: gym})), None, 0.0
    while True:
        step = await env.step(act(feedback))
        feedback, score = step.feedback, score + step.reward
        if step.terminated or step.truncated:
            return score


def _guarded(gym: Gym, work: Callable[[], _ResultT], *, when: str) -> _ResultT:
    """The result of `work()`; an exception becomes a ValueError of one line with the place in the gym's own
    file."""
    try:
        return work()
    except Exception as error:  # the plug-in's rules: the line is in its file
        cause = error.__cause__ or error  # a rule-based user wraps what its rule raised
        last = traceback.extract_tb(cause.__traceback__)[-1]
        reason = str(cause).partition("\n")[0]
        raise ValueError(
            f"{gym.name}: {type(cause).__name__} {when}: {reason} ({Path(last.filename).name}:{last.lineno})"
        ) from error
