"""The driver's wait for groups: which errors end it, and which are retried."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from cluster.config.run_config import RunConfig
from cluster.workers.buffer_client import (
    FLAT_CURE,
    MAX_LOST_GROUPS,
    BufferClient,
    ZeroAdvantageWarning,
)


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


def client_of(buffer: Any) -> BufferClient:
    return BufferClient(buffer, run=RunConfig(), archive=Path("trajectories"))


def supervisor(tick: Callable[[], None] = lambda: None) -> Any:
    return SimpleNamespace(tick=lambda wait: tick())


def test_a_wait_without_groups_is_reported_in_one_line_and_retried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waits = TimeoutError("Traceback of the actor\n\nTimeoutError: 0 of 1 groups are ready")
    assert client_of(Buffer([waits, ["a group"]])).take(policy_version=4, supervisor=supervisor()) == [
        "a group"
    ]
    assert capsys.readouterr().err == "step 5 waits for groups: 0 of 1 groups are ready\n"


def test_a_step_that_finds_only_flat_groups_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Two groups of four a step; the warning comes beyond sixteen steps' worth since the wait began."""
    config = RunConfig.model_validate({"rollout": {"group_size": 4}, "buffer": {"groups_per_step": 2}})
    watch = ZeroAdvantageWarning(config, step=7)
    for num_flat in (1000.0, 1000.0 + 32 * 4):
        watch.check(num_flat)
    assert capsys.readouterr().err == ""
    for num_flat in (1000.0 + 33 * 4, 5000.0):
        watch.check(num_flat)
    assert capsys.readouterr().err == f"step 7: 33 flat groups while it waited: {FLAT_CURE}\n"


def test_a_call_that_times_out_is_not_retried() -> None:
    """The buffer would hand out the groups of both calls, and the first ones' slots would never be freed."""
    with pytest.raises(GetTimeoutError):
        client_of(Buffer([GetTimeoutError(), ["a group"]])).take(policy_version=0, supervisor=supervisor())


def test_an_error_raised_by_a_tick_ends_the_wait() -> None:
    def tick() -> None:
        raise ValueError("a parameter is missing")

    with pytest.raises(ValueError, match="a parameter is missing"):
        client_of(Buffer([["a group"]])).take(policy_version=0, supervisor=supervisor(tick))


def test_the_wait_ends_if_every_dialogue_fails() -> None:
    buffer = Buffer([TimeoutError("not yet"), ["a group"]], num_lost_in_a_row=MAX_LOST_GROUPS)
    with pytest.raises(RuntimeError, match="every dialogue of the last 256 groups failed"):
        client_of(buffer).take(policy_version=0, supervisor=supervisor())


@pytest.mark.parametrize("has_issued", [True, False])
def test_a_checkpoint_is_restored_only_before_the_first_order(has_issued: bool) -> None:
    buffer = SimpleNamespace(has_issued=SimpleNamespace(remote=lambda: has_issued))
    client = client_of(buffer)
    if has_issued:
        with pytest.raises(RuntimeError, match=r"^groups were ordered already: restore the checkpoint in"):
            client.require_unissued()
    else:
        client.require_unissued()
