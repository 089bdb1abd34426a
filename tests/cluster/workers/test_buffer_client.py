"""The driver's wait for groups: what ends it, and what only makes it ask again."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from cluster.config.run_config import RunConfig
from cluster.workers.buffer_client import MOST_LOST_GROUPS, SUPERVISE_EVERY_S, BufferClient
from cluster.workers.flat_watch import CURE, ZeroAdvantageWarning


class Buffer:
    """Answers one `take` after another, as `ray.get` would give them."""

    def __init__(self, answers: Sequence[object], *, num_lost_in_a_row: int = 0):
        self._answers = list(answers)
        self.take = SimpleNamespace(remote=lambda num_groups, policy_version, timeout_s: self._answers.pop(0))
        self.metrics = SimpleNamespace(remote=lambda: {"ledger/dropped/flat": 0.0})
        self.num_lost_in_a_row = SimpleNamespace(remote=lambda: num_lost_in_a_row)


def get(answer: Any, *, timeout: float) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", get)


def groups_of(buffer: Any, *, supervise: Callable[[], None] = lambda: None) -> BufferClient:
    rollouts: Any = SimpleNamespace(supervise=lambda feed, group_size: supervise())
    return BufferClient(buffer, run=RunConfig(), rollouts=rollouts, archive=Path("trajectories"))


def test_a_wait_in_vain_is_said_in_one_line_and_asked_for_again(capsys: pytest.CaptureFixture[str]) -> None:
    waits = TimeoutError("Traceback of the actor\n\nTimeoutError: 0 of 1 groups are ready")
    assert groups_of(Buffer([waits, ["a group"]])).take(policy_version=4, check=lambda: None) == ["a group"]
    assert capsys.readouterr().err == "step 5 waits for groups: 0 of 1 groups are ready\n"


def test_a_step_that_finds_nothing_but_flat_groups_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Two groups of four a step; told beyond sixteen steps' worths since it began to wait."""
    config = RunConfig.model_validate({"rollout": {"group_size": 4}, "buffer": {"groups_per_step": 2}})
    watch = ZeroAdvantageWarning(config, step=7)
    for num_flat in (1000.0, 1000.0 + 32 * 4):
        watch.look(num_flat)
    assert capsys.readouterr().err == ""
    for num_flat in (1000.0 + 33 * 4, 5000.0):
        watch.look(num_flat)
    assert capsys.readouterr().err == f"step 7: 33 groups were flat while it waited: {CURE}\n"


def test_a_buffer_that_does_not_answer_is_not_asked_twice() -> None:
    """It would hand out the groups of both calls, and the first ones' slots would never be free again."""
    with pytest.raises(GetTimeoutError):
        groups_of(Buffer([GetTimeoutError(), ["a group"]])).take(policy_version=0, check=lambda: None)


def test_weights_that_failed_to_load_end_the_wait() -> None:
    def check() -> None:
        raise ValueError("a parameter is missing")

    with pytest.raises(ValueError, match="a parameter is missing"):
        groups_of(Buffer([["a group"]])).take(policy_version=0, check=check)


def test_where_every_dialogue_fails_no_wait_is_long_enough() -> None:
    buffer = Buffer([TimeoutError("not yet"), ["a group"]], num_lost_in_a_row=MOST_LOST_GROUPS)
    with pytest.raises(RuntimeError, match="every dialogue of the last 256 groups failed"):
        groups_of(buffer).take(policy_version=0, check=lambda: None)


def test_rollout_actors_are_seen_to_during_a_long_step_and_not_at_every_moment_of_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, seen_at = 100.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    groups = groups_of(Buffer([["a group"]] * 2), supervise=lambda: seen_at.append(now))
    groups.keep_working()
    groups.take(policy_version=0, check=lambda: None)
    for now in (101.0, 100.0 + SUPERVISE_EVERY_S - 1):  # noqa: B007 - read by the clock
        groups.keep_working()
    assert seen_at == [100.0, 100.0]
    for now in (115.0, 116.0, 130.0):  # noqa: B007
        groups.keep_working()
    groups.take(policy_version=1, check=lambda: None)
    assert seen_at == [100.0, 100.0, 115.0, 130.0, 130.0]


@pytest.mark.parametrize("has_issued", [True, False])
def test_a_run_goes_back_only_before_its_first_order(has_issued: bool) -> None:
    buffer = SimpleNamespace(has_issued=SimpleNamespace(remote=lambda: has_issued))
    groups = groups_of(buffer)
    if has_issued:
        with pytest.raises(RuntimeError, match=r"^groups were ordered already: go back to a checkpoint in"):
            groups.expect_unordered()
    else:
        groups.expect_unordered()
