"""Benchmark of the rule-based gyms in one process: `make bench-gyms`, or `python bench/gyms.py --quick`.

Prints Markdown and writes `bench/results/gyms.md` and `gyms.json`. Dialogues are scripted before the clock
starts, so that only environment and user are timed.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from simulators.env import GymEnv
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.task import Task, TaskKey
from simulators.user import User, UserCall, UserReply
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser

RESULTS = Path(__file__).resolve().parent / "results"
USER_DELAY_S = 0.2
TASKS_IN_CROWD = 25
"""Tasks of each gym; many dialogues are of the same task, as in training."""
Dialogue = tuple[Task, list[str]]
"""A task and the texts of an agent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GymSpeed:
    """One gym at one difficulty, in seconds of CPU time: what one core does that has nothing else to do."""

    gym: str
    difficulty: int
    expert_turns_per_s: float
    random_turns_per_s: float
    num_expert_turns: float
    """Mean of a dialogue."""
    first_env_s: float
    """The very first environment: worlds that all tasks share are made with it."""
    thousand_envs_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Crowd:
    """Dialogues at once on one event loop, with a user that takes `USER_DELAY_S` for each reply."""

    num_dialogues: int
    num_turns: int
    wall_s: float
    waiting_s: float
    """The longest dialogue's waits for its user: no machine can be done sooner."""


class SlowUser:
    """The rule-based user, after a model's delay."""

    def __init__(self) -> None:
        self._rules = RuleUser()

    async def reply(self, call: UserCall) -> UserReply:
        await asyncio.sleep(USER_DELAY_S)
        return self._rules.reply_sync(call)


def make_tasks(gym: Gym, num_tasks: int, *, difficulty: int) -> list[Task]:
    return [
        gym.make_task(TaskKey(gym=gym.name, split="train", index=i, seed=0, difficulty=difficulty))
        for i in range(num_tasks)
    ]


async def script_expert(gym: Gym, task: Task) -> Dialogue:
    """What the gym's expert says in this task."""
    env, expert = (
        GymEnv(gym, task=task, user=RuleUser()),
        persona_aware(gym.expert(task.opening, random.Random(0), 0.0)),
    )
    texts = [str(next(expert))]
    step = await env.step(texts[0])
    while not (step.terminated or step.truncated):
        texts.append(str(expert.send(step.feedback)))
        step = await env.step(texts[-1])
    return task, texts


def script_random(gym: Gym, task: Task) -> Dialogue:
    rng = random.Random(task.key.index)
    return task, [str(gym.random_action(task, rng)) for _ in range(gym.max_turns)]


async def play(gym: Gym, dialogue: Dialogue, *, user: User) -> int:
    """Plays the texts to the end; returns the number of turns."""
    task, texts = dialogue
    env = GymEnv(gym, task=task, user=user)
    for turn, text in enumerate(texts, start=1):
        step = await env.step(text)
        if step.terminated or step.truncated:
            return turn
    return len(texts)


async def turns_per_s(gym: Gym, dialogues: list[Dialogue], *, repeats: int) -> float:
    """Median over repeats, per second of CPU time; one dialogue after the other."""
    user, speeds = RuleUser(), []
    for _ in range(repeats):
        gc.collect()
        began = time.process_time()
        num_turns = sum([await play(gym, dialogue, user=user) for dialogue in dialogues])
        speeds.append(num_turns / (time.process_time() - began))
    return median(speeds)


async def measure(gym: Gym, *, difficulty: int, num_tasks: int, repeats: int) -> GymSpeed:
    began = time.process_time()
    make_tasks(gym, 1, difficulty=difficulty)
    first_env_s = time.process_time() - began
    began = time.process_time()
    envs = [GymEnv(gym, task=task, user=RuleUser()) for task in make_tasks(gym, 1000, difficulty=difficulty)]
    thousand_envs_s = time.process_time() - began
    del envs
    tasks = make_tasks(gym, num_tasks, difficulty=difficulty)
    by_expert = [await script_expert(gym, task) for task in tasks]
    return GymSpeed(
        gym=gym.name,
        difficulty=difficulty,
        expert_turns_per_s=await turns_per_s(gym, by_expert, repeats=repeats),
        random_turns_per_s=await turns_per_s(
            gym, [script_random(gym, task) for task in tasks], repeats=repeats
        ),
        num_expert_turns=sum(len(texts) for _, texts in by_expert) / num_tasks,
        first_env_s=first_env_s,
        thousand_envs_s=thousand_envs_s,
    )


