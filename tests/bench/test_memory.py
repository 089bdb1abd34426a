"""What memory grows by: by hand, and, over some hundred steps of real processes, not at all."""

from pathlib import Path

import pytest
import ray
from ray import cloudpickle

import bench.memory
import bench.scripted_dialogues
from bench.memory import Look, growth, watch
from cluster.console.progress import quiet_libraries
from cluster.ray_cluster.start import start_ray

MOST_MB = 25.0
"""Per 1,000 steps, of one process: allocators breathe by some megabytes in a short run. What is held by each
step and never let go shows in the counts of objects, and in
tests/learners/buffer/test_memory_does_not_grow.py."""

for module in (bench.memory, bench.scripted_dialogues):
    cloudpickle.register_pickle_by_value(module)  # Ray's workers need not find them


def look(step: int, *, driver: float = 100.0, objects: int = 8) -> Look:
    return Look(
        step=step, driver=driver, buffer=50.0, rollout_actor=200.0, gcs=30.0, store=1.0, objects=objects
    )


def test_growth_is_the_slope_of_the_second_half():
    warm_up = [look(step, driver=10.0 * step) for step in (100, 200)]
    steady = [look(step, driver=2000.0 + 0.003 * step) for step in (300, 400, 500)]
    assert growth([*warm_up, *steady], "driver") == pytest.approx(3.0)
    assert growth([*warm_up, *steady], "buffer") == pytest.approx(0.0)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_process_and_no_store_grows_with_steps(tmp_path: Path):
    quiet_libraries()
    started = start_ray(None)
    try:
        looks, _ = watch(tmp_path, num_steps=640)
    finally:
        if started:
            ray.shutdown()
    middle, late = looks[len(looks) // 2 - 8 : len(looks) // 2], looks[-8:]
    assert max(one.objects for one in late) <= max(one.objects for one in middle) + 16
    assert max(one.store for one in late) <= max(one.store for one in middle) + 2.0
    for name in ("driver", "buffer", "rollout_actor"):
        assert growth(looks, name) < MOST_MB, name
