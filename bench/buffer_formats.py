"""Formats that the buffer's benchmark compares: the same groups as Arrow tables, as dicts of Python lists,
and as pickled records."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.group_summary import summarize
from actors.group_transport import FinishedGroup, GroupBatch, GroupSender
from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn
from actors.trajectory_table import REWARD, to_table
from learners.advantages.group_advantages import credit_group
from learners.batch.packing import micro_batches
from learners.buffer.archive import Archive
from learners.buffer.buffer import BufferSizes
from learners.buffer.buffer_actor import BufferActor
from learners.buffer.group_store import fetch_groups
from learners.config import LearnerConfig
from learners.training.forward_scoring import ForwardScorer
from learners.training.step_batch import samples_of_step
from simulators.message import Action
from simulators.task import TaskKey
from simulators.user import UserReply

GROUP_SIZE = 8
NUM_TURNS = 6
CONTEXT_TOKENS, COMPLETION_TOKENS = 300, 80
"""Means of a short turn: about 2,300 tokens a trajectory."""
MICRO_BATCH_TOKENS = 16384
TIMEOUT_S = 300.0
Row = dict[str, Any]
"""A trajectory of the list side: ids, mask, logprobs, versions (a Python list each), and its reward."""


def make_group(
    group_id: int, *, size: int = GROUP_SIZE, num_turns: int = NUM_TURNS, length: int = 1
) -> list[Trajectory]:
    """A group of trajectories of random tokens, as a rollout leaves it; turns are `length` times as long."""
    rng = np.random.default_rng(group_id)
    key = TaskKey(gym="function", split="train", index=group_id, seed=0, difficulty=0)
    return [
        Trajectory(
            task_key=key,
            system="You are asked to find out what the user wants, and to serve them.",
            opening=f"I need help with case {group_id}.",
            turns=[
                _turn(rng, turn, reward=float(turn == num_turns - 1 and index % 2), length=length)
                for turn in range(num_turns)
            ],
            stop_reason=StopReason.TERMINATED,
        )
        for index in range(size)
    ]


def _turn(rng: np.random.Generator, turn: int, *, reward: float, length: int) -> Turn:
    num_context = length * int(rng.integers(CONTEXT_TOKENS // 2, CONTEXT_TOKENS * 3 // 2))
    num_tokens = length * int(rng.integers(COMPLETION_TOKENS // 2, COMPLETION_TOKENS * 3 // 2))
    said = f"What about number {rng.integers(10**6)}, would that do?"
    feedback = f"No, rather {rng.integers(10**6)}, as I said before."
    return Turn(
        context_ids=rng.integers(0, 30000, num_context).astype(np.int32),
        forked=turn == 0,
        completion=Completion(
            token_ids=rng.integers(0, 30000, num_tokens).astype(np.int32),
            logprobs=rng.normal(size=num_tokens).astype(np.float32),
            policy_versions=np.zeros(num_tokens, np.int32),
        ),
        text=f"<tool_call>{said}</tool_call>",
        action=Action(choice="action", content=said),
        feedback=feedback,
        reward=reward,
        progress=turn / NUM_TURNS,
        user_reply=UserReply(text=feedback, model="rules", seed=turn),
        policy_s=float(rng.random()),
    )


def with_lists(group: Sequence[Trajectory]) -> list[Trajectory]:
    """The records as an engine that gives Python lists leaves them: the list side starts from these."""
    return [dataclasses.replace(one, turns=[_with_lists(turn) for turn in one.turns]) for one in group]


def _with_lists(turn: Turn) -> Turn:
    names = ("token_ids", "logprobs", "policy_versions")
    lists: dict[str, Any] = {name: getattr(turn.completion, name).tolist() for name in names}
    context: Any = turn.context_ids.tolist()
    return dataclasses.replace(turn, context_ids=context, completion=Completion(**lists))


def as_rows(group: Sequence[Trajectory]) -> list[Row]:
    """The form of most peers: a dict of Python lists a trajectory."""
    rows = []
    for trajectory in group:
        ids: list[int] = []
        mask: list[int] = []
        logprobs: list[float] = []
        versions: list[int] = []
        for turn in trajectory.turns:
            num_context, num_tokens = len(turn.context_ids), len(turn.completion.token_ids)
            ids.extend(turn.context_ids)
            ids.extend(turn.completion.token_ids)
            mask += [0] * num_context + [1] * num_tokens
            logprobs += [0.0] * num_context
            logprobs.extend(turn.completion.logprobs)
            versions += [-1] * num_context
            versions.extend(turn.completion.policy_versions)
        reward = sum(turn.reward for turn in trajectory.turns)
        rows.append({"ids": ids, "mask": mask, "logprobs": logprobs, "versions": versions, "reward": reward})
    return rows


def as_arrays(group: Sequence[Trajectory]) -> list[Row]:
    """The same of NumPy arrays, out of pickled records."""
    rows = []
    for trajectory in group:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "mask", "logprobs", "versions")}
        for turn in trajectory.turns:
            said, num_context = turn.completion, len(turn.context_ids)
            parts["ids"] += [turn.context_ids, said.token_ids]
            parts["mask"] += [np.zeros(num_context, bool), np.ones(len(said.token_ids), bool)]
            parts["logprobs"] += [np.zeros(num_context, np.float32), said.logprobs]
            parts["versions"] += [np.full(num_context, -1, np.int32), said.policy_versions]
        reward = sum(turn.reward for turn in trajectory.turns)
        rows.append({**{name: np.concatenate(arrays) for name, arrays in parts.items()}, "reward": reward})
    return rows


def pack_rows(groups: Sequence[Sequence[Row]]) -> int:
    """Micro-batches of such rows, filled greedily, group-relative advantages among them; returns tokens."""
    rows, advantages = [], []
    for group in groups:
        rewards = np.array([row["reward"] for row in group])
        rows += group
        advantages += ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()
    return sum(len(_packed(rows[part], advantages[part])["ids"]) for part in _parts(rows))


def _parts(rows: Sequence[Row]) -> Iterator[slice]:
    begin = filled = 0
    for end, row in enumerate(rows):
        if filled + len(row["ids"]) > MICRO_BATCH_TOKENS:
            yield slice(begin, end)
            begin, filled = end, 0
        filled += len(row["ids"])
    yield slice(begin, len(rows))


def _packed(rows: Sequence[Row], advantages: Sequence[float]) -> dict[str, torch.Tensor]:
    lengths = torch.tensor([len(row["ids"]) for row in rows])
    mask = torch.cat([torch.as_tensor(row["mask"], dtype=torch.bool) for row in rows])
    return {
        "ids": torch.cat([torch.as_tensor(row["ids"], dtype=torch.int64) for row in rows]),
        "positions": torch.cat([torch.arange(len(row["ids"])) for row in rows]),
        "logprobs": torch.cat([torch.as_tensor(row["logprobs"], dtype=torch.float32) for row in rows])[mask],
        "versions": torch.cat([torch.as_tensor(row["versions"], dtype=torch.int32) for row in rows])[mask],
        "advantages": torch.tensor(advantages).repeat_interleave(lengths)[mask],
    }


class ValueBuffer:
    """A list in a process of its own: groups by value in, by value out."""

    def __init__(self) -> None:
        self._groups: list[Any] = []

    def put(self, groups: list[Any]) -> None:
        self._groups += groups

    def take(self, num_groups: int) -> list[Any]:
        taken, self._groups = self._groups[:num_groups], self._groups[num_groups:]
        return taken


class NoArchive(Archive):
    """Keeps no file."""

    def _submit(self, name: str, groups: Sequence[FinishedGroup], *, step: int, credits: Any = None) -> None:
        """Nothing is written."""


class UnwrittenBuffer(BufferActor):
    """The buffer of training without the files of finished groups: the disk is not what is compared."""

    def __init__(self, sizes: BufferSizes, *, run_folder: Path, **settings: Any):
        super().__init__(sizes, run_folder=run_folder, **settings)
        self._archive = NoArchive(run_folder)

    def _log_groups(self, batch: GroupBatch) -> None:
        return None


class Producer:
    """Holds finished groups and sends them, as a rollout actor does."""

    def __init__(self, num_groups: int, *, length: int):
        self._groups = [make_group(index, length=length) for index in range(num_groups)]
        self._with_lists = [with_lists(group) for group in self._groups]
        self._rows = [as_rows(group) for group in self._with_lists]
        key = self._groups[0][0].task_key
        orders = [
            GroupOrder(group_id=i, task_key=key, group_size=GROUP_SIZE, seed=0) for i in range(num_groups)
        ]
        self._tables = [finished(order, group) for order, group in zip(orders, self._groups, strict=True)]

    def num_bytes(self) -> int:
        """Of all tables."""
        return sum(group.payload.nbytes for group in self._tables)

    def send_rows(self, buffer: Any, *, fill: bool) -> None:
        """All groups in one call, which is the fastest for lists."""
        groups = [as_rows(group) for group in self._with_lists] if fill else self._rows
        ray.get(buffer.put.remote(groups), timeout=TIMEOUT_S)

    def send_records(self, buffer: Any) -> None:
        ray.get(buffer.put.remote(self._groups), timeout=TIMEOUT_S)

    def send_tables(self, buffer: Any, *, fill: bool) -> None:
        orders: list[GroupOrder] = []
        while len(orders) < len(self._groups):
            orders += ray.get(buffer.next_orders.remote("producer", len(self._groups)), timeout=TIMEOUT_S)
        if fill:
            groups = [finished(order, group) for order, group in zip(orders, self._groups, strict=True)]
        else:
            groups = [_under(order, group) for order, group in zip(orders, self._tables, strict=True)]
        asyncio.run(send_all(buffer, groups))


async def send_all(buffer: Any, groups: Sequence[FinishedGroup]) -> None:
    """Through the same `GroupSender` as a rollout actor's."""
    deliveries = GroupSender(lambda delivery: buffer.put.remote(delivery))
    await asyncio.gather(*(deliveries.send(group) for group in groups))