async def crowd(num_dialogues: int) -> Crowd:
    """All gyms mixed, every dialogue begun in the same moment."""
    scripted = [
        (gym, await script_expert(gym, task))
        for gym in GYMS.values()
        for task in make_tasks(gym, TASKS_IN_CROWD, difficulty=0)
    ]
    dialogues = [scripted[at % len(scripted)] for at in range(num_dialogues)]
    user = SlowUser()
    longest = max([await num_asked(gym, dialogue) for gym, dialogue in scripted])
    gc.collect()
    began = time.perf_counter()
    turns = await asyncio.gather(*(play(gym, dialogue, user=user) for gym, dialogue in dialogues))
    wall_s = time.perf_counter() - began
    return Crowd(
        num_dialogues=num_dialogues, num_turns=sum(turns), wall_s=wall_s, waiting_s=longest * USER_DELAY_S
    )


async def num_asked(gym: Gym, dialogue: Dialogue) -> int:
    """Turns of a dialogue in which the user is asked."""
    env = GymEnv(gym, task=dialogue[0], user=RuleUser())
    return sum([(await env.step(text)).user_reply is not None for text in dialogue[1]])


def machine() -> str:
    """Where this ran, in one line."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own word stands
    return (
        f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )


def markdown(speeds: list[GymSpeed], crowd: Crowd) -> str:
    rows = [
        f"| {s.gym} | {s.difficulty} | {s.expert_turns_per_s:,.0f} | {s.random_turns_per_s:,.0f} "
        f"| {s.num_expert_turns:.1f} | {s.first_env_s * 1e3:.1f} | {s.thousand_envs_s:.2f} |"
        for s in speeds
    ]
    overhead_s = crowd.wall_s - crowd.waiting_s
    return "\n".join(
        [
            f"Machine: {machine()}",
            "",
            "| gym | difficulty | expert, turns/s a core | random, turns/s a core | turns of an expert "
            "| first environment, ms | 1,000 environments, s |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"{crowd.num_dialogues:,} dialogues at once on one event loop, all gyms mixed, a user that takes "
            f"{USER_DELAY_S * 1e3:.0f} ms: {crowd.wall_s:.2f} s for {crowd.num_turns:,} turns, of which "
            f"{crowd.waiting_s:.2f} s are waits that nobody can shorten and {overhead_s:.2f} s ours "
            f"({overhead_s / crowd.num_turns * 1e6:.0f} µs a turn).",
        ]
    )


async def run(*, num_tasks: int, repeats: int, num_dialogues: int) -> tuple[list[GymSpeed], Crowd]:
    speeds = [
        await measure(gym, difficulty=difficulty, num_tasks=num_tasks, repeats=repeats)
        for gym in GYMS.values()
        for difficulty in (0, 2)
    ]
    return speeds, await crowd(num_dialogues)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer tasks, nothing written")
    quick = parser.parse_args().quick
    sizes = (50, 1, 1000) if quick else (300, 5, 10_000)
    speeds, of_crowd = asyncio.run(run(num_tasks=sizes[0], repeats=sizes[1], num_dialogues=sizes[2]))
    text = markdown(speeds, of_crowd)
    print(text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "gyms.md").write_text(text + "\n")
        data = {
            "machine": machine(),
            "gyms": [asdict(speed) for speed in speeds],
            "crowd": {**asdict(of_crowd), "user_delay_s": USER_DELAY_S},
        }
        (RESULTS / "gyms.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
