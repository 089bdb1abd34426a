"""Asks all rollout actors something and waits for none of them twice: one that hangs, alive but without an
answer, must not hold up the driver at every step."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError

ANSWER_TIMEOUT_S = 10.0
"""An actor that takes longer is silent. It is asked again, but nobody waits for its answer."""
MEANWHILE_EVERY_S = 3.0
TAG = "silent"


CallResult = Literal["asked", "silent", "works", "made", "dead"]
"""Of one question: no answer yet, none for too long, an answer without a payload, one with it, or none any
more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One question to one actor."""

    answer: ray.ObjectRef
    """Whether there is a payload."""
    payload: ray.ObjectRef
    asked_at: float
    """By `time.monotonic()`."""

    def fate(self, *, is_answered: bool, silent_s: float) -> CallResult:
        if not is_answered:
            return "silent" if time.monotonic() - self.asked_at > silent_s else "asked"
        try:
            return "made" if ray.get(self.answer) else "works"
        except RayError:
            return "dead"


class RolloutHealth:
    """What is known of who answers."""

    def __init__(self, env_runners: Any):
        self._env_runners = env_runners
        self._silent_since: dict[int, float] = {}
        """By worker index; `time.monotonic()`."""

    def ask(self, question: Callable[[Any], Any], *, without: Collection[int] = ()) -> list[Any]:
        """The answers of all living actors that are not silent, which have a `worker_index` each."""
        self._hear_silent()
        left_out = {*self._silent_since, *without}
        asked = [i for i in self._env_runners.healthy_env_runner_ids() if i not in left_out]
        if not asked:
            return []
        began = time.monotonic()
        answers = self._env_runners.foreach_env_runner(
            question, remote_worker_ids=asked, local_env_runner=False, timeout_seconds=ANSWER_TIMEOUT_S
        )
        living = set(self._env_runners.healthy_env_runner_ids())  # who died just now is known to be dead
        unheard = living.intersection(asked) - {answer.worker_index for answer in answers}
        self._silent_since.update(dict.fromkeys(unheard, began))
        self._ping_silent()
        return answers

    def ask_for_payloads(
        self,
        questions: Mapping[int, Callable[[Any], Any]],
        *,
        silent_s: float,
        timeout_s: float,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[int, ray.ObjectRef]]:
        """What the actors make, each with its worker index, as it comes. Each is asked a question of its own,
        and again as long as the answer is None, by which it says that it works on.

        Who dies is left out, and so is who gives no answer for `silent_s` or takes longer than `timeout_s` in
        all, and is started anew. What was made is the driver's, unlike what an actor puts into the object
        store itself: it outlives its maker. While it waits it calls `meanwhile` now and then.
        """
        deadline = time.monotonic() + timeout_s
        calls = {index: self._call(index, question) for index, question in questions.items()}
        while calls:
            answers = [call.answer for call in calls.values()]
            ready, _ = ray.wait(answers, num_returns=len(answers), timeout=MEANWHILE_EVERY_S)
            for index, call in list(calls.items()):
                fate = call.fate(is_answered=call.answer in ready, silent_s=silent_s)
                if fate == "asked":
                    continue
                del calls[index]
                if fate == "made":
                    yield index, call.payload
                elif fate == "dead":
                    # It is probed until it is back.
                    self._env_runners._worker_manager.set_actor_state(index, healthy=False)
                elif fate == "silent" or time.monotonic() > deadline:
                    self._restart(index)
                else:
                    calls[index] = self._call(index, questions[index])
            if calls:
                meanwhile()

    def _call(self, index: int, question: Callable[[Any], Any]) -> _Call:
        def answer(actor: Any) -> tuple[bool, Any]:
            payload = question(actor)
            return payload is not None, payload

        actor = self._env_runners._worker_manager.actors()[index]
        has_payload, payload = actor.apply.options(num_returns=2).remote(answer)
        return _Call(answer=has_payload, payload=payload, asked_at=time.monotonic())

    @property
    def silent_s(self) -> dict[int, float]:
        """How long each silent actor has been so, by worker index; the others answer, or are dead."""
        now = time.monotonic()
        return {index: now - since for index, since in self._silent_since.items()}

    def end(self, index: int) -> None:
        """Ends a silent actor's process, even a stopped one; Ray starts it anew."""
        self._restart(index)
        self.forget(index)

    def _restart(self, index: int) -> None:
        manager = self._env_runners._worker_manager  # RLlib has no public way to one actor
        ray.kill(manager.actors()[index], no_restart=False)
        manager.set_actor_state(index, healthy=False)  # it is probed until it is back

    def forget(self, index: int) -> None:
        """It has left: whether it answers is nobody's concern."""
        self._silent_since.pop(index, None)

    def _hear_silent(self) -> None:
        """Who of the silent has found its voice again, or died."""
        if not self._silent_since:
            return
        heard = self._env_runners.fetch_ready_async_reqs(tags=TAG, timeout_seconds=0.0)
        living = set(self._env_runners.healthy_env_runner_ids()) - {index for index, _ in heard}
        self._silent_since = {i: since for i, since in self._silent_since.items() if i in living}

    def _ping_silent(self) -> None:
        """Asked now, not at the next look: an optimizer step may lie between, and who has found its voice
        meanwhile must not be ended for having been asked only then."""
        if self._silent_since:
            # One question each at a time: RLlib sends no second one before the first is answered.
            self._env_runners.foreach_env_runner_async(
                lambda actor: actor.ping(), tag=TAG, remote_worker_ids=list(self._silent_since)
            )
