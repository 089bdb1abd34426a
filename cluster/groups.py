"""The driver's hold on the buffer: whole groups for a step, with an eye on those who make them. Holds
references, never tokens."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from actors.trajectory import GroupSummary
from cluster.config import RunConfig
from cluster.console import say
from cluster.rollouts import Rollouts
from learners.buffer import FinishedGroup

TAKE_TIMEOUT_S = 600.0
"""A step whose groups do not come within this time, beyond that after which a lost group is issued again,
stops the run, saying which orders are stuck and with whom."""
CALL_TIMEOUT_S = 120.0
SUPERVISE_EVERY_S = 10.0
MOST_LOST_GROUPS = 256
"""Far more in a row than are in flight when an endpoint goes away for a moment."""


class Groups:
    """The groups of a run, from the buffer and back to it."""

    def __init__(self, buffer: ActorHandle, *, run: RunConfig, rollouts: Rollouts, archive: Path):
        self._buffer: Any = buffer
        self._run = run
        self._rollouts = rollouts
        self._archive = archive
        """Where a person finds the dialogues."""
        self._releasing: list[ray.ObjectRef] = []
        self._supervised_at_s = -math.inf
        """By `time.monotonic()`."""

    def take(self, *, policy_version: int, check: Callable[[], object]) -> list[FinishedGroup]:
        """Whole groups for one step on `policy_version`. While it waits it sees to the rollout actors, and
        calls `check`, which raises where waiting is in vain."""
        deadline = time.monotonic() + self._run.rollout.group_timeout_s + TAKE_TIMEOUT_S
        while True:
            check()
            # Asked first: the buffer looks for groups while the rollout actors are seen to.
            taking = self._buffer.take.remote(
                self._run.buffer.groups_per_step, policy_version, timeout_s=SUPERVISE_EVERY_S
            )
            self._supervise()
            try:
                return self._get(taking)
            except GetTimeoutError:  # it may take groups yet, which nobody would ever book
                raise
            except TimeoutError as error:
                if time.monotonic() > deadline:
                    raise
                self._expect_users()
                say(f"step {policy_version + 1} waits for groups: {_last_line(error)}")

    def keep_working(self) -> None:
        """Sees to the rollout actors where nobody has for some time: an update may be long, and an actor that
        has come back meanwhile would have nothing to do until its end."""
        if time.monotonic() - self._supervised_at_s >= SUPERVISE_EVERY_S:
            self._supervise()

    def book(self, groups: Sequence[FinishedGroup], *, step: int) -> list[GroupSummary]:
        """Books the groups as trained by `step`. Summaries of all that was settled since the step before."""
        return self._get(self._buffer.book.remote(_ids(groups), step=step))

    def release(
        self, groups: Sequence[FinishedGroup], *, policy_version: int, live: Sequence[ray.ObjectRef]
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

    def dialogues(self, groups: Sequence[FinishedGroup]) -> "ray.ObjectRef[list[pa.Table]]":
        """Some dialogues of taken groups as text, to be awaited."""
        return self._buffer.dialogues.remote(_ids(groups), self._run.tracking.dialogues_per_step)

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

    def restore(self, state: Mapping[str, Any], *, step: int) -> None:
        """Goes on from `state` after `step`."""
        self._get(self._buffer.restore.remote(state, step=step))

    def _supervise(self) -> None:
        self._rollouts.supervise(self._buffer, group_size=self._run.rollout.num_dialogues)
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
        return ray.get(reference, timeout=CALL_TIMEOUT_S)


def _ids(groups: Sequence[FinishedGroup]) -> list[int]:
    return [group.order.group_id for group in groups]


def _last_line(error: Exception) -> str:
    """What an actor's error says, after the traceback that Ray puts before it."""
    return (str(error).strip().splitlines() or [repr(error)])[-1]
