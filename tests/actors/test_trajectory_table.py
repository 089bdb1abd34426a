"""The group's table: it holds every field of a turn, and at least a row of every trajectory."""

import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from actors.trajectory import Completion, GroupOrder, StopReason, Trajectory, Turn, as_ids
from actors.trajectory_table import SCHEMA, to_table, with_reward_seconds
from simulators.message import Action
from simulators.user import UserReply
from tests.fakes import make_key

KEY = make_key("travel", index=3)
ORDER = GroupOrder(group_id=9, task_key=KEY, group_size=3, seed=1)
FULL = Turn(
    context_ids=as_ids([1, 2, 3]),
    forked=True,
    completion=Completion.of([4, 5], logprobs=[-0.5, -0.25], policy_versions=[6, 7]),
    text="caf\u00e9 <tool_call>",
    action=Action(choice="search", content="flight sea"),
    feedback="F30 costs 7",
    reward=0.1,
    progress=0.5,
    user_reply=UserReply(
        text="F30",
        facts={"part": "flight"},
        model="m",
        prompt_hash="ab",
        seed=3,
        num_tokens=12,
        latency_s=0.5,
        num_retries=2,
        concurrency=16,
    ),
    policy_s=1.5,
    queue_s=0.25,
    user_s=0.75,
    tool_s=0.125,
)
MUTE = Turn(
    context_ids=as_ids([8]),
    forked=False,
    completion=Completion.of([9], logprobs=[-1.0], policy_versions=[7]),
    text="Well.",
    action=None,
    feedback="",
    reward=0.0,
)
TRAJECTORIES = [
    Trajectory(
        task_key=KEY,
        system="S",
        opening="O",
        turns=[FULL, MUTE],
        stop_reason=StopReason.NO_TOOL_CALL,
        gold=[Action(choice="answer", content="F30", thought="not told")],
    ),
    Trajectory(
        task_key=KEY, system="", opening="", turns=[], stop_reason=StopReason.ERROR, error="KeyError: 'x'"
    ),
    Trajectory(
        task_key=KEY, system="S", opening="O", turns=[FULL], stop_reason=StopReason.ENGINE_ERROR, error="gone"
    ),
]


def test_every_column_of_a_turn_comes_back():
    table = to_table(ORDER, TRAJECTORIES)
    table.validate(full=True)
    assert table.schema == SCHEMA
    assert table.to_pylist()[0] == {
        "group_id": 9,
        "trajectory": 0,
        "turn": 0,
        "gym": "travel",
        "task_id": KEY.task_id,
        "stop_reason": "no_tool_call",
        "failed": False,
        "error": "",
        "forked": True,
        "context_ids": [1, 2, 3],
        "completion_ids": [4, 5],
        "behavior_logprobs": [-0.5, -0.25],
        "policy_versions": [6, 7],
        "system": "S",
        "opening": "O",
        "text": "caf\u00e9 <tool_call>",
        "choice": "search",
        "content": "flight sea",
        "feedback": "F30 costs 7",
        "env_reward": 0.1,
        "progress": 0.5,
        "news": "F30 costs 7",
        "gold": '[{"choice": "answer", "content": "F30"}]',
        "persona": "plain",
        "simulator": "rules",
        "user_model": "m",
        "user_prompt_hash": "ab",
        "user_seed": 3,
        "user_tokens": 12,
        "user_latency_s": 0.5,
        "user_retries": 2,
        "user_concurrency": 16,
        "user_facts": '{"part": "flight"}',
        "policy_s": 1.5,
        "queue_s": 0.25,
        "user_s": 0.75,
        "tool_s": 0.125,
        "reward_s": 0.0,
    }


def test_every_turn_has_the_gold_calls_of_its_trajectory_and_the_progress_after_it():
    table = to_table(ORDER, TRAJECTORIES)
    assert [bool(gold) for gold in table["gold"].to_pylist()] == [True, True, False, False]
    assert table["progress"].to_pylist() == [0.5, 0.0, 0.0, 0.5]


def test_rows_are_turns_in_order():
    table = to_table(ORDER, TRAJECTORIES)
    assert table["trajectory"].to_pylist() == [0, 0, 1, 2]
    assert table["turn"].to_pylist() == [0, 1, 0, 0]
    assert table["forked"].to_pylist() == [True, False, True, True]
    assert table["failed"].to_pylist() == [False, False, True, True]
    assert table["choice"].to_pylist() == ["search", None, None, "search"]
    assert table["content"].to_pylist() == ["flight sea", None, None, "flight sea"]


def test_a_trajectory_without_turns_has_one_row_without_tokens():
    row = to_table(ORDER, TRAJECTORIES).to_pylist()[2]
    assert (row["stop_reason"], row["error"]) == ("error", "KeyError: 'x'")
    assert (
        row["context_ids"]
        == row["completion_ids"]
        == row["behavior_logprobs"]
        == row["policy_versions"]
        == []
    )
    assert (row["env_reward"], row["text"]) == (0.0, "")


def test_a_user_that_failed_is_named_in_rows_without_a_reply():
    failed = Trajectory(
        task_key=KEY,
        system="S",
        opening="O",
        turns=[FULL, MUTE],
        stop_reason=StopReason.ROLE_FLIP,
        error="qwen: it spoke as the agent",
        simulator="qwen",
    )
    before_any_turn = replace(failed, turns=[])
    names = to_table(ORDER, [failed, before_any_turn, TRAJECTORIES[0]])["simulator"].to_pylist()
    assert names == ["rules", "qwen", "qwen", "rules", ""]


def test_half_a_character_from_outside_is_replaced_in_every_text():
    """An endpoint's error text, cut by a server in the middle of an emoji, and a user's reply."""
    half, whole = "cut \ud83d", "cut \N{REPLACEMENT CHARACTER}"
    failed = Trajectory(
        task_key=KEY, system=half, opening=half, turns=[], stop_reason=StopReason.ENGINE_ERROR, error=half
    )
    told = replace(failed, turns=[replace(FULL, feedback=half), FULL], error="other")
    rows = to_table(ORDER, [failed, told]).to_pylist()
    assert [row["error"] for row in rows] == [whole, "other", "other"]
    assert {row["system"] for row in rows} == {row["opening"] for row in rows} == {whole}
    assert [row["feedback"] for row in rows] == ["", whole, FULL.feedback]


def test_a_group_of_failures_alone_has_a_table():
    table = to_table(ORDER, [TRAJECTORIES[1]] * 3)
    assert table.num_rows == 3 and table.schema == SCHEMA


def test_each_trajectory_waits_for_its_groups_scoring_in_equal_parts_over_its_turns():
    table = with_reward_seconds(to_table(ORDER, TRAJECTORIES), 3.0)
    assert table["reward_s"].to_pylist() == [1.5, 1.5, 3.0, 3.0]
    assert table.schema == SCHEMA


def test_the_table_survives_arrow_and_parquet():
    table = to_table(ORDER, TRAJECTORIES)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    assert pa.ipc.open_stream(stream.getvalue()).read_all() == table
    file = io.BytesIO()
    pq.write_table(table, file)
    assert pq.read_table(file).to_pylist() == table.to_pylist()
