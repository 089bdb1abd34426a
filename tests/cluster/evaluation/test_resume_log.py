"""The journal: what is finished is not played again, what failed is; a kill loses at most a half-written
line."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn, as_ids
from actors.trajectory_table import to_table
from cluster.config.recipe import BadInput
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.outcomes import from_json, outcomes_of, to_json, write_parquet
from cluster.evaluation.resume_log import EvaluationLog
from learners.buffer.fixed_work_source import without_tokens
from simulators.message import Action
from tests.fakes import make_key

SETTINGS: dict[str, object] = {"seed": 0, "num_tasks": 2}


def group(
    task_id: str, *, scores: tuple[float, ...] = (1.0,), simulator: str = "rules"
) -> list[DialogueOutcome]:
    return [
        DialogueOutcome(
            gym="function",
            task_id=task_id,
            policy="expert",
            simulator=simulator,
            trial=trial,
            score=score,
            num_turns=1,
            rewards=(0.0 if math.isnan(score) else score,),
            choices=("answer",),
            contents=("line\nbreak \u2028 7",),
            stop_reason=StopReason.ENGINE_ERROR if math.isnan(score) else StopReason.TERMINATED,
        )
        for trial, score in enumerate(scores)
    ]


def journal(
    folder: Path, *, policy: str = "expert", settings: dict[str, object] | None = None
) -> EvaluationLog:
    return EvaluationLog(folder / "e.dialogues.jsonl", policy=policy, settings=settings or SETTINGS)


def test_what_is_finished_is_there_the_next_time(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.add("rules", [group("a", scores=(1.0, 0.0)), group("b")])
    with journal(tmp_path) as second:
        assert second.has("rules", "a") and second.has("rules", "b")
        assert not second.has("llm", "a")
        (evaluation,) = second.evaluations()
    assert evaluation.outcomes == [*group("a", scores=(1.0, 0.0)), *group("b")]


def test_a_task_with_a_failed_dialogue_is_played_again(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.add("rules", [group("a", scores=(1.0, math.nan)), group("b")])
        assert [outcome.failed for outcome in first.evaluations()[0].outcomes] == [False, True, False]
    with journal(tmp_path) as second:
        assert not second.has("rules", "a")
        second.add("rules", [group("a", scores=(1.0, 0.5))])
        assert len(second.evaluations()[0].outcomes) == 3


def test_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.add("rules", [group("a"), group("b")])
    path = tmp_path / "e.dialogues.jsonl"
    path.write_text(path.read_text()[:-20])
    with journal(tmp_path) as second:
        assert second.has("rules", "a") and not second.has("rules", "b")
        second.add("rules", [group("b")])
    with journal(tmp_path) as third:
        assert third.has("rules", "b")


def test_other_settings_are_another_evaluation_and_other_policies_stay(tmp_path: Path) -> None:
    with journal(tmp_path) as first:
        first.add("rules", [group("a")])
    with journal(tmp_path, policy="random") as other:
        other.add("rules", [group("a", scores=(0.0,))])
    with journal(tmp_path, settings={"seed": 1}) as again:
        assert again.changed == ["seed", "num_tasks"] and not again.has("rules", "a")
        assert again.previous is not None and '"function"' in again.previous.read_text()
        again.add("rules", [group("c")])
        assert [e.policy for e in again.evaluations()] == ["random", "expert"]
    with journal(tmp_path, policy="random") as last:
        assert not last.changed and last.has("rules", "a")
        assert [len(e.outcomes) for e in last.evaluations()] == [1, 1]


def test_two_evaluations_cannot_write_one_file(tmp_path: Path) -> None:
    with (
        journal(tmp_path),
        pytest.raises(BadInput, match="another evaluation writes here"),
        journal(tmp_path),
    ):
        pass


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.dialogues.jsonl").write_text('{"policy": "x"}\n')
    with pytest.raises(BadInput, match="not a journal"), journal(tmp_path):
        pass


def a_table_of_two() -> list[DialogueOutcome]:
    """One dialogue with two turns, and one that failed before its first."""
    turn = Turn(
        context_ids=as_ids([1]),
        forked=True,
        completion=Completion.of((5,), logprobs=(0.0,), policy_versions=(0,)),
        text="call",
        action=Action(choice="action", content="Why?"),
        feedback="So.",
        reward=0.25,
        policy_s=1.0,
        queue_s=0.25,
        user_s=0.5,
    )
    said = Turn(
        context_ids=as_ids(()),
        forked=False,
        completion=turn.completion,
        text="I am done.",
        action=None,
        feedback="",
        reward=0.0,
    )
    key = make_key("function")
    done = Trajectory(
        task_key=key, system="s", opening="Hi.", turns=[turn, said], stop_reason=StopReason.NO_TOOL_CALL
    )
    broken = Trajectory(
        task_key=key, system="s", opening="Hi.", turns=[], stop_reason=StopReason.ENGINE_ERROR, error="gone"
    )
    order = GroupOrder(group_id=0, task_key=key, group_size=2, seed=0)
    return outcomes_of(without_tokens(to_table(order, [done, broken])), policy="p", simulator="rules")


def test_outcomes_are_read_off_a_groups_table_and_survive_json() -> None:
    done, broken = a_table_of_two()
    assert (done.score, done.num_turns, done.rewards) == (0.25, 2, (0.25, 0.0))
    assert (done.choices, done.contents) == (("action", ""), ("Why?", "I am done."))
    assert (done.feedbacks, done.opening, done.trial) == (("So.", ""), "Hi.", 0)
    assert broken.failed and math.isnan(broken.score)
    assert (broken.num_turns, broken.rewards, broken.error, broken.trial) == (0, (), "gone", 1)
    assert done.seconds == from_json(to_json(done)).seconds == (1.0, 0.25, 0.5, 0.0, 0.0)
    assert from_json(to_json(done)) == done
    assert math.isnan(from_json(to_json(broken)).score)


def test_parquet_has_a_row_a_dialogue_and_no_score_where_it_failed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "e.parquet", a_table_of_two(), success_score=0.2)
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert [(row["score"], row["success"], row["failed"]) for row in rows] == [
        (0.25, True, False),
        (None, None, True),
    ]
    assert rows[0]["rewards"] == [0.25, 0.0]
    assert (rows[0]["policy_s"], rows[0]["queue_s"], rows[0]["user_s"]) == (1.0, 0.25, 0.5)
    assert rows[0]["stop_reason"] == "no_tool_call"
