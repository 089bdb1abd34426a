"""The driver's hold on the buffer: whole groups for a step, with an eye on those who make them. Holds
references, never tokens."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from actors.trajectory import GroupSummary
from cluster.config.run_config import RunConfig
from cluster.console.progress import say, waits_for
from cluster.workers.flat_watch import ZeroAdvantageWarning
from cluster.workers.restart import LostBufferError
from cluster.workers.rollout_pool import RolloutPool
from learners.buffer.buffered_group import BufferedGroup

TAKE_TIMEOUT_S = 600.0
"""A step whose groups do not come within this time, beyond that after which a lost group is issued again,
stops the run, saying which orders are stuck and with whom."""
CALL_TIMEOUT_S = 120.0
RESTORE_TIMEOUT_S = 1800.0
"""What was finished is read from the disk into the object store."""
SAY_EVERY_S = 10.0
SUPERVISE_EVERY_S = 3.0
"""Between two looks at who lives; in the mean half of it passes until a death is seen."""
BUFFER_DIED = "the buffer has died"
MOST_LOST_GROUPS = 256
"""Far more in a row than are in flight when an endpoint goes away for a moment."""


class BufferClient:
    """The groups of a run, from the buffer and back to it."""

    def __init__(self, buffer: ActorHandle, *, run: RunConfig, rollouts: RolloutPool, archive: Path):
        self._buffer: Any = buffer
        self._run = run
        self._rollouts = rollouts
        self._archive = archive
        """Where a person finds the dialogues."""
        self._releasing: list[ray.ObjectRef] = []
        self._supervised_at_s = -math.inf
        """By `time.monotonic()`."""

    def take(self, *, policy_version: int, check: Callable[[], object]) -> list[BufferedGroup]:
        """Whole groups for one step on `policy_version`. While it waits it sees to the rollout actors, and
        calls `check`, which raises where waiting is in vain."""
        deadline = time.monotonic() + self._run.rollout.group_timeout_s + TAKE_TIMEOUT_S
        said_at, flat = -math.inf, ZeroAdvantageWarning(self._run, step=policy_version + 1)
        while True:
            check()
            # Asked first: the buffer looks for groups while the rollout actors are seen to.
            taking = self._buffer.take.remote(
                self._run.buffer.groups_per_step, policy_version, timeout_s=SUPERVISE_EVERY_S
            )
            self._supervise()
            try:
                groups = self._get(taking)
                waits_for("")
                return groups
            except GetTimeoutError:  # it may take groups yet, which nobody would ever book
                raise
            except TimeoutError as error:
                if time.monotonic() > deadline:
                    raise
                self._expect_users()
                line = f"step {policy_version + 1} waits for groups: {_last_line(error)}"
                waits_for(line)
                if time.monotonic() - said_at >= SAY_EVERY_S:
                    said_at = time.monotonic()
                    say(line)
                    flat.look(self.metrics()["ledger/dropped/flat"])

    def keep_working(self) -> None:
        """Sees to the rollout actors where nobody has for some time: an update may be long, and an actor that
        has come back meanwhile would have nothing to do until its end."""
        if time.monotonic() - self._supervised_at_s >= SUPERVISE_EVERY_S:
            self._supervise()

    def book(
        self, groups: Sequence[BufferedGroup], *, step: int, credits: "ray.ObjectRef | None" = None
    ) -> list[GroupSummary]:
        """Books the groups as trained by `step`; `credits` is that of its `LearnerPool.update`. Summaries of
        all that was settled since the step before."""
        inside = [] if credits is None else [credits]  # itself, Ray would wait for it before the call
        return self._get(self._buffer.book.remote(_ids(groups), step=step, credits=inside))

    def release(
        self, groups: Sequence[BufferedGroup], *, policy_version: int, live: Sequence[ray.ObjectRef]
    ) -> None:
        """Has the buffer free the slots of booked groups as soon as all of `live` are done: then the weights
        of their step, `policy_version`, are in every engine. Returns at once."""
        self._releasing.append(
            self._buffer.release.remote(_ids(groups), policy_version=policy_version, live=list(live))
        )

    def finish_release(self) -> None:
        """Waits until the slots of all released groups are free."""
        releasing, self._releasing = self._releasing, []
        self._get(releasing)

    def metrics(self) -> dict[str, float]:
        """The ledger's and the buffer's."""
        return self._get(self._buffer.metrics.remote())

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return self._get(self._buffer.state.remote())

    def expect_unordered(self) -> None:
        """Raises RuntimeError where groups were ordered already: their results, begun before `restore`, would
        be taken for ones begun after it."""
        if self._get(self._buffer.has_issued.remote()):
            raise RuntimeError("groups were ordered already: go back to a checkpoint in a new algorithm")

    def restore(self, state: Mapping[str, Any] | None, *, step: int, redo: bool) -> int:
        """Goes on from `state` after `step`; None: from the beginning. With `redo` the steps that had begun
        since are taken again on the same groups: returns how many, -1 where nobody knows."""
        return ray.get(self._buffer.restore.remote(state, step=step, redo=redo), timeout=RESTORE_TIMEOUT_S)

    def forget_journal(self, *, before: int) -> None:
        """No checkpoint needs the journal before this entry. Returns at once."""
        self._buffer.forget_journal.remote(before)

    @property
    def is_lost(self) -> bool:
        """Whether the buffer has died."""
        try:
            self._get(self._buffer.num_lost_in_a_row.remote())
        except LostBufferError:
            return True
        return False

    def expect_buffer(self) -> None:
        """Raises LostBufferError where it has died."""
        if self.is_lost:
            raise LostBufferError(BUFFER_DIED)

    def _supervise(self) -> None:
        try:
            self._rollouts.supervise(self._buffer, group_size=self._run.rollout.num_dialogues)
        except RayActorError as error:
            raise LostBufferError(BUFFER_DIED) from error
        self._supervised_at_s = time.monotonic()

    def _expect_users(self) -> None:
        """Raises where every dialogue fails or goes unscored, as with a spent budget: no wait would mend
        that."""
        num_lost: int = self._get(self._buffer.num_lost_in_a_row.remote())
        if num_lost >= MOST_LOST_GROUPS:
            raise RuntimeError(
                f"every dialogue of the last {num_lost} groups failed, or no judge could score it: "
                f"stop_reason, error and simulator in {self._archive} say how: mend it and go on by "
                "`userrl train`"
            )

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=CALL_TIMEOUT_S)
        except RayActorError as error:
            raise LostBufferError(BUFFER_DIED) from error


def _ids(groups: Sequence[BufferedGroup]) -> list[int]:
    return [group.order.group_id for group in groups]


def _last_line(error: Exception) -> str:
    """What an actor's error says, after the traceback that Ray puts before it and the error's own name."""
    line = (str(error).strip().splitlines() or [repr(error)])[-1]
    return line.removeprefix("TimeoutError: ")
