"""The picture reward_curve.png, drawn from metrics.jsonl and evaluation.json."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.evaluation.results import AVERAGE, EvaluationRow, read_rows
from cluster.run_folder.paths import RunFolder

INK, MUTED, LINE, POINT = "#1f2430", "#8a90a0", "#2f6fde", "#e0662b"
SMOOTHING_STEPS = 9
"""Width of the moving average; shorter at both ends."""


def draw_reward_curve(folder: RunFolder, *, title: str) -> Path:
    """Writes `reward_curve.png`: training reward, its moving average, held-out scores with 95 % intervals."""
    lines = folder.metrics.read_text(encoding="utf-8").splitlines() if folder.metrics.exists() else []
    metrics = [json.loads(line) for line in lines]
    points = [
        (m["step"], m["rollout/reward/mean"]) for m in metrics if m.get("rollout/reward/mean") is not None
    ]
    rows = [row for row in read_rows(folder.evaluation) if row.gym == AVERAGE and row.n]
    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_training(axes, points)
    _draw_evaluations(axes, rows, last_step=points[-1][0] if points else 0)
    _dress(axes, title=title)
    partial = folder.reward_curve.with_name(".reward_curve.partial.png")
    figure.savefig(partial)
    partial.replace(folder.reward_curve)
    return folder.reward_curve


def _draw_training(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    if not points:
        return
    steps, rewards = np.array(points).T
    axes.plot(steps, rewards, color=LINE, alpha=0.28, linewidth=1, marker="o", markersize=2.5)
    axes.plot(
        steps,
        moving_average(rewards, width=SMOOTHING_STEPS),
        color=LINE,
        linewidth=2.2,
        label="training reward",
    )


def moving_average(values: np.ndarray, *, width: int) -> np.ndarray:
    """Centred mean over at most `width` values: [num_values] to [num_values]."""
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _draw_evaluations(axes: Axes, rows: Sequence[EvaluationRow], *, last_step: int) -> None:
    """Untrained and SFT stand before step 1, GRPO after the last."""
    gap = max(1.0, last_step * 0.04)
    places = {"untrained": -2.5 * gap, "sft": -gap / 2, "grpo": last_step + gap}
    for number, row in enumerate(row for row in rows if row.stage in places):
        x = places[row.stage]
        axes.errorbar(
            x,
            row.score,
            yerr=[[row.score - row.low], [row.high - row.score]],
            fmt="D",
            color=POINT,
            markersize=6,
            capsize=4,
            clip_on=False,
            zorder=3,
            linewidth=1.6,
            label=None if number else "held-out score, 95 % interval",
        )
        axes.annotate(
            f"{row.stage}\n{row.score:.2f}",
            (x, row.high),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )


def _dress(axes: Axes, *, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=13, fontweight="bold", pad=12)
    axes.set_xlabel("GRPO step", color=INK)
    axes.set_ylabel("reward of a dialogue", color=INK)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:.0f}" if step >= 0 and step == int(step) else "")
    axes.margins(x=0.06, y=0.15)
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower right", labelcolor=INK)
