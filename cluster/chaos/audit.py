"""Audit of a run after chaos: counts lost, duplicated and stale groups from the Parquet rows and the last
checkpoint, not from what the run reports about itself."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.config.recipe import BadInput
from cluster.run_folder.paths import STATE_FILE, RunFolder
from learners.buffer.ledger import TRAINED

COLUMNS = ("group_id", "trajectory", "turn", "outcome", "step", "policy_versions")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosAudit:
    """All three are 0 where nothing went wrong."""

    lost: int
    """Groups that were ordered and are neither settled on disk nor still open in the last checkpoint, and
    trajectories that the ledger has settled and the rows lack."""
    duplicated: int
    """Groups with rows under two steps, or with a duplicated turn: trained twice."""
    stale: int
    """Groups trained on a token older than the bound, at the moment of use."""

    def __add__(self, other: "ChaosAudit") -> "ChaosAudit":
        """Of two runs together."""
        return ChaosAudit(
            lost=self.lost + other.lost,
            duplicated=self.duplicated + other.duplicated,
            stale=self.stale + other.stale,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    steps: Mapping[int, set[int]]
    """By group: the steps under which it has rows."""
    turns: Counter[tuple[int, int, int]]
    """(group, trajectory, turn), each once."""
    outcomes: Mapping[tuple[int, int], str]
    """By (group, trajectory)."""
    stale: frozenset[int]
    """Groups."""


def account(folder: RunFolder, *, max_off_policy_steps: int) -> ChaosAudit:
    """All 0 where the run ended before GRPO, which begins with a checkpoint. Raises `BadInput` where there
    are rows and no checkpoint to compare them with."""
    paths = sorted(folder.trajectories.glob("step-*.parquet"))
    step = folder.latest_step
    if step is None and not paths:
        return ChaosAudit(lost=0, duplicated=0, stale=0)
    if step is None:
        raise BadInput(f"{folder.path}: rows and no checkpoint there: nothing says what was ordered")
    state = json.loads((folder.checkpoint(step) / STATE_FILE).read_text(encoding="utf-8"))["buffer"]
    rows = _read((pq.read_table(path, columns=list(COLUMNS)) for path in paths), bound=max_off_policy_steps)
    return ChaosAudit(
        lost=_num_lost(rows, state),
        duplicated=len(
            {group for group, steps in rows.steps.items() if len(steps) > 1}
            | {group for (group, _, _), count in rows.turns.items() if count > 1}
        ),
        stale=len(rows.stale),
    )


def _num_lost(rows: _Rows, state: Mapping[str, Any]) -> int:
    """Rows may know more than the checkpoint, which is older; they may not know less."""
    open_groups = {order["group_id"] for order in state["open_orders"]}
    missing = set(range(state["next_group_id"])) - rows.steps.keys() - open_groups
    settled = Counter(outcome.removeprefix("dropped:") for outcome in rows.outcomes.values())
    short = sum(max(0, count - settled[reason]) for reason, count in state["ledger"]["settled"].items())
    return len(missing) or short


def _read(tables: Iterable[pa.Table], *, bound: int) -> _Rows:
    steps: defaultdict[int, set[int]] = defaultdict(set)
    turns: Counter[tuple[int, int, int]] = Counter()
    outcomes: dict[tuple[int, int], str] = {}
    stale: set[int] = set()
    for table in tables:
        columns = {name: table[name].to_pylist() for name in COLUMNS if name != "policy_versions"}
        oldest = _oldest(table["policy_versions"].combine_chunks())
        for index, group in enumerate(columns["group_id"]):
            step, outcome = columns["step"][index], columns["outcome"][index]
            steps[group].add(step)
            turns[(group, columns["trajectory"][index], columns["turn"][index])] += 1
            outcomes[(group, columns["trajectory"][index])] = outcome
            # The step trained weights of version `step - 1`.
            if outcome == TRAINED and step - 1 - oldest[index] > bound:
                stale.add(group)
    return _Rows(steps=steps, turns=turns, outcomes=outcomes, stale=frozenset(stale))


def _oldest(versions: pa.ListArray) -> list[float]:  # [num_rows]
    """The oldest version of each row's tokens; inf for a row without one."""
    values, offsets = versions.values.to_numpy(), versions.offsets.to_numpy()
    return [
        float(np.min(values[begin:end])) if end > begin else float("inf") for begin, end in pairwise(offsets)
    ]


def rewards(path: Path) -> dict[int, float]:
    """The mean reward of each step, of metrics.jsonl; a step that was taken again counts once."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["rollout/reward/mean"] for line in lines if "rollout/reward/mean" in line}
