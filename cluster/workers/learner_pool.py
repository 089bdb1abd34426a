"""All learners of a run as one object: every call reaches every rank, and learners that die or hang are
replaced.

New learners load the last complete checkpoint and repeat every step since, on the same groups: they end with
the same weights, and no other process notices."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.config import WeightTransport
from cluster.console.log import info, warn
from cluster.workers.learner_replay import LearnerCall, LearnerReplay, LearnerWork, ReplayError
from cluster.workers.learner_restart import rebuild
from cluster.workers.learner_rpc import (
    RESUME,
    BrokenSendError,
    LearnerError,
    LostLearnerError,
    SilentLearnerError,
    ask,
)
from cluster.workers.rllib_internals import learner_actors
from cluster.workers.supervisor import Supervisor, Wait
from learners.buffer.group_store import GroupRows

CALL_TIMEOUT_S = 1800.0
"""Longest wait for one call; an optimizer step of a large policy takes minutes."""
POLL_TIMEOUT_S = 10.0
"""Longest wait for an answer that is only polled; a learner that is too busy is asked again later."""
MAX_REBUILDS = 3
"""For one call: learners that keep dying in the same call are not a transient fault."""


class SaveError(RuntimeError):
    """A checkpoint was not written; training is unaffected."""


class LearnerPool:
    """All learners of a run."""

    def __init__(
        self,
        group: Any,
        *,
        max_steps: int,
        on_rebuild: Callable[[Any], object] = lambda group: None,
        timeout_s: float = CALL_TIMEOUT_S,
    ):
        """`group` is RLlib's LearnerGroup; `on_rebuild` gets the one that replaces it. Groups of up to
        `max_steps` steps since the last checkpoint are kept for replay."""
        self.num_rebuilds = 0
        self._group = group
        self._on_rebuild = on_rebuild
        self._timeout_s = timeout_s
        self._history = LearnerReplay(max_steps=max_steps)
        self._lost: LostLearnerError | None = None
        """Why the learners must be replaced."""
        self._holds_other_policy = False
        """Whether they are alive, but hold another checkpoint's policy than the history's."""
        self._is_saving = False

    @property
    def num_steps_to_replay(self) -> int:
        """GRPO steps since the last complete checkpoint."""
        return self._history.num_steps

    def update(
        self, groups: Sequence[GroupRows], *, step: int, supervisor: Supervisor | None = None
    ) -> tuple[dict[str, float], ray.ObjectRef]:
        """One GRPO step on these groups; the supervisor ticks meanwhile. Its metrics, and the table of every
        turn's credit, which outlives the learners. Raises `LearnerError`, as all methods do."""
        rows = list(groups)

        def work(learner: Any) -> tuple[dict[str, float], Any]:
            return learner.update_groups(rows, step=step), learner.credits()

        answers = self._call(work, with_payload=True, tick=_ticks(supervisor, "update"))
        self._history.add(LearnerCall(stage="grpo", work=work))
        return answers[0]

    def set_demonstrations(self, tables: Sequence[ray.ObjectRef]) -> int:
        """Keeps demonstrations for `sft_updates`; returns how many samples they give."""
        refs = list(tables)

        def work(learner: Any) -> int:
            return learner.set_demonstrations(refs)

        num_samples: int = self._call(work)[0]
        self._history.set_demonstrations(work)
        return num_samples

    def sft_updates(
        self, *, first_step: int, num_steps: int, supervisor: Supervisor | None = None
    ) -> dict[str, float]:
        """SFT steps of the cold start; the last one's metrics. The supervisor ticks meanwhile."""

        def work(learner: Any) -> dict[str, float]:
            return learner.sft_updates(first_step=first_step, num_steps=num_steps)

        answers = self._call(work, tick=_ticks(supervisor, "sft_update"))
        self._history.add(LearnerCall(stage="sft", work=work))
        return answers[0]

    def check_health(self) -> None:
        """Pings idle learners, and replaces them if one has died."""
        self._call(lambda learner: None)

    def weights(self, *, dtype: str) -> tuple[ray.ObjectRef, dict[str, float]]:
        """The policy's weights, packed by rank 0, and what that cost. They outlive it: engines fetch them
        while it trains on."""

        def pack(learner: Any) -> tuple[dict[str, float] | None, Any]:
            payload, metrics = learner.weights(dtype=dtype) or (None, None)
            return metrics, payload

        packed = self._call(pack, with_payload=True)
        return next((payload, metrics) for metrics, payload in packed if metrics is not None)

    def send_weights(
        self,
        engines: Sequence[ActorHandle],
        *,
        transport: WeightTransport,
        workers_per_engine: int,
        dtype: str,
        policy_version: int,
    ) -> dict[str, float]:
        """Sends the policy's weights from GPU to GPU: they are live in every engine when this returns, with
        what the engines measured. Raises `BrokenSendError` if a learner is lost during it; the next call then
        goes to new learners with the old ones' state."""
        handles = list(engines)

        def work(learner: Any) -> dict[str, float]:
            return learner.send_weights(
                handles,
                transport=transport,
                workers_per_engine=workers_per_engine,
                dtype=dtype,
                policy_version=policy_version,
            )

        if self._lost or self._holds_other_policy:
            self.check_health()
        try:
            return ask(self._actors(), work, timeout_s=self._timeout_s)[0]
        except LostLearnerError as error:
            self._lost = error
            raise BrokenSendError(str(error)) from None

    def ask(self, work: LearnerWork) -> list[Any]:
        """Every rank's answer to a call that changes nothing, rank 0 first."""
        return self._call(work)

    def save(self, folder: Path) -> int:
        """Begins a checkpoint; `saved` says when it is complete. Returns its moment, for `rebase`."""
        path = str(folder)
        self._call(lambda learner: learner.save(path))
        self._is_saving = True
        return self._history.moment

    def saved(self, *, wait: bool) -> bool:
        """Whether every rank has written its part of the last `save`. Without `wait`, a rank that does not
        answer soon counts as not done. Raises `SaveError`; replaces no learner."""
        if not self._is_saving:
            raise SaveError("a learner died while it was written")
        try:
            timeout_s = self._timeout_s if wait else min(self._timeout_s, POLL_TIMEOUT_S)
            reports = ask(self._actors(), lambda learner: learner.saved(wait=wait), timeout_s=timeout_s)
        except LostLearnerError as error:
            if isinstance(error, SilentLearnerError) and not wait:
                return False
            self._lost, self._is_saving = error, False
            raise SaveError(f"{error}, while it was written") from None
        errors = [report.error for report in reports if report.error]
        if errors:
            self._is_saving = False
            raise SaveError(errors[0])
        self._is_saving = not all(report.done for report in reports)
        return not self._is_saving

    def rebase(self, checkpoint: Path, *, moment: int) -> None:
        """New learners may start from this checkpoint, which stays where it is: nothing before it is kept."""
        self._history.rebase(checkpoint, moment=moment)

    def load(self, folder: Path) -> None:
        path = str(folder)
        self._call(lambda learner: learner.load(path))
        self._history.restart(folder)

    def export(self, folder: Path) -> None:
        """Writes the policy as a folder that transformers and vLLM load."""
        path = str(folder)
        self._call(lambda learner: learner.export(path))

    def export_checkpoint(self, checkpoint: Path, folder: Path) -> None:
        """Writes a checkpoint's policy as `export` does. The next call restores the policy of before."""
        source, target = str(checkpoint), str(folder)

        def work(learner: Any) -> None:  # one call, so that new learners begin with the load
            learner.load(source)
            learner.export(target)

        self._call(work)
        self._holds_other_policy = True

    def _call(
        self, work: LearnerWork, *, with_payload: bool = False, tick: Callable[[], object] = lambda: None
    ) -> list[Any]:
        """As `ask` of learner_rpc, of learners that are in the history's state: restored or replaced first if
        they are not, and retried with new ones if one is lost."""
        for _ in range(1 + MAX_REBUILDS):
            try:
                if self._lost or self._holds_other_policy:
                    self._restore()
                return ask(
                    self._actors(), work, timeout_s=self._timeout_s, tick=tick, with_payload=with_payload
                )
            except LostLearnerError as error:
                self._lost = error
        raise LearnerError(
            f"{self._lost}, and so did {MAX_REBUILDS} replacements in a row: give them more memory, "
            f"or {RESUME}"
        )

    def _restore(self) -> None:
        """Brings the learners to the history's state, with new processes if some are lost."""
        start, base = time.perf_counter(), self._history.checkpoint
        reason = self._lost or "the learners hold the policy of another checkpoint"
        try:
            replay = self._history.replay()
        except ReplayError as error:
            raise LearnerError(f"{reason}: {error}: {RESUME}") from None
        is_new = self._lost is not None or base is None
        if is_new:
            warn(f"{reason}: new learners are started")
            self._is_saving = False
            for actor in self._actors():  # ranks do not outlive each other
                ray.kill(actor)
            self._group.shutdown()
            self._group = rebuild(self._group, reason=str(reason), timeout_s=self._timeout_s)
            self._on_rebuild(self._group)
        for work in replay:
            ask(self._actors(), work, timeout_s=self._timeout_s)
        self._lost, self._holds_other_policy = None, False
        if is_new:
            self.num_rebuilds += 1
            origin = "the untrained policy" if base is None else base.parent.name
            info(
                f"new learners resumed from {origin}, {self._history.num_steps} steps repeated | "
                f"{time.perf_counter() - start:.1f}s"
            )

    def _actors(self) -> list[ActorHandle]:
        return learner_actors(self._group)


def _ticks(supervisor: Supervisor | None, wait: Wait) -> Callable[[], object]:
    return partial(supervisor.tick, wait) if supervisor else lambda: None
