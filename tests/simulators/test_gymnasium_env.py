"""The Gymnasium adapter: Gymnasium's checker, seeds, options, and no hidden information in results."""

import asyncio
import random
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces.utils import flatten, unflatten
from gymnasium.utils.env_checker import check_env

from simulators.env_factory import make_env
from simulators.gymnasium_env import AnyText, register_envs
from simulators.gyms import GYMS
from simulators.message import CHOICES

ROOT = Path(__file__).resolve().parents[2]


def make(gym: str, **settings: object) -> gymnasium.Env[str, str]:
    return gymnasium.make(f"userrl/{gym.capitalize()}-v0", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("gym", GYMS)
def test_every_gym_passes_gymnasiums_checker(gym: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(gym, render_mode="ansi").unwrapped)


@pytest.mark.parametrize("gym", GYMS)
def test_random_samples_are_stepped_to_an_end(gym: str):
    env = make(gym)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    ended, num_turns = False, 0
    while not ended:
        action = env.action_space.sample()
        assert action in env.action_space and observation in env.observation_space
        observation, reward, terminated, truncated, _ = env.step(action)
        ended, num_turns = terminated or truncated, num_turns + 1
        assert 0 <= float(reward) <= 1
    assert num_turns <= GYMS[gym].max_turns


@pytest.mark.parametrize("gym", GYMS)
def test_what_is_returned_is_what_the_environment_says(gym: str):
    env = make(gym)
    observation, info = env.reset(seed=1, options={"index": 5, "split": "test", "difficulty": 1})
    own = make_env(gym, index=5, split="test", difficulty=1)
    seen = asyncio.run(own.reset())
    assert observation == f"{seen.system}\n\n{seen.opening}" and info == {}
    for choice in CHOICES:
        step = asyncio.run(own.step(f"[{choice}] hello"))
        assert env.step(f"[{choice}] hello") == (
            step.feedback,
            step.reward,
            step.terminated,
            step.truncated,
            {},
        )
        if step.terminated:
            break


def test_a_seed_fixes_the_tasks_and_draws_from_no_global_generator():
    env = make("travel")
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    first = [env.reset(seed=7)[0], env.reset()[0], env.reset()[0]]
    again = [env.reset(seed=7)[0], env.reset()[0], env.reset()[0]]
    assert first == again and len(set(first)) == 3
    assert env.reset(seed=8)[0] != first[0]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[union-attr]


def test_an_unknown_option_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"'level'.* index, split, difficulty"):
        make("travel").reset(options={"level": 2})


def test_settings_of_make_reach_the_environment():
    env = make("function", difficulty=2, split="test", max_turns=2, render_mode="ansi")
    assert "all four with weights" in env.reset(seed=0)[0]
    env.step("[action] 0 0 0 0")
    assert env.step("[action] 0 0 0 0")[3] is True
    rendered = env.render()
    assert isinstance(rendered, str) and rendered.count("[action] 0 0 0 0") == 2


async def test_it_works_inside_a_running_event_loop():
    env = make("function")
    env.reset(seed=0)
    assert env.step("[finish] ")[2] is True


def test_environments_in_forked_processes_work_after_one_here():
    make("travel").reset(seed=0)
    names = ["userrl/Travel-v0", "userrl/Function-v0"]
    envs = gymnasium.vector.AsyncVectorEnv([lambda name=name: gymnasium.make(name) for name in names])
    try:
        envs.reset(seed=3)
        _, rewards, _, _, _ = envs.step(("[action] 0 0 0 0", "[action] 0 0 0 0"))
        assert rewards.tolist() == [0, 0]
    finally:
        envs.close(timeout=20)


def test_any_script_is_text_and_samples_are_short():
    space = AnyText(100_000, min_length=0, seed=0)
    assert "[answer] Köln, 東京 🗼" in space and 3 not in space
    assert max(len(space.sample()) for _ in range(200)) <= 64
    assert unflatten(space, flatten(space, "東京 🗼")) == "東京 🗼"


@pytest.mark.medium
def test_importing_the_simulators_is_all_that_make_needs_and_registers_once():
    register_envs()
    for code in (
        "import simulators, gymnasium; print(gymnasium.make('userrl/Travel-v0').reset(seed=0)[0][:4])",
        "import gymnasium; print(gymnasium.make('simulators:userrl/Travel-v0').reset(seed=0)[0][:4])",
    ):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("Book\n", "")
