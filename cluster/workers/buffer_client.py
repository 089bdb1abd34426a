"""The driver's client of the buffer: takes whole groups for a step, marks them as trained, releases their
slots. Holds references, never tokens."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from actors.group_transport import FinishedGroup
from actors.trajectory import GroupSummary
from cluster.config.run_config import RunConfig
from cluster.console.log import info, warn
from cluster.console.progress import report_wait
from cluster.workers.restart import LostBufferError
from cluster.workers.supervisor import Supervisor

TAKE_TIMEOUT_S = 600.0
"""If a step's groups are not ready within this time, beyond that after which a lost group is reissued, the
run stops and names the stuck orders and their workers."""
CALL_TIMEOUT_S = 120.0
RESTORE_TIMEOUT_S = 1800.0
"""Finished groups are read from the disk into the object store."""
REPORT_EVERY_S = 10.0
TAKE_POLL_S = 3.0
"""Longest that the buffer holds one call for groups: between two, the supervisor ticks."""
BUFFER_DIED = "the buffer has died"
MAX_LOST_GROUPS = 256
"""In a row; an endpoint that is away for a moment loses far fewer."""
FLAT_STEPS = 16
"""Zero-advantage groups during one step's wait, in units of `groups_per_step`, after which there is a
warning."""
FLAT_CURE = (
    "a group whose dialogues all have the same reward has zero advantages and trains nothing: let the cold "
    "start teach more (sft.num_demonstrations), ask for less (gyms.difficulty), or reward what differs "
    "(reward.weights)"
)


class BufferClient:
    """The groups of a run, from the buffer and back to it."""

    def __init__(self, buffer: ActorHandle, *, run: RunConfig, archive: Path):
        """`archive` is the folder of dialogues that error messages name."""
        self._buffer: Any = buffer
        self._run = run
        self._archive = archive
        self._releasing: list[ray.ObjectRef] = []

    def take(self, *, policy_version: int, supervisor: Supervisor) -> list[FinishedGroup]:
        """Whole groups for one step on `policy_version`. The supervisor ticks meanwhile; it raises if waiting
        on is pointless. Raises TimeoutError after `TAKE_TIMEOUT_S`."""
        deadline = time.monotonic() + self._run.rollout.group_timeout_s + TAKE_TIMEOUT_S
        reported_at, flat = -math.inf, ZeroAdvantageWarning(self._run, step=policy_version + 1)
        while True:
            # Called before the tick: the buffer collects groups while the processes are checked.
            taking = self._buffer.take.remote(
                self._run.buffer.groups_per_step, policy_version, timeout_s=TAKE_POLL_S
            )
            supervisor.tick("groups")
            try:
                groups = self._get(taking)
                report_wait("")
                return groups
            except GetTimeoutError:  # it may still take groups, which would never be trained
                raise
            except TimeoutError as error:
                if time.monotonic() > deadline:
                    raise
                self._require_answers()
                # The actor's own text, without the traceback and class name that Ray puts before it.
                reason = str(error).strip().splitlines()[-1].removeprefix("TimeoutError: ")
                line = f"step {policy_version + 1} waits for groups: {reason}"
                report_wait(line)
                if time.monotonic() - reported_at >= REPORT_EVERY_S:
                    reported_at = time.monotonic()
                    info(line)
                    flat.check(self.metrics()["ledger/dropped/flat"])

    def mark_trained(
        self, groups: Sequence[FinishedGroup], *, step: int, credits: "ray.ObjectRef | None" = None
    ) -> list[GroupSummary]:
        """Records that `step` has trained these groups; `credits` is that of its `LearnerPool.update`.
        Returns the summaries of all groups that were trained or dropped since the step before."""
        inside = [] if credits is None else [credits]  # a bare reference would be waited for before the call
        return self._get(self._buffer.mark_trained.remote(_ids(groups), step=step, credits=inside))

    def release(
        self, groups: Sequence[FinishedGroup], *, policy_version: int, live: Sequence[ray.ObjectRef]
    ) -> None:
        """Has the buffer free the slots of trained groups once all of `live` are done: then the weights of
        their step, `policy_version`, are in every engine. Returns at once."""
        self._releasing.append(
            self._buffer.release.remote(_ids(groups), policy_version=policy_version, live=list(live))
        )

    def finish_release(self) -> None:
        """Blocks until the slots of all released groups are free."""
        releasing, self._releasing = self._releasing, []
        self._get(releasing)

    def metrics(self) -> dict[str, float]:
        """The ledger's and the buffer's."""
        return self._get(self._buffer.metrics.remote())

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return self._get(self._buffer.state.remote())

    def require_unissued(self) -> None:
        """Raises RuntimeError if orders have been issued: their results, begun before `restore`, would be
        taken for later ones."""
        if self._get(self._buffer.has_issued.remote()):
            raise RuntimeError("groups were ordered already: restore the checkpoint in a new algorithm")

    def restore(self, state: Mapping[str, Any] | None, *, step: int, replay: bool) -> int:
        """Resumes from `state` after `step`; None means from the beginning. With `replay` the steps that had
        begun since are repeated on the same groups: returns how many, -1 if the log does not reach back."""
        return ray.get(
            self._buffer.restore.remote(state, step=step, replay=replay), timeout=RESTORE_TIMEOUT_S
        )

    def trim_log(self, *, before: int) -> None:
        """Deletes the log's entries before this one, which no checkpoint needs. Returns at once."""
        self._buffer.trim_log.remote(before)

    @property
    def is_lost(self) -> bool:
        """Whether the buffer has died."""
        try:
            self._get(self._buffer.num_lost_in_a_row.remote())
        except LostBufferError:
            return True
        return False

    def raise_if_lost(self) -> None:
        """Raises LostBufferError if it has died."""
        if self.is_lost:
            raise LostBufferError(BUFFER_DIED)

    def _require_answers(self) -> None:
        """Raises RuntimeError if every dialogue fails or goes unscored, as with a spent budget: waiting does
        not cure that."""
        num_lost: int = self._get(self._buffer.num_lost_in_a_row.remote())
        if num_lost >= MAX_LOST_GROUPS:
            raise RuntimeError(
                f"every dialogue of the last {num_lost} groups failed, or no judge could score it: see "
                f"stop_reason, error and simulator in {self._archive}, fix the cause and resume with "
                "`userrl train`"
            )

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=CALL_TIMEOUT_S)
        except RayActorError as error:
            raise LostBufferError(BUFFER_DIED) from error


class ZeroAdvantageWarning:
    """Warns once if one step's wait finds almost only groups without a gradient; `RunAlerts` judges finished
    steps, and would not see a step that never ends."""

    def __init__(self, config: RunConfig, *, step: int):
        self._group_size = config.rollout.group_size
        self._max_groups = FLAT_STEPS * config.buffer.groups_per_step
        self._step = step
        self._before = math.inf
        self._has_warned = False

    def check(self, num_flat: float) -> None:
        """`num_flat`: trajectories that the run has dropped as flat so far."""
        self._before = min(self._before, num_flat)
        num_groups = (num_flat - self._before) / self._group_size
        if num_groups > self._max_groups and not self._has_warned:
            self._has_warned = True
            warn(f"step {self._step}: {num_groups:.0f} flat groups while it waited: {FLAT_CURE}")


def _ids(groups: Sequence[FinishedGroup]) -> list[int]:
    return [group.order.group_id for group in groups]
