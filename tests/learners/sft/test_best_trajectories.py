"""Selection of the best trajectories of earlier runs: the choice against one made by hand, and the tokens."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.renderer import Renderer
from actors.trajectory import GroupOrder, StopReason, Trajectory
from actors.trajectory_table import REWARD, SCHEMA, to_table
from learners.model.tiny_policy import CHAT_TEMPLATE, make_tokenizer
from learners.sft import best_trajectories as module
from learners.sft.batches import DemonstrationSamples
from learners.sft.best_trajectories import ArchivedTrajectory, best_trajectories, load_trajectories
from simulators.task import Split, TaskKey
from tests.actors.test_renderer import renderer_of
from tests.learners.demonstration_dialogues import play, write_archive
from tests.learners.sft.test_sharegpt import own_table
from tests.learners.tiny_parts import make_turn

pytestmark = pytest.mark.medium

DONE = StopReason.TERMINATED


def group(
    index: int,
    *trajectories: tuple[Sequence[float], StopReason],
    gym: str = "travel",
    split: Split = "train",
    group_id: int | None = None,
) -> pa.Table:
    """A task's trajectories by their turns' rewards."""
    key = TaskKey(gym=gym, split=split, index=index, seed=0, difficulty=0)
    order = GroupOrder(
        group_id=index if group_id is None else group_id,
        task_key=key,
        group_size=len(trajectories),
        seed=0,
    )
    records = [
        Trajectory(
            task_key=key,
            system="",
            opening="",
            turns=[make_turn([1], [2], reward=r, forked=t == 0) for t, r in enumerate(rewards)],
            stop_reason=reason,
        )
        for rewards, reason in trajectories
    ]
    return to_table(order, records)


def names(chosen: Sequence[ArchivedTrajectory]) -> list[tuple[str, int]]:
    """(task's index and step, trajectory)."""
    return [(f"{one.task_id.rpartition('-')[2]}@{one.step}", one.trajectory) for one in chosen]


def test_score_then_fewer_turns_then_the_newest_and_each_tasks_best_first(tmp_path: Path):
    write_archive(
        tmp_path / "a",
        1,
        [
            group(0, ([0.5, 0.5], DONE), ([1.0], DONE), ([0.0, 0.0, 1.0], DONE)),
            group(1, ([0.9], DONE)),
            group(2, ([0.1, 0.2, 0.7], DONE)),  # 0.9999999999999999 in floating point, and worth 1
        ],
    )
    write_archive(tmp_path / "a", 2, [group(1, ([0.9], DONE))])
    best = best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=10)["travel"]
    assert names(best) == [("0@1", 1), ("2@1", 0), ("1@2", 0), ("0@1", 0), ("1@1", 0)]
    assert [one.score for one in best] == [1.0, 1.0, 0.9, 1.0, 0.9]
    assert [one.num_turns for one in best] == [1, 3, 1, 2, 1]
    assert names(best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=2)["travel"]) == names(best)[:2]


def test_failed_unfinished_worthless_and_held_out_dialogues_are_never_taken(tmp_path: Path):
    write_archive(
        tmp_path / "a",
        1,
        [
            group(0, *(([1.0], reason) for reason in StopReason if reason is not DONE)),
            group(1, ([0.0], DONE), ([float("nan")], DONE), ([-0.5], DONE), ([float("inf")], DONE)),
            group(2, ([1.0], DONE), split="test", group_id=2),
            group(3, ([1.0], DONE), split="validation"),
            group(4, ([1.0], DONE), gym="function"),
            group(5, ([0.2], DONE)),
        ],
    )
    evaluation = write_archive(tmp_path / "a", 2, [group(6, ([1.0], DONE))])
    evaluation.rename(evaluation.with_name("evaluation-sft.parquet"))
    best = best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=10)
    assert {gym: names(chosen) for gym, chosen in best.items()} == {"travel": [("5@1", 0)]}


