"""Gymnasium adapter of every gym: `gymnasium.make("userrl/Travel-v0")`, registered when `simulators` is
imported.

A synchronous wrapper of `GymEnv`. Actions are `[choice] content`; the first observation is
the rules and the user's opening, every later one the feedback.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Text
from gymnasium.spaces.text import alphanumeric

from simulators.env import GymEnv
from simulators.env_factory import Preset, make_env
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.persona import Persona, PersonaMix
from simulators.published.settings import PublishedSetting
from simulators.task import Split
from simulators.user import User

_ResultT = TypeVar("_ResultT")
MAX_LENGTH = 2**16
"""Characters of an observation or action, far above any real text."""
SAMPLE_LENGTH = 64
NUM_INDICES = 2**31
STEP_LIMIT_S = 3600.0
"""Longest wait for one turn; users have their own, much shorter limits."""


class Unicode(frozenset[str]):
    """The set of all characters without storing them: Gymnasium keeps character sets in a dict."""

    def __contains__(self, character: object) -> bool:
        return isinstance(character, str) and len(character) == 1

    def __len__(self) -> int:
        return sys.maxunicode + 1

    def __getitem__(self, code: int) -> str:
        return chr(code)


UNICODE = Unicode()


class AnyText(Text):
    """All texts up to a length, in any script. Samples are short and of letters and digits."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A text of letters and digits. Masks are refused: there are too many characters for a mask."""
        if mask is not None or probability is not None:
            raise ValueError("a sample of any text takes no mask and no probability: leave both out")
        length = int(self.np_random.integers(self.min_length, SAMPLE_LENGTH + 1))
        return "".join(self.np_random.choice(sorted(alphanumeric), size=length))

    @property
    def character_set(self) -> frozenset[str]:
        return UNICODE

    @property
    def character_list(self) -> Any:
        return UNICODE

    def character_index(self, char: str) -> np.int32:
        return np.int32(ord(char))


class GymnasiumEnv(gymnasium.Env[str, str]):
    """One gym, task after task. `reset` takes the options `index`, `split` and `difficulty`;
    without `index` the task is drawn from the environment's own generator."""

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        *,
        gym: str | Gym,
        preset: Preset = "default",
        constants: PublishedSetting = "evaluation",
        split: Split = "train",
        difficulty: int = 0,
        data: Path | str | None = None,
        user: User | None = None,
        persona: Persona | PersonaMix = "plain",
        max_turns: int | None = None,
        render_mode: str | None = None,
    ):
        self.observation_space = AnyText(MAX_LENGTH, min_length=0)
        self.action_space = AnyText(MAX_LENGTH, min_length=0)
        self.render_mode = render_mode
        self._gym = gym
        self._fixed: dict[str, Any] = {
            "preset": preset,
            "constants": constants,
            "data": data,
            "user": user,
            "persona": persona,
            "max_turns": max_turns,
        }
        self._drawn: dict[str, Any] = {"split": split, "difficulty": difficulty}
        self._env: GymEnv | None = None
        self._lines: list[str] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Starts a dialogue. The same seed draws the same tasks. Raises ValueError for an unknown option."""
        super().reset(seed=seed)
        drawn = {"index": int(self.np_random.integers(NUM_INDICES)), **self._drawn}
        for name in options or {}:
            if name not in drawn:
                raise ValueError(f"options[{name!r}] is not known: the options are {', '.join(drawn)}")
        self._env = make_env(self._gym, **self._fixed, **(drawn | (options or {})))
        observation = _run(self._env.reset())
        self._lines = [observation.opening]
        return f"{observation.system}\n\n{observation.opening}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes `[choice] content`. Raises `SimulatorError` if the user fails; the state is then
        unchanged."""
        if self._env is None:
            raise gymnasium.error.ResetNeeded("step before reset: call reset first")
        step = _run(self._env.step(str(action)))
        self._lines += [str(action), step.feedback]
        return step.feedback, float(step.reward), step.terminated, step.truncated, {}

    def render(self) -> str | None:  # type: ignore[override]
        """The dialogue so far."""
        return "\n".join(self._lines) if self.render_mode == "ansi" else None

    def close(self) -> None:
        if self._env is not None:
            _run(self._env.close())


def register_envs() -> None:
    """Registers every gym as `userrl/<Name>-v0`. Idempotent."""
    for name in GYMS:
        name_of_env = f"userrl/{name.capitalize()}-v0"
        if name_of_env not in gymnasium.registry:
            gymnasium.register(
                id=name_of_env, entry_point="simulators.gymnasium_env:GymnasiumEnv", kwargs={"gym": name}
            )


def _run(work: Coroutine[Any, Any, _ResultT]) -> _ResultT:
    """Runs the coroutine on the process's event loop and waits; callable from a thread with a running loop,
    such as a notebook's."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(STEP_LIMIT_S)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop per process, so that the connections of a shared user outlive a turn."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="gymnasium-envs", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_loop.cache_clear)  # a forked process has the loop but not its thread