def finished(order: GroupOrder, group: Sequence[Trajectory]) -> FinishedGroup:
    """Filled as a rollout actor fills it, from the records; what the rewards room adds is one column."""
    table = to_table(order, group)
    table = table.append_column(REWARD, table["env_reward"])
    credited = credit_group(table, True, credit_of=LearnerConfig().credit_of)
    credited = dataclasses.replace(credited, group_drop_reason="")  # keeps groups whose dialogues are alike
    return FinishedGroup(
        order=order, summary=summarize(order, credited, duration_s=1.0), payload=credited.table
    )


def _under(order: GroupOrder, group: FinishedGroup) -> FinishedGroup:
    summary = dataclasses.replace(group.summary, group_id=order.group_id)
    return dataclasses.replace(group, order=order, summary=summary)


class Consumer:
    """Takes groups and makes micro-batches of them, as a learner does."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._config = LearnerConfig()
        no_policy: Any = None  # a plain GRPO step asks none
        self._scorer = ForwardScorer(
            policy=no_policy,
            device=torch.device("cpu"),
            max_tokens=MICRO_BATCH_TOKENS,
            rank=0,
            num_ranks=1,
            seed=0,
        )

    def take_rows(self, buffer: Any, num_groups: int) -> int:
        return pack_rows(ray.get(buffer.take.remote(num_groups), timeout=TIMEOUT_S))

    def take_records(self, buffer: Any, num_groups: int) -> int:
        groups = ray.get(buffer.take.remote(num_groups), timeout=TIMEOUT_S)
        return pack_rows([as_arrays(group) for group in groups])

    def take_tables(self, buffer: Any, num_groups: int) -> tuple[int, list[int]]:
        """Tokens and group ids. All tokens are of version 0, and so is every step."""
        groups = ray.get(buffer.take.remote(num_groups, 0, timeout_s=TIMEOUT_S), timeout=TIMEOUT_S)
        tables = fetch_groups([group.payload for group in groups], timeout_s=TIMEOUT_S)
        samples, _, _ = samples_of_step(tables, config=self._config, renderer=None, scorer=self._scorer)
        batches = micro_batches(samples, max_tokens=MICRO_BATCH_TOKENS, rank=0, num_ranks=1, seed=0)
        return sum(len(batch.token_ids) for batch in batches), [group.order.group_id for group in groups]
