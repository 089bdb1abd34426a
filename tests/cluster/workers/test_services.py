"""Services start in parallel, except for engines that share GPUs with learners."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_config import RunConfig
from cluster.workers import services


class Starting:
    """Engines that start slowly, and every other service that is started meanwhile."""

    def __init__(self) -> None:
        self.num_wanted, self.are_up = 1, False

    def __call__(self, *args: Any, **kwargs: Any) -> "Starting":
        return self

    def wait(self) -> None:
        self.are_up = True

    def stop(self, *, timeout_s: float) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("num_gpus", "tensor_parallel_size", "first"),
    [(0.0, 1, False), (1.0, 1, False), (2.0, 2, False), (0.5, 1, True)],
    ids=["CPU", "a GPU each", "two GPUs each", "half a GPU each"],
)
def test_only_engines_that_share_gpus_are_up_before_learners_start(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float, tensor_parallel_size: int, first: bool
) -> None:
    """vLLM sizes its cache by what is free on a GPU when it starts."""
    engines = Starting()
    for name in ("start_engines", "ServeWatchdog", "start_simulators", "create_buffer", "make_rollout_setup"):
        monkeypatch.setattr(services, name, engines)
    monkeypatch.setattr(services, "resources", lambda config: {"engine": SimpleNamespace(num_gpus=num_gpus)})
    config = RunConfig.model_validate({"engine": {"tensor_parallel_size": tensor_parallel_size}})
    started = services.start_services(config, policy_folder="", run_folder=Path(), started_ray=False)
    assert engines.are_up == first
    started.wait()
    assert engines.are_up
