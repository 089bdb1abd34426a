"""The reward curve is drawn from whatever the run has so far."""

import json
from pathlib import Path

import numpy as np

from cluster.config.run_config import RunConfig
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, write_rows
from cluster.report.reward_curve import draw_reward_curve, moving_average
from cluster.run_folder.paths import RunFolder


def test_moving_average_narrows_at_the_ends() -> None:
    assert moving_average(np.array([0.0, 3.0, 6.0, 9.0]), width=3).tolist() == [1.5, 3.0, 6.0, 7.5]


def test_a_picture_is_drawn_before_during_and_after_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(RunConfig())
    empty = draw_reward_curve(folder, title="run").read_bytes()
    lines = [{"step": step, "rollout/reward/mean": step / 4} for step in (1, 2, 3)]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 4}]))
    during = draw_reward_curve(folder, title="run").read_bytes()
    outcome = DialogueOutcome(gym="function", task_id="task", score=1.0, num_turns=2)
    for stage in ("untrained", "sft", "grpo"):
        write_rows(folder.evaluation, evaluation_rows([outcome], stage=stage, seed=0))
    after = draw_reward_curve(folder, title="run").read_bytes()
    assert all(picture.startswith(b"\x89PNG") for picture in (empty, during, after))
    assert len({empty, during, after}) == 3
