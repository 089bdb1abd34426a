"""A run that loses its buffer restarts by itself, a limited number of times."""

import weakref

import pytest
from ray.exceptions import RayActorError

from cluster.workers.restart import (
    MAX_RESTARTS,
    LostBufferError,
    LostSetupError,
    RestartsExhaustedError,
    cleanup_on_failure,
    run_with_restarts,
)


class Work:
    """Loses its buffer at each of these steps in turn, then finishes."""

    def __init__(self, *steps: int):
        self._steps = list(steps)
        self.step = 0
        self.num_begun = 0

    def __call__(self) -> None:
        self.num_begun += 1
        if self._steps:
            self.step = self._steps.pop(0)
            raise LostBufferError("the buffer has died")


def test_a_lost_buffer_is_reported_and_the_run_resumes_from_its_last_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = Work(0, 10, 10, 20)
    run_with_restarts(work, place=lambda: f"step {work.step}")
    assert work.num_begun == 5
    assert capsys.readouterr().err.count("the run resumes from step 10 with new processes") == 2


def test_a_buffer_that_keeps_dying_at_the_same_step_ends_the_run() -> None:
    work = Work(*[10] * 20)
    with pytest.raises(
        RestartsExhaustedError,
        match=r"^the buffer has died: 5 restarts made no progress beyond step 10: ",
    ):
        run_with_restarts(work, place=lambda: f"step {work.step}")
    assert work.num_begun == MAX_RESTARTS + 1


def test_any_other_error_ends_the_run_at_once() -> None:
    def work() -> None:
        raise ValueError("a mistake of ours")

    with pytest.raises(ValueError, match="a mistake"):
        run_with_restarts(work, place=lambda: "its beginning")


class Held:
    """An object that must be collected before the undo."""


def fail_with(error: Exception, seen: list[weakref.ref[Held]]) -> None:
    held = Held()
    seen.append(weakref.ref(held))
    raise error


def test_a_death_during_set_up_is_a_lost_set_up_after_everything_was_ended_and_collected() -> None:
    seen: list[weakref.ref[Held]] = []
    held_at_undo: list[Held | None] = []
    with pytest.raises(LostSetupError), cleanup_on_failure(lambda: held_at_undo.append(seen[0]())):
        fail_with(RayActorError(), seen)
    assert held_at_undo == [None]


@pytest.mark.parametrize(
    "error",
    [ValueError("a mistake of ours"), RayActorError(actor_init_failed=True)],
    ids=["a mistake", "an actor whose constructor fails"],
)
def test_a_set_up_that_fails_without_a_death_raises_its_own_error(error: Exception) -> None:
    ended: list[bool] = []
    with pytest.raises(type(error)) as raised, cleanup_on_failure(lambda: ended.append(True)):
        raise error
    assert raised.value is error and ended == [True]


def test_ctrl_c_while_a_death_is_handled_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt), cleanup_on_failure(lambda: None):
        try:
            raise RayActorError()
        except RayActorError:
            raise KeyboardInterrupt from None
