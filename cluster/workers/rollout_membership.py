"""Elastic membership of the rollout actors: new ones join when they first answer, others are drained.

RLlib can neither add an actor that does not run yet nor give indexes that stay unique: see `rllib_internals`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.console.log import info
from cluster.workers.rllib_internals import (
    add_rollout_actor,
    create_rollout_actor,
    remove_rollout_actor,
    rollout_actors,
)

DRAIN_TIMEOUT_S = 60.0
"""Longest wait for the dialogues of a draining actor; after it, other actors replay its groups."""
PENDING_AFTER_S = 30.0
"""A joining actor that has not answered for so long waits for a node: the console says so."""


@dataclass(kw_only=True, slots=True)
class _JoiningActor:
    actor: Any
    ping: ray.ObjectRef
    since: float
    """By `time.monotonic()`."""
    is_reported: bool = False


class RolloutMembership:
    """The rollout actors of one EnvRunnerGroup, by worker index."""

    def __init__(self, env_runners: Any):
        self._env_runners = env_runners
        self.num_wanted = len(self.actors)
        self._next_index = self.num_wanted + 1
        """RLlib counts from 1."""
        self._joining: dict[int, _JoiningActor] = {}
        self._draining_since: dict[int, float] = {}

    @property
    def actors(self) -> dict[int, Any]:
        """All handles, without joining ones."""
        return rollout_actors(self._env_runners)

    @property
    def draining(self) -> list[int]:
        """Actors that get no more orders."""
        return list(self._draining_since)

    @property
    def num_active(self) -> int:
        """Actors that work or are being restarted; neither joining nor draining ones."""
        return len(self.actors) - len(self._draining_since)

    @property
    def is_stable(self) -> bool:
        """Whether no actor is joining or draining."""
        return not self._joining and not self._draining_since

    def scale(self, num_actors: int) -> list[int]:
        """Creates missing actors, or drains the newest of too many: returns the newly draining ones. Raises
        `ValueError` in a Tune trial."""
        if ray.util.get_current_placement_group() is not None:
            raise ValueError(
                "a Tune trial has a fixed placement group: its number of processes cannot change"
            )
        self.num_wanted = num_actors
        present = [*(index for index in self.actors if index not in self._draining_since), *self._joining]
        for _ in range(num_actors - len(present)):
            self._create()
        newly_draining = []
        for index in sorted(present)[num_actors:]:
            joining = self._joining.pop(index, None)
            if joining is None:
                self._draining_since[index] = time.monotonic()
                newly_draining.append(index)
            else:  # it has no work yet
                ray.kill(joining.actor)
        return newly_draining

    def replace(self, indexes: Sequence[int]) -> list[int]:
        """Drains these actors and creates as many new ones: returns the newly draining ones. Nothing happens
        in a Tune trial, whose placement group is fixed."""
        if ray.util.get_current_placement_group() is not None:
            return []
        newly_draining = [i for i in indexes if i in self.actors and i not in self._draining_since]
        for index in newly_draining:
            self._draining_since[index] = time.monotonic()
            self._create()
        return newly_draining

    def admit(self) -> None:
        """Adds joining actors that have answered to the group. Never blocks."""
        now = time.monotonic()
        for index, joining in list(self._joining.items()):
            done, _ = ray.wait([joining.ping], timeout=0)
            if done and self._has_answered(joining):
                add_rollout_actor(self._env_runners, joining.actor, index=index)
                del self._joining[index]
                info(f"rollout actor {index} joined after {now - joining.since:.1f}s")
            elif not joining.is_reported and now - joining.since > PENDING_AFTER_S:
                joining.is_reported = True
                info(f"rollout actor {index} is pending: the cluster has no room for it yet")

    def expired(self) -> list[int]:
        """Draining actors that are dead, or that have drained for longer than `DRAIN_TIMEOUT_S`."""
        healthy = self._env_runners.healthy_env_runner_ids() if self._draining_since else ()
        now = time.monotonic()
        return [
            index
            for index, since in self._draining_since.items()
            if index not in healthy or now - since > DRAIN_TIMEOUT_S
        ]

    def remove(self, indexes: Sequence[int]) -> None:
        """Kills draining actors, even if they still hold orders."""
        for index in indexes:
            info(f"rollout actor {index} was removed")
            ray.kill(remove_rollout_actor(self._env_runners, index))
            del self._draining_since[index]

    def _create(self) -> None:
        index, self._next_index = self._next_index, self._next_index + 1
        actor = create_rollout_actor(self._env_runners, index=index, num_workers=self.num_wanted)
        self._joining[index] = _JoiningActor(actor=actor, ping=actor.ping.remote(), since=time.monotonic())

    @staticmethod
    def _has_answered(joining: _JoiningActor) -> bool:
        try:
            ray.get(joining.ping)
        except RayError:  # it died while it started; Ray restarts it
            joining.ping = joining.actor.ping.remote()
            return False
        return True
