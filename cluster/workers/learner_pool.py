"""The driver's hold on the learners: one call reaches every rank, and learners that die or hang are replaced.

New learners load the last whole checkpoint and take again every step since, on the same groups: they end with
the same weights, and nothing else of the run notices.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.config import WeightTransport
from cluster.console.progress import say, warn
from cluster.workers.learner_replay import LearnerCall, LearnerReplay, LearnerWork, ReplayError
from cluster.workers.learner_restart import rebuilt
from cluster.workers.learner_rpc import (
    GO_ON,
    BrokenSendError,
    LearnerError,
    LostLearnerError,
    SilentLearnerError,
    ask,
    ask_for_payload,
)
from learners.buffer.group_store import GroupRows

CALL_TIMEOUT_S = 1800.0
"""Longest wait for one call; an optimizer step of a large policy takes minutes."""
POLL_TIMEOUT_S = 10.0
"""Longest wait for a question that is not waited for; who is too busy to answer is asked again later."""
MOST_REBUILDS = 3
"""For one call: learners that die again and again at the same place are not the machine's mishap."""


class SaveError(RuntimeError):
    """A checkpoint was not written; training is as it was."""


class LearnerPool:
    """All learners of a run, as one."""

    def __init__(
        self,
        group: Any,
        *,
        most_steps: int,
        replaced: Callable[[Any], None] = lambda group: None,
        timeout_s: float = CALL_TIMEOUT_S,
    ):
        """`group` is RLlib's LearnerGroup; `replaced` is told of the one that takes its place. Groups of
        `most_steps` steps since the last checkpoint are kept to be trained again."""
        self.num_rebuilds = 0
        self._group = group
        self._replaced = replaced
        self._timeout_s = timeout_s
        self._history = LearnerReplay(most_steps=most_steps)
        self._lost: LostLearnerError | None = None
        """Why the learners must be replaced."""
        self._holds_another = False
        """Whether they are well, with the policy of another checkpoint than the history's."""
        self._is_saving = False

    @property
    def num_steps_to_replay(self) -> int:
        """GRPO steps since the last whole checkpoint."""
        return self._history.num_steps

    def update(
        self, groups: Sequence[GroupRows], *, step: int, meanwhile: Callable[[], object] = lambda: None
    ) -> tuple[dict[str, float], ray.ObjectRef]:
        """One GRPO step on these groups; one that takes long calls `meanwhile` every few seconds. Its
        metrics, and the table of what each turn was credited with, which outlives the learners. Raises
        `LearnerError`, as all methods do."""
        rows = list(groups)

        def work(learner: Any) -> tuple[dict[str, float], Any]:
            return learner.update_groups(rows, step=step), learner.credits()

        answers = self._call(work, with_payload=True, meanwhile=meanwhile)
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
        self, *, first_step: int, num_steps: int, meanwhile: Callable[[], object] = lambda: None
    ) -> dict[str, float]:
        """Steps of the cold start; the last one's metrics. `meanwhile` as in `update`."""

        def work(learner: Any) -> dict[str, float]:
            return learner.sft_updates(first_step=first_step, num_steps=num_steps)

        answers = self._call(work, meanwhile=meanwhile)
        self._history.add(LearnerCall(stage="sft", work=work))
        return answers[0]

    def look(self) -> None:
        """Replaces them where some have died, while nothing is asked of them."""
        self._call(lambda learner: None)

    def weights(self, *, dtype: str) -> tuple[ray.ObjectRef, dict[str, float]]:
        """The policy's weights, packed by the first learner, and what that cost. They outlive it: engines
        fetch them while it trains on."""

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
        """The policy's weights from GPU to GPU: live in every engine when this returns. What the engines
        measured. Raises `BrokenSendError` where a learner is lost in the middle; whatever is asked next is
        asked of new ones, which are what the old ones were."""
        handles = list(engines)

        def work(learner: Any) -> dict[str, float]:
            return learner.send_weights(
                handles,
                transport=transport,
                workers_per_engine=workers_per_engine,
                dtype=dtype,
                policy_version=policy_version,
            )

        if self._lost or self._holds_another:
            self._call(lambda learner: None)
        try:
            return ask(self._actors(), work, timeout_s=self._timeout_s)[0]
        except LostLearnerError as error:
            self._lost = error
            raise BrokenSendError(str(error)) from None

    def ask(self, work: LearnerWork) -> list[Any]:
        """Every rank's answer to something that changes nothing, rank 0 first."""
        return self._call(work)

    def save(self, folder: Path) -> int:
        """Begins a checkpoint; `saved` says when it is whole. Returns its moment, for `rebase`."""
        path = str(folder)
        self._call(lambda learner: learner.save(path))
        self._is_saving = True
        return self._history.moment

    def saved(self, *, wait: bool) -> bool:
        """Whether every rank has written its part of the last `save`, as far as it says so: without `wait` it
        has little time to. Raises `SaveError`; replaces nobody."""
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
        """Writes a checkpoint's policy as `export` does. Whatever is asked next is asked of the policy of
        before."""
        source, target = str(checkpoint), str(folder)

        def work(learner: Any) -> None:  # one call: whoever takes over in the middle begins with the load
            learner.load(source)
            learner.export(target)

        self._call(work)
        self._holds_another = True

    def _call(
        self, work: LearnerWork, *, with_payload: bool = False, meanwhile: Callable[[], object] = lambda: None
    ) -> list[Any]:
        """Every rank's answer, rank 0 first, of learners that are what the history says; or its answer and
        its payload, as `ask_for_payload` says."""
        ask_them = ask_for_payload if with_payload else ask
        for _ in range(1 + MOST_REBUILDS):
            try:
                if self._lost or self._holds_another:
                    self._restore()
                return ask_them(self._actors(), work, timeout_s=self._timeout_s, meanwhile=meanwhile)
            except LostLearnerError as error:
                self._lost = error
        raise LearnerError(
            f"{self._lost}, and so did {MOST_REBUILDS} times those in its place: give them more memory, "
            f"or {GO_ON}"
        )

    def _restore(self) -> None:
        """Makes the learners what the history says, with new ones where some are lost."""
        start, base = time.perf_counter(), self._history.checkpoint
        why = self._lost or "the learners hold the policy of another checkpoint"
        try:
            replay = self._history.replay()
        except ReplayError as error:
            raise LearnerError(f"{why}: {error}: {GO_ON}") from None
        is_new = self._lost is not None or base is None
        if is_new:
            warn(f"{why}: new ones are started")
            self._is_saving = False
            self._renew(why=str(why))
        for work in replay:
            ask(self._actors(), work, timeout_s=self._timeout_s)
        self._lost, self._holds_another = None, False
        if is_new:
            self.num_rebuilds += 1
            origin = "the untrained policy" if base is None else base.parent.name
            say(
                f"new learners went on from {origin}, {self._history.num_steps} steps taken again | "
                f"{time.perf_counter() - start:.1f}s"
            )

    def _renew(self, *, why: str) -> None:
        """New processes in place of all learners, dead or alive: ranks do not outlive each other."""
        for actor in self._actors():
            ray.kill(actor)
        self._group.shutdown()
        self._group = rebuilt(self._group, why=why, timeout_s=self._timeout_s)
        self._replaced(self._group)

    def _actors(self) -> list[ActorHandle]:
        return self._group._workers
