"""A run rewarded by the sum of all reward functions at once, its judge behind a real endpoint on loopback."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cluster.driver.algorithm import GRPO
from rewards.reward_functions import REWARDS, RewardContext
from rewards.scorer import with_rewards
from tests.cluster.driver.test_algorithm import assert_promises_hold, tiny_config
from tests.fake_endpoint import Endpoint, serve_endpoint

pytestmark = pytest.mark.slow

WEIGHTS = {
    **dict.fromkeys(REWARDS, 0.1),
    "environment": 1.0,
    **{"turn": -0.01, "length": -1.0, "no_tool_call": -0.5},
}
VOTES = 3


def verdict(body: dict[str, Any]) -> str:
    """Tells dialogues apart, is unusable for every seventh of them, and agrees with itself."""
    number = len(body["messages"][1]["content"])
    return "No comment." if number % 7 == 0 else json.dumps({"score": number % 11})


@pytest.fixture
def judge() -> Iterator[Endpoint]:
    """An endpoint with a thread and a loop of its own."""
    started, stop = threading.Event(), asyncio.Event()
    found: list[Endpoint] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serve_endpoint(verdict) as endpoint:
            found.append(endpoint)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield found[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


@pytest.mark.soak
def test_a_run_is_rewarded_by_all_functions_and_its_rows_say_how(tmp_path: Path, judge: Endpoint) -> None:
    config = tiny_config(tmp_path, name="rewards")
    config.training(learner={"advantage": {"type": "turn_loo", "gamma": 0.9}})
    config.environment(
        reward={
            "weights": WEIGHTS,
            "judge": {
                "base_url": judge.url,
                "model": "m",
                "api_key_env": "",
                "rubric": "Rate it.",
                "votes": VOTES,
            },
        }
    )
    algorithm = config.build_algo()
    assert isinstance(algorithm, GRPO)
    try:
        for _ in range(2):
            algorithm.train()
            assert_promises_hold(algorithm.step_metrics, most_age=0)
        algorithm.evaluate_stage("test")
        folder, num_unscored = (
            algorithm.folder.trajectories,
            algorithm.step_metrics["ledger/dropped/unscored"],
        )
    finally:
        algorithm.stop()
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("step-*.parquet")))
    assert rows["gold"].to_pylist().count("") == 0
    unscored = rows.filter(pc.field("outcome") == "dropped:unscored")
    assert len(_dialogues(unscored)) >= num_unscored > 0
    assert np.isnan(unscored["reward"].to_numpy()).all()
    assert all("votes unusable" in error for error in unscored["error"].to_pylist())
    assert len(judge.requests) >= VOTES * len(_dialogues(rows))
    judged = _judges_part(rows)
    assert np.allclose(judged, judged.round()) and judged.max() > 0 and judged.min() >= -1e-9
    evaluation = pq.read_table(folder / "evaluation-test.parquet")
    assert _judges_part(evaluation).max() < 1e-9  # evaluations are not judged


def _dialogues(rows: pa.Table) -> set[tuple[int, int]]:
    return set(zip(rows["group_id"].to_pylist(), rows["trajectory"].to_pylist(), strict=True))


def _judges_part(rows: pa.Table) -> np.ndarray:
    """What of the rewards cannot be computed from the rows, in hundredths: a tenth of a rating in tenths."""
    weights = {name: weight for name, weight in WEIGHTS.items() if name != "judge"}
    context = RewardContext(gammas={"telepathy": 0.9, "travel": 0.9}, max_completion_tokens=24)
    parts = []
    for group in set(rows["group_id"].to_pylist()):
        own = rows.filter(pc.field("group_id") == group)
        rest = with_rewards(own.drop_columns(["reward"]), weights, context)["reward"].to_numpy()
        parts.append((own["reward"].to_numpy() - rest) * 100)
    found = np.concatenate(parts)
    return found[np.isfinite(found)]
