"""Secrets come from the environment and stay there: what a run leaves is searched to the last byte."""

import base64
import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.engines.protocol import Sampling
from actors.partial_rollouts import TurnUpdate, encode_turns
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout_group
from actors.trajectory import GroupOrder, StopReason
from actors.trajectory_table import to_table
from cluster.cli.main import main
from cluster.config.run_config import RunConfig, load
from cluster.preflight.checks import check_users
from cluster.run_folder.paths import RunFolder
from cluster.tracking.tracker import Tracker
from learners.buffer.archive import step_file, with_outcomes, write_tables
from learners.buffer.log.segments import LogEntry, frame_of
from learners.model.tiny_policy import make_tokenizer
from rewards.reward_functions import RewardContext
from rewards.scorer import make_scorer
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.task import Task
from simulators.users.factory import connect_users
from simulators.users.rule_user import RuleUser
from tests.cluster.tracking.test_tracker import METRICS
from tests.fake_endpoint import completion, serve_endpoint
from tests.fakes import TextEngine, call_text, make_key
from tests.secret_scan import leaks

CANARIES = {
    name: f"canary-{name.lower().replace('_', '-')}-7d1f4b9ac3"
    for name in (
        *("OPENAI_API_KEY", "USER_KEY", "JUDGE_KEY", "SEARCH_KEY", "USERRL_SIMULATOR_KEY", "HF_TOKEN"),
        *("WANDB_API_KEY", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"),
    )
}
VALUE = next(iter(CANARIES.values()))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": [VALUE] * 100}), path, compression="zstd", use_dictionary=True)


def in_metadata(path: Path) -> None:
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"made_by": VALUE})
    pq.write_table(table, path, compression="zstd")


