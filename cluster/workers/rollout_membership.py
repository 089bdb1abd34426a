"""Which rollout actors there are: who joins as soon as it answers, who leaves once its dialogues are over.

RLlib's `add_workers` takes an actor for a living one from the moment it is asked for, so that everybody waits
for a node that is still to come; and it counts from the number of actors, so that a number comes twice after
one has left. Hence ours, on the same group.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.console.progress import say

LEAVE_S = 60.0
"""Longest wait for the dialogues of an actor that is to go; then others play its groups again."""
SAY_AFTER_S = 30.0
"""A newcomer that has not answered for so long waits for a node."""


@dataclass(kw_only=True, slots=True)
class _JoiningActor:
    actor: Any
    ping: ray.ObjectRef
    since: float
    """By `time.monotonic()`."""
    is_said: bool = False


class RolloutMembership:
    """The rollout actors of one EnvRunnerGroup, by worker index."""

    def __init__(self, env_runners: Any):
        self._env_runners = env_runners
        self.num_wanted = len(self._manager.actors())
        self._next_index = self.num_wanted + 1
        """RLlib counts from 1."""
        self._newcomers: dict[int, _JoiningActor] = {}
        self._leaving: dict[int, float] = {}
        """Since when."""

    @property
    def leaving(self) -> list[int]:
        """Those that get no more orders."""
        return list(self._leaving)

    @property
    def num_here(self) -> int:
        """Actors that take part, or are being started again."""
        return len(self._manager.actors()) - len(self._leaving)

    @property
    def is_settled(self) -> bool:
        """Whether nobody joins or leaves."""
        return not self._newcomers and not self._leaving

    def scale(self, num_actors: int) -> list[int]:
        """More are created; of too many the newest leave: those who have to be told so, from now on. Raises
        `ValueError` in a Tune trial."""
        if ray.util.get_current_placement_group() is not None:
            raise ValueError("the processes of a Tune trial have reserved places: their number stays")
        self.num_wanted = num_actors
        here = [*(index for index in self._manager.actors() if index not in self._leaving), *self._newcomers]
        for _ in range(num_actors - len(here)):
            self._create()
        told = []
        for index in sorted(here)[num_actors:]:
            newcomer = self._newcomers.pop(index, None)
            if newcomer is None:
                self._leaving[index] = time.monotonic()
                told.append(index)
            else:  # it has nothing yet
                ray.kill(newcomer.actor)
        return told

    def replace(self, indexes: Sequence[int]) -> list[int]:
        """Those of these who take part leave, and as many others are created in their place. Who has to be
        told so; nobody in a Tune trial, whose places are reserved."""
        if ray.util.get_current_placement_group() is not None:
            return []
        told = [index for index in indexes if index in self._manager.actors() and index not in self._leaving]
        for index in told:
            self._leaving[index] = time.monotonic()
            self._create()
        return told

    def admit(self) -> None:
        """Newcomers that answer take part from here on. Never waits."""
        now = time.monotonic()
        for index, newcomer in list(self._newcomers.items()):
            done, _ = ray.wait([newcomer.ping], timeout=0)
            if done and self._answered(newcomer):
                self._manager._next_id = index  # the number by which the actor knows itself
                self._manager.add_actors([newcomer.actor])
                del self._newcomers[index]
                say(f"rollout actor {index} joins | {now - newcomer.since:.1f}s")
            elif not newcomer.is_said and now - newcomer.since > SAY_AFTER_S:
                newcomer.is_said = True
                say(f"rollout actor {index} waits for room in the cluster")

    def overdue(self) -> list[int]:
        """Those whose time to leave is over."""
        now = time.monotonic()
        return [index for index, since in self._leaving.items() if now - since > LEAVE_S]

    def gone(self) -> list[int]:
        """Those that died while they were leaving: nobody waits for them to come back."""
        healthy = self._env_runners.healthy_env_runner_ids() if self._leaving else ()
        return [index for index in self._leaving if index not in healthy]

    def end(self, indexes: Sequence[int]) -> None:
        """Ends those who leave, whatever they still have."""
        for index in indexes:
            say(f"rollout actor {index} has left")
            ray.kill(self._manager.remove_actor(index))
            del self._leaving[index]

    @property
    def _manager(self) -> Any:
        return self._env_runners._worker_manager

    def _create(self) -> None:
        group, index = self._env_runners, self._next_index
        self._next_index += 1
        actor = group._make_worker(
            env_creator=group._env_creator,
            validate_env=None,
            worker_index=index,
            num_workers=self.num_wanted,
            config=group._remote_config_obj_ref,
        )
        self._newcomers[index] = _JoiningActor(actor=actor, ping=actor.ping.remote(), since=time.monotonic())

    @staticmethod
    def _answered(newcomer: _JoiningActor) -> bool:
        try:
            ray.get(newcomer.ping)
        except RayError:  # it died as it began, and Ray starts it anew
            newcomer.ping = newcomer.actor.ping.remote()
            return False
        return True
