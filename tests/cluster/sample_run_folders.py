"""Run folders as a job writes them, out of the same tables, summaries and rows; small, played by nobody."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.group_summary import summarize
from actors.trajectory import Completion, GroupOrder, GroupSummary, StopReason, Trajectory, Turn
from actors.trajectory_table import REWARD, to_table
from cluster.config.run_config import load
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, write_rows
from cluster.run_folder.paths import RunFolder
from cluster.tracking.step_metrics import rollout_metrics
from learners.buffer.archive import step_file, write_groups
from learners.buffer.credit_columns import CREDITS, KEYS
from simulators.message import Action
from simulators.task import TaskKey
from simulators.user import UserReply
from tests.fakes import credited

GYMS = ("function", "travel")
GROUP_SIZE = 4


def make_run(
    path: Path,
    *,
    num_steps: int,
    overrides: dict[str, str] | None = None,
    text: str = "hello",
    noise: int = 0,
) -> RunFolder:
    """A run of `num_steps`, each of two groups of each gym; dialogue i of a group has 1 + i % 2 turns, and
    the last of a step fails. `noise` random letters are said in each turn."""
    folder = RunFolder(path)
    names = {"run.name": path.name, "run.folder": str(path.parent)}
    folder.create(load(None, names | (overrides or {})))
    add_steps(folder, range(1, num_steps + 1), text=text, noise=noise)
    outcomes = [
        DialogueOutcome(gym=gym, task_id=f"{gym}-{task}", score=task / 4, num_turns=2)
        for gym in GYMS
        for task in range(4)
    ]
    for stage in ("untrained", "grpo"):
        write_rows(folder.evaluation, evaluation_rows(outcomes, stage=stage, seed=0))
    rows = evaluation_rows(outcomes, stage="validation-00002", seed=0, split="validation")
    write_rows(folder.validation, rows)
    return folder


def add_steps(folder: RunFolder, steps: Sequence[int], *, text: str = "hello", noise: int = 0) -> None:
    """Files and lines of these steps."""
    with folder.metrics.open("a", encoding="utf-8") as metrics:
        for step in steps:
            tables, summaries = zip(
                *(make_group(step, number, text=text, noise=noise) for number in range(4)), strict=True
            )
            path = folder.trajectories / f"{step_file(step)}.parquet"
            write_step(path, tables, step=step, credits=make_credits(tables))
            times = {"time/step_s": 2.0, "time/wait_s": 0.5, "time/update_s": 1.5}
            ledger = {"ledger/issued": 16.0 * step, "ledger/trained": 15.0 * step, "ledger/in_flight": 0.0}
            ledger |= {"ledger/dropped/failed": 1.0 * step, "buffer/age/mean": 0.0, "learner/entropy": 1 / 3}
            line = rollout_metrics(summaries, duration_s=2.0) | times | ledger
            metrics.write(json.dumps({"step": step, **line}) + "\n")


def write_step(path: Path, tables: Sequence[pa.Table], *, step: int, credits: pa.Table | None = None) -> None:
    outcomes = [["trained"] * GROUP_SIZE] * len(tables)
    write_groups(path, tables, outcomes=outcomes, step=step, credits=credits)


def make_credits(tables: Sequence[pa.Table]) -> pa.Table:
    """A number of its own for every turn; the gym function has a critic, nobody any gain, and dialogues that
    failed have nothing."""
    rows = pa.concat_tables(tables)
    numbers = rows["group_id"].to_numpy() + rows["trajectory"].to_numpy() / 10 + rows["turn"].to_numpy() / 100
    failed, is_travel = rows["failed"].to_numpy(), np.array(rows["gym"].to_pylist()) == "travel"
    columns = [
        pa.array(numbers.astype(np.float32) - 20, mask=failed),
        pa.array(numbers.astype(np.float32) / 2, mask=failed | is_travel),
        pa.array(numbers.astype(np.float32), mask=failed),
        pa.nulls(rows.num_rows, pa.float32()),
    ]
    return pa.table([*rows.select(KEYS.names).columns, *columns], names=[*KEYS.names, *CREDITS.names])


def make_group(step: int, number: int, *, text: str, noise: int = 0) -> tuple[pa.Table, GroupSummary]:
    """Group `number` of a step; the last of its dialogues fails in group 3."""
    gym = GYMS[number % 2]
    key = TaskKey(gym=gym, split="train", index=10 * step + number, seed=0, difficulty=0)
    order = GroupOrder(group_id=10 * step + number, task_key=key, group_size=GROUP_SIZE, seed=0)
    trajectories = [
        make_dialogue(key, index=index, fails=number == 3 and index == GROUP_SIZE - 1, text=text, noise=noise)
        for index in range(GROUP_SIZE)
    ]
    table = to_table(order, trajectories)
    rewards = np.where(table["failed"].to_numpy(), np.nan, table["env_reward"].to_numpy())
    table = table.append_column(REWARD, pa.array(rewards))
    return table, summarize(order, credited(table), duration_s=1.0)


def make_dialogue(key: TaskKey, *, index: int, fails: bool, text: str, noise: int) -> Trajectory:
    """Two of each group earn 1 with their last turn; the others nothing."""
    num_turns = 1 + index % 2
    rng = np.random.default_rng((key.index, index))
    turns = []
    for turn in range(num_turns):
        ids = rng.integers(0, 40, 5)
        completion = Completion.of(
            ids.tolist(), logprobs=(-rng.random(5)).tolist(), policy_versions=[turn] * len(ids)
        )
        turns.append(
            Turn(
                context_ids=np.arange(6, dtype=np.int32),
                forked=turn == 0,
                completion=completion,
                text=f"{text} {key.index} {index} {turn}",
                action=Action(choice="action", content=f"{text}?") if turn == 0 else None,
                feedback=f"answer {turn} {rng.bytes(noise // 2).hex()}",
                reward=float(turn == num_turns - 1 and index < 2),
                user_reply=UserReply(text="answer", simulator="rules" if key.gym == "function" else "qwen"),
                policy_s=0.25,
                user_s=0.125,
            )
        )
    return Trajectory(
        task_key=key,
        system="Be kind.",
        opening=f"{text}, this is task {key.index}",
        turns=turns,
        stop_reason=StopReason.SIMULATOR_ERROR if fails else StopReason.TERMINATED,
        error="it broke" if fails else "",
        persona="hurried" if key.index % 2 else "plain",
        simulator="qwen",
    )