def journal(path: Path) -> None:
    table = pa.table({"text": [VALUE]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    frames = [
        LogEntry(number=0, kind="a", facts={}),
        LogEntry(number=1, kind="b", facts={}, body=sink.getvalue()),
    ]
    path.write_bytes(b"".join(bytes(part) for entry in frames for part in frame_of(entry)))


def wandb_log(path: Path) -> None:
    """One record over two blocks, the secret on the border."""
    first = b"x" * (32768 - 7 - 7 - 10) + VALUE[:10].encode()
    parts = [(1, first), (4, VALUE[10:].encode())]
    blocks = [b"\0" * 4 + len(part).to_bytes(2, "little") + bytes([kind]) + part for kind, part in parts]
    path.write_bytes(b":W&B\0\0\0" + b"".join(blocks))


def page(path: Path) -> None:
    rows = base64.b64encode(gzip.compress(json.dumps({"a": VALUE, "b": list(range(200))}).encode()))
    path.write_bytes(b"<!doctype html><html><script>" + rows + b"</script></html>")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", VALUE)


HIDING = {
    "plain.log": lambda path: path.write_text(f"... {VALUE} ..."),
    "base64.json": lambda path: path.write_bytes(base64.b64encode(f"Bearer {VALUE}!".encode())),
    "hex.json": lambda path: path.write_text(VALUE.encode().hex()),
    "values.parquet": parquet,
    "metadata.parquet": in_metadata,
    "entries-000000000000.log": journal,
    "run.wandb": wandb_log,
    "report.html": page,
    "trace.json.gz": lambda path: path.write_bytes(gzip.compress(VALUE.encode())),
    "package.zip": zipped,
    f"{VALUE}.txt": lambda path: path.write_text("in its name"),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_secret_is_found_wherever_it_hides(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "clean.txt").write_text("nothing")
    HIDING[name](tmp_path / "in" / name)
    assert leaks(tmp_path, CANARIES) == [f"in/{name}: OPENAI_API_KEY"]


RECIPE = """
[run]
name = "secret"
[[simulator.users]]
type = "endpoint"
name = "gpt"
base_url = "{url}"
model = "m"
api_key_env = "USER_KEY"
max_retries = 0
record = "{folder}/secret/record"
[simulator.web_search]
url = "https://search.example.org/find"
api_key_env = "SEARCH_KEY"
[reward.weights]
environment = 1.0
judge = 1.0
[reward.judge]
base_url = "{url}"
model = "m"
api_key_env = "JUDGE_KEY"
rubric = "Was it kind?"
max_retries = 0
[tracking]
mode = "disabled"
"""


def talkative(body: dict[str, Any]) -> Any:
    """An endpoint that repeats the keys: in errors (see tests/fake_endpoint.py), replies and its name."""
    asked = json.loads(body["messages"][-1]["content"]).get("latest", "the judge")
    if "color 0" in asked:
        return 400, "bad"
    verdict = '{"score": 3}' if asked == "the judge" else '{"slot": "none"}'
    text = f"{verdict} {CANARIES['USER_KEY']} {CANARIES['JUDGE_KEY']}"
    return {**completion(text), "model": CANARIES["USER_KEY"]} if "color 1" in asked else text


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


async def play(config: RunConfig, folder: RunFolder, renderer: Renderer) -> pa.Table:
    """A group with the recipe's users, scored by its judge, and all that is written of it."""

    def engine(task: Task, seed: int) -> TextEngine:
        said = [f"Is it color {seed % 3} or {n}?" for n in range(4)]
        return TextEngine(
            renderer, [call_text(renderer, Action(choice="action", content=one)) for one in said]
        )

    user = connect_users(config.simulator, rules=RuleUser(), gyms=GYMS)
    context = RolloutContext(
        engine_for=engine,
        user=user,
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=64),
        gyms=GYMS,
        personas="plain",
        max_turns=4,
        max_tokens=8192,
    )
    order = GroupOrder(group_id=0, task_key=make_key("intention"), seed=1, group_size=12)
    trajectories = await rollout_group(order, context)
    assert {one.stop_reason for one in trajectories} == {StopReason.SIMULATOR_ERROR, StopReason.MAX_TURNS}
    assert any("***" in one.error for one in trajectories), "the endpoint did quote the key"
    told = [
        TurnUpdate(group_id=0, trajectory=at, index=number, turn=turn)
        for at, one in enumerate(trajectories)
        for number, turn in enumerate(one.turns)
    ]
    entry = LogEntry(number=0, kind="turns", facts={}, body=encode_turns(told))
    (folder.path / "journal").mkdir()
    parts = frame_of(entry)
    (folder.path / "journal" / "entries-000000000000.log").write_bytes(
        b"".join(bytes(part) for part in parts)
    )
    scorer = make_scorer(config.reward, context=RewardContext(), num_processes=1)
    return await scorer(to_table(order, trajectories), True)


@pytest.mark.medium
async def test_what_is_written_of_dialogues_with_endpoints_that_quote_their_keys_holds_none(
    tmp_path: Path, renderer: Renderer, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serve_endpoint(talkative) as endpoint:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(RECIPE.format(url=endpoint.url, folder=tmp_path))
        config = load(recipe, {"run.folder": str(tmp_path)})
        check_users(config)
        folder = RunFolder.of(config)
        folder.create(config)
        table = await play(config, folder, renderer)
        sent = {headers["Authorization"] for headers in endpoint.headers}
    assert sent == {f"Bearer {CANARIES[name]}" for name in ("USER_KEY", "JUDGE_KEY")}, "both were used"
    outcomes = ["trained"] * 12
    path = folder.trajectories / f"{step_file(1)}.parquet"
    write_tables(path, [with_outcomes(table, outcomes=outcomes, step=1)])
    with Tracker(folder, config=config) as tracker:
        tracker.log_step(1, metrics=METRICS)
    assert list((folder.path / "record").glob("*.jsonl"))
    assert leaks(tmp_path, CANARIES) == []
    assert not [name for name, value in CANARIES.items() if value in "".join(capsys.readouterr())]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "RECIPE", "--reward.judge.base_url", f"http://user:{CANARIES['JUDGE_KEY']}@127.0.0.1:1/v1"],
        ["train", "RECIPE", "--reward.judge.api_key_env", CANARIES["JUDGE_KEY"]],
        ["check", "RECIPE", "--simulator.api_key_env", CANARIES["USERRL_SIMULATOR_KEY"]],
        ["check", "RECIPE", "--simulator.web_search.api_key_env", CANARIES["SEARCH_KEY"]],
    ],
)
def test_a_key_in_the_wrong_place_is_refused_without_being_repeated_or_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(url="http://127.0.0.1:1/v1", folder=tmp_path))
    assert main([str(recipe) if word == "RECIPE" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert not [name for name, value in CANARIES.items() if value in line]
    assert leaks(tmp_path, CANARIES) == []


SMALL = """
[run]
name = "small"
[gyms.weights]
travel = 1.0
[policy.tiny]
hidden_size = 64
num_layers = 2
num_heads = 2
intermediate_size = 128
[rollout]
group_size = 4
dialogues_per_actor = 16
max_completion_tokens = 24
[engine]
max_model_len = 768
[reward.weights]
environment = 1.0
length = 1.0  # differs where nothing else does: so little training solves nothing
[buffer]
groups_per_step = 2
[sft]
num_demonstrations = 50
num_epochs = 1.0
[grpo]
num_steps = 2
[evaluation]
tasks_per_gym = 2
[checkpoint]
every_steps = 1
[tracking]
mode = "offline"
"""


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_run_leaves_no_secret_in_its_folder_its_report_or_what_it_says(tmp_path: Path) -> None:
    recipe, run = tmp_path / "recipe.toml", tmp_path / "small"
    recipe.write_text(SMALL)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    said = ""
    for words in (["train", str(recipe), "--run.folder", str(tmp_path)], ["report", str(run)]):
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert {
        ".toml",
        ".jsonl",
        ".json",
        ".parquet",
        ".wandb",
        ".safetensors",
        ".bin",
        ".html",
        ".log",
    } <= kinds
    assert leaks(tmp_path, CANARIES) == []
    assert not [name for name, value in CANARIES.items() if value in said]
    assert not [path for path in run.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
