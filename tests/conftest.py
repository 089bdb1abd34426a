"""The order of the tests, and what a machine without a GPU leaves out."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one worker a core: more threads than cores only get in each other's way
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs what starts Ray or vLLM last, so that a broken law shows within the first minute."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    on_gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Imported modules and collected tests live to the end: the garbage collector can skip them."""
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_cluster_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a file that starts Ray: shuts Ray down and collects its handles. Actors of the next Ray have the
    same ids, and would end with a handle of the last one. Other files are not worth a collection of 0.3 s."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and (ray.is_initialized() or _has_slow_tests(request)):
        if ray.is_initialized():
            ray.shutdown()
        gc.collect()


def _has_slow_tests(request: pytest.FixtureRequest) -> bool:
    return any(item.get_closest_marker("slow") for item in request.session.items if item.path == request.path)


@pytest.fixture(scope="module")
def small_ray() -> Iterator[None]:
    """Ray in this machine, with room for three processes."""
    import ray

    ray.init(
        "local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20
    )
    yield
    ray.shutdown()


@pytest.fixture
def folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; what a test imports from there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