def test_several_runs_and_files_give_what_one_file_would(tmp_path: Path):
    """Only the best of each gym is kept from file to file, and nothing that belongs there is lost."""
    rng = random.Random(0)
    tables = [
        group(
            rng.randrange(12),
            *(([rng.choice([0.1, 0.5, 1.0])] * rng.randint(1, 3), DONE) for _ in range(4)),
            gym=rng.choice(["travel", "function"]),
            group_id=number,
        )
        for number in range(120)
    ]
    runs = [tmp_path / "a", tmp_path / "b"]
    for number, table in enumerate(tables):
        write_archive(runs[number % 2], number, [table])
    in_parts = best_trajectories(runs, gyms=["travel", "function"], per_gym=9)
    everything = best_trajectories(runs, gyms=["travel", "function"], per_gym=10_000)
    for gym, chosen in in_parts.items():
        assert len(everything[gym]) == 24  # two of each task
        assert chosen == everything[gym][:9]


def test_tokens_are_read_for_the_chosen_trajectories_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    renderer = Renderer(make_tokenizer(vocab_size=1024))
    played = [play("expert", gym="travel", index=index, renderer=renderer) for index in range(6)]
    tables = [own_table(trajectory) for trajectory in played]
    write_archive(tmp_path / "a", 1, tables[:3])
    write_archive(tmp_path / "a", 2, tables[3:])
    read: list[tuple[set[str], int]] = []
    original = module._read

    def spy(file: Path, **kwargs: object) -> pa.Table:
        table = original(file, **kwargs)  # type: ignore[arg-type]
        read.append((set(table.column_names), table.num_rows))
        return table

    monkeypatch.setattr(module, "_read", spy)
    best = best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=2)["travel"]
    table = load_trajectories(best, renderer=renderer)
    assert not any({"context_ids", "completion_ids", "text"} & columns for columns, _ in read[:2])
    assert sum(num_rows for _, num_rows in read[2:]) == sum(one.num_turns for one in best) == table.num_rows
    assert set(table.schema.names) <= {*SCHEMA.names, REWARD.name}
    own = DemonstrationSamples([tables[one.group_id] for one in sorted(best, key=lambda o: o.file)])
    loaded = DemonstrationSamples([table])
    assert sorted(s.token_ids.tolist() for s in loaded) == sorted(s.token_ids.tolist() for s in own)
    assert len({s.group_id for s in loaded}) == 2


def test_tokens_of_another_tokenizer_or_template_are_refused(tmp_path: Path):
    renderer = Renderer(make_tokenizer(vocab_size=1024))
    trajectory = play("expert", gym="travel", index=0, renderer=renderer)
    write_archive(tmp_path / "a", 1, [own_table(trajectory)])
    best = best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=2)["travel"]
    assert load_trajectories(best, renderer=renderer).num_rows == len(trajectory.turns)
    other_words = Renderer(make_tokenizer(vocab_size=1100))
    other_form = renderer_of(renderer.tokenizer, CHAT_TEMPLATE.replace("<tools>", "<functions>"))  # type: ignore[arg-type]
    for other in (other_words, other_form):
        with pytest.raises(
            ValueError, match=r"step-00001\.parquet: its tokens are not this policy's"
        ) as refusal:
            load_trajectories(best, renderer=other)
        assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    path = write_archive(tmp_path / "a", 1, [group(0, ([1.0], DONE))])
    pq.write_table(pq.read_table(path).drop_columns(["env_reward"]), path)
    with pytest.raises(ValueError, match="not an archive of a run, it has no column 'env_reward'"):
        best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=1)
    path.write_text(json.dumps({}))
    with pytest.raises(ValueError, match="cannot be read as Parquet") as refusal:
        best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=1)
    assert "\n" not in str(refusal.value)


def test_an_archive_from_before_a_column_was_added_is_read(tmp_path: Path):
    renderer = Renderer(make_tokenizer(vocab_size=1024))
    trajectory = play("expert", gym="travel", index=0, renderer=renderer)
    path = write_archive(tmp_path / "a", 1, [own_table(trajectory)])
    pq.write_table(
        pq.read_table(path).drop_columns(
            ["user_facts", "user_concurrency", "queue_s", "user_s", "tool_s", "reward_s"]
        ),
        path,
    )
    best = best_trajectories([tmp_path / "a"], gyms=["travel"], per_gym=2)["travel"]
    assert len(DemonstrationSamples([load_trajectories(best, renderer=renderer)])) == 1
