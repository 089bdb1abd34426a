"""The cost model against cases computed by hand, and the laws that any size of a cluster obeys."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cost_model import Measured, limits, read_measured
from bench.gpu_cost import Cost, Gpu, Model, Work, cost, engine_speed, plan

GPU = Gpu(
    flops=1e15,
    memory=100e9,
    memory_bandwidth=2e12,
    network=50e9,
    decode_efficiency=0.5,
    prefill_efficiency=0.5,
    train_efficiency=0.25,
)
POLICY = Model(params=10e9, kv_bytes=100_000)
WORK = Work(
    turns=5,
    policy_tokens=100,
    user_tokens=60,
    opening_tokens=200,
    user_latency=2.0,
    step_trajectories=500,
    trained_share=0.5,
)
"""1,000 tokens a dialogue."""


def of_hand() -> Cost:
    return cost(WORK, policy=POLICY, simulator=POLICY, gpu=GPU)


def test_an_engine_reads_weights_and_keys_once_a_token():
    speed = engine_speed(POLICY, gpu=GPU, context=1000)
    # 90 GB - 20 GB of weights hold 700 sequences of 0.1 GB: the cap of 256 counts.
    # A token: (20 GB + 256 x 0.1 GB) / (0.5 x 2 TB/s) = 45.6 ms; 256 sequences / 45.6 ms = 5,614 tokens/s.
    assert (speed.gpus_per_replica, speed.batch) == (1, 256)
    assert speed.token_s == pytest.approx(0.0456)
    assert speed.decode == pytest.approx(5614.0, abs=1)
    # 0.5 x 1e15 / 2e10 FLOPs a token
    assert speed.prefill == pytest.approx(25_000)


def test_memory_bounds_the_batch_and_a_large_model_takes_several_gpus():
    long = engine_speed(POLICY, gpu=GPU, context=10_000)
    assert long.batch == pytest.approx(70), "90 GB - 20 GB hold 70 sequences of 1 GB"
    large = engine_speed(Model(params=50e9, kv_bytes=100_000), gpu=GPU, context=1000)
    assert large.gpus_per_replica == 2, "100 GB of weights fit no GPU"
    # (100 GB + 25.6 GB) / (2 x 1 TB/s) = 62.8 ms; 256 / 62.8 ms / 2 GPUs
    assert large.decode == pytest.approx(2038.0, abs=1)


def test_the_flops_bound_a_token_where_keys_are_small():
    speed = engine_speed(Model(params=1e9, kv_bytes=1), gpu=replace(GPU, flops=1e14), context=1000)
    # reading 2 GB / 1 TB/s = 2 ms, computing 256 x 2e9 / (0.5 x 1e14) = 10.24 ms
    assert speed.token_s == pytest.approx(0.01024)


def test_a_trajectory_costs_what_it_samples_reads_and_trains():
    per = of_hand()
    # context of 500 tokens: token_s = (20 + 256 x 0.05) GB / 1 TB/s = 32.8 ms, 7,805 tokens/s
    # 500 sampled / 7,805 + (200 + 300) read / 25,000 = 64.06 + 20 ms; half is trained, 0.9 of the time busy
    assert per.policy_gpu_s == pytest.approx((0.0640625 + 0.02) / 0.5 / 0.9, rel=1e-4)
    assert per.simulator_gpu_s == 0.0, "somebody else's"
    # 6 x 1e10 x 1,000 tokens / (0.25 x 1e15) = 0.24 s
    assert per.learner_gpu_s == pytest.approx(0.24 / 0.9)
    # 5 turns x (100 x 32.8 ms + 2 s)
    assert per.dialogue_s == pytest.approx(26.4)


def test_a_hosted_simulator_answers_at_its_own_speed():
    per = cost(replace(WORK, user_latency=None), policy=POLICY, simulator=POLICY, gpu=GPU)
    # 300 replied / 7,805 + (200 + 500) read / 25,000 = 38.44 + 28 ms
    assert per.simulator_gpu_s == pytest.approx((0.0384375 + 0.028) / 0.5 / 0.9, rel=1e-4)
    # a turn: 100 x 32.8 ms, then 60 x 32.8 ms and 140 tokens read
    assert per.dialogue_s == pytest.approx(5 * (3.28 + 1.968 + 0.0056))


def test_a_plan_is_littles_law():
    made = plan(100, work=WORK, per=of_hand(), policy=POLICY, gpu=GPU)
    # of 0.1868 + 0.2667 GPU-s a trajectory: 41.2 GPUs of policy, 58.8 of learners
    assert (made.policy_gpus, made.simulator_gpus, made.learner_gpus) == (41, 0, 59)
    assert made.rate == pytest.approx(41 / 0.186806, rel=1e-3)
    assert made.step_s == pytest.approx(500 / made.rate)
    assert made.in_flight == pytest.approx(made.rate / 0.5 * 26.4)
    # 11,589 in flight, 500 a step
    assert made.off_policy_steps == 24


@pytest.mark.parametrize("gpus", [4, 7, 33, 1024, 5000])
def test_a_plan_never_takes_more_gpus_than_there_are_and_more_of_them_are_never_slower(gpus: int):
    work = replace(WORK, user_latency=None)
    per = cost(work, policy=POLICY, simulator=POLICY, gpu=GPU)
    made = plan(gpus, work=work, per=per, policy=POLICY, gpu=GPU)
    assert made.gpus == made.policy_gpus + made.simulator_gpus + made.learner_gpus <= gpus
    assert made.learner_gpus >= 2, "160 GB of weights and Adam fit no GPU"
    assert plan(gpus + 1, work=work, per=per, policy=POLICY, gpu=GPU).rate >= made.rate


def test_too_few_gpus_are_refused_with_the_number_that_would_do():
    with pytest.raises(ValueError, match=r"gpus=2: the models alone need 3"):
        plan(2, work=WORK, per=of_hand(), policy=POLICY, gpu=GPU)


def test_what_there_is_one_of_saturates_in_the_order_of_its_rates():
    measured = Measured(turn_s=0.001, driver_s=0.0005, buffer_s=0.002, proxy_s=0.0005)
    found = {limit.what: limit.rate for limit in limits(WORK, policy=POLICY, gpu=GPU, measured=measured)}
    assert found["rollout actor, one core"] == pytest.approx(100), "0.5 trained / (5 turns x 1 ms)"
    assert found["buffer actor"] == pytest.approx(250)
    assert found["driver"] == pytest.approx(2000)
    assert found["weights, one copy a step"] == pytest.approx(500 / 0.4), "20 GB at 50 GB/s"
    # 80 GB at 50 GB/s take 1.6 s of a step, in which a rank computes 1.6 / 0.24 of its 500 trajectories
    assert found["learners, 75 ranks"] == pytest.approx(75 / 0.24 * 0.9)
    assert list(found.values()) == sorted(found.values())


def test_measured_rows_take_the_place_of_the_defaults(tmp_path: Path):
    values = {"driver CPU per trajectory": 0.25, "rollout actors' CPU per trajectory": 2.0}
    rows = [{"bench": "scaling", "case": "", "metric": name, "value": ms} for name, ms in values.items()]
    path = tmp_path / "latest.json"
    path.write_text(json.dumps({"machine": "", "rows": rows}))
    # a dialogue of that benchmark has five turns
    assert read_measured(path) == replace(Measured(), driver_s=0.00025, turn_s=0.0004)
    assert read_measured(tmp_path / "none.json") == Measured()


def test_the_page_shows_what_the_script_prints():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "cost-model.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("python -m bench.cost_model")]
    done = subprocess.run(
        [sys.executable, *line.split()[1:]], cwd=root, capture_output=True, text=True, check=True
    )
    plans = [row for row in done.stdout.splitlines() if row.count("|") == 9]
    assert len(plans) == 6 and [row for row in plans if row not in page] == []
    assert "| driver |" in done.stdout
