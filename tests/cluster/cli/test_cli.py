"""The command line: one line and exit code 2 for what cannot run, at once, without the heavy packages."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.cli import run_commands
from cluster.cli.main import main, split_overrides
from cluster.config.run_config import RunConfig, load
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, write_rows
from cluster.run_folder.paths import RunFolder

ROOT = Path(__file__).parents[3]
QUICKSTART = str(ROOT / "recipes" / "cpu-quickstart.toml")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_overrides_are_taken_out_in_all_their_forms() -> None:
    words = ["train", "--learner.lr", "1e-3", "r.toml", "grpo.num_steps=3", "--run.seed=-1", "--run", "x"]
    assert split_overrides(words) == (
        ["train", "r.toml", "--run", "x"],
        {"learner.lr": "1e-3", "grpo.num_steps": "3", "run.seed": "-1"},
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", QUICKSTART, "--lerner.lr", "1"], "lerner.lr: unknown key: did you mean learner.lr?"),
        (
            ["check", QUICKSTART, "--num_steps", "1"],
            "--num_steps: unknown option: did you mean --grpo.num_steps?",
        ),
        (["check", QUICKSTART, "--learner.num_learners", "4096"], "learner.num_learners=4096: "),
        (["train", QUICKSTART, "--rollout.group_size", "1"], "a group needs at least 2 trajectories"),
        (["train", QUICKSTART, "--policy.path", "./none"], "policy.path='./none': no such folder"),
        (["train", QUICKSTART, "--ray.address", "127.0.0.1:1"], "no answer within 1 s"),
        (["train", QUICKSTART, "--gyms.weights.functon", "1"], "did you mean function?"),
        (["train", QUICKSTART, "--learner.lr"], "--learner.lr: a value is missing"),
        (["train", "nowhere.toml"], "nowhere.toml: no such recipe"),
        (["train", "."], "no config.toml there: give a recipe"),
        (["evaluate", "--policy", "exprt"], "did you mean expert?"),
        (["evaluate", "--policy", "expert", "--gyms", "function,travl"], "did you mean travel?"),
        (["evaluate", "--policy", "expert", "--tasks", "0"], "evaluation.tasks_per_gym=0: must be greater"),
        (["trian", QUICKSTART], "invalid choice: 'trian'"),
        ([], "required: COMMAND"),
    ],
)
def test_what_cannot_run_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert list(in_an_empty_folder.iterdir()) == []


@pytest.mark.medium
def test_a_refusal_and_help_take_under_3_s_without_heavy_packages() -> None:
    heavy = "('torch', 'ray', 'vllm', 'transformers', 'wandb', 'matplotlib', 'pyarrow')"
    for words, code in ((["train", QUICKSTART, "--learner.lr", "-1"], 2), (["train", "--help"], 0)):
        program = (
            "import sys; from cluster.cli.main import main\n"
            f"try: code = main({words!r})\n"
            "except SystemExit as end: code = end.code\n"
            f"loaded = [name for name in {heavy} if name in sys.modules]\n"
            f"sys.exit(f'{{code}} {{loaded}}' if code != {code} or loaded else 0)"
        )
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 3


def test_check_prints_the_plan_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    assert main(["check", QUICKSTART, "--run", "other", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["run"], plan["state"], plan["num_slots"]) == ("other", "fresh", 16)
    assert {p["name"] for p in plan["processes"]} >= {"simulator", "rollout actor", "engine", "learner"}
    assert "runs/other/metrics.jsonl" in plan["files"]
    assert list(in_an_empty_folder.iterdir()) == []


def a_finished_run() -> RunFolder:
    config = load(Path(QUICKSTART), {})
    folder = RunFolder.of(config)
    folder.create(config)
    folder.begin_checkpoint(config.grpo.num_steps)
    folder.complete_checkpoint(config.grpo.num_steps)
    folder.model.mkdir()
    (folder.model / "config.json").touch()
    outcome = DialogueOutcome(gym="function", task_id="task", score=1.0, num_turns=2)
    write_rows(folder.evaluation, evaluation_rows([outcome], stage="grpo", seed=0))
    return folder


def test_a_finished_run_shows_its_table_again_and_says_how_to_start_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = a_finished_run()
    for source in (QUICKSTART, str(folder.path)):
        assert main(["train", source, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["rows"][0]["score"] == 1.0
        assert "--run NAME starts another" in err


def test_the_same_name_with_another_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    a_finished_run()
    assert main(["train", QUICKSTART, "--rollout.group_size", "4"]) == 2
    assert (
        "rollout.group_size=4: runs/quickstart has a run with 8: give --run NAME" in capsys.readouterr().err
    )


@pytest.mark.parametrize("failure", [RuntimeError("engine died\nmore"), KeyboardInterrupt()])
def test_a_failure_is_one_line_with_its_traceback_in_the_run_folder(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig) -> None:
        raise failure

    monkeypatch.setattr(run_commands, "check", fail)
    code = main(["check", QUICKSTART])
    err = capsys.readouterr().err
    if isinstance(failure, KeyboardInterrupt):
        assert (code, err) == (130, "")
    else:
        assert (code, err.count("\n")) == (1, 1)
        assert "failed: RuntimeError: engine died (traceback: runs/quickstart/error.log)" in err
        assert "Traceback" in Path("runs/quickstart/error.log").read_text()
