"""A recipe that names gyms of one's own: checked, played, sent along, trained."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.evaluation.fingerprint import settings_of
from cluster.evaluation.request import make_request
from cluster.jobs.package import pack
from learners.model.tiny_policy import constants, make_tokenizer
from simulators.gyms import GYMS
from tests.simulators import template_gym

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = Path(template_gym.__file__)
QUICKSTART = str(ROOT / "recipes" / "cpu-quickstart.toml")
OWN = {"gyms.modules": "my_gym", "gyms.weights": "{echo = 1.0}"}
RECIPE = """
[run]
name = "job"
[gyms]
modules = ["my_gym"]
[gyms.weights]
echo = 1.0
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
max_model_len = 512
[reward.weights]
environment = 1.0
length = 1.0  # differs where nothing else does: so little training solves nothing
[buffer]
groups_per_step = 2
[sft]
num_demonstrations = 200
[grpo]
num_steps = 2
[evaluation]
tasks_per_gym = 4
"""


@pytest.fixture(autouse=True)
def here(folder_of_ones_own: Path) -> Path:
    """With my_gym.py in it."""
    (folder_of_ones_own / "my_gym.py").write_text(TEMPLATE.read_text())
    return folder_of_ones_own


def test_a_recipe_weighs_a_gym_of_its_own_like_any_other(here: Path) -> None:
    (here / "r.toml").write_text('[gyms]\nmodules = ["my_gym"]\nheld_out = ["tau"]\n')
    config = load(here / "r.toml")
    assert config.gyms.weights == dict.fromkeys([*GYMS, "echo"], 1.0)
    assert set(config.gyms.open()) == {*GYMS, "echo"}
    assert load(None, OWN).gyms.trained == {"echo": 1.0}
    assert (
        load(None, OWN | {"learner.by_gym": "{echo = {gamma = 0.5}}"}).learner.credit_of("echo").gamma == 0.5
    )
    (here / "resolved.toml").write_text(config.to_toml())
    assert load(here / "resolved.toml") == config


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"gyms.modules": "nowhere"}, "nowhere: no such module"),
        (
            {"gyms.weights": "{echo = 1.0}"},
            "'echo': unknown gym: .*name the module of a gym of your own in gyms.modules",
        ),
        ({"gyms.modules": "my_gym", "gyms.held_out": '["ecko"]'}, "'ecko': unknown gym: did you mean echo?"),
        ({"learner.by_gym": '{taut = "rloo"}'}, "learner.by_gym: 'taut': unknown gym: .* tau?"),
    ],
)
def test_what_is_not_known_is_one_line(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(BadInput, match=says) as refused:
        load(None, overrides)
    assert "\n" not in str(refused.value)


def test_the_released_rules_know_no_gym_but_their_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "echo.json").write_text("[]")
    words = ["--gyms.modules", "my_gym", "--gyms.weights", "{echo = 1.0}", "--gyms.preset", "published"]
    assert main(["check", QUICKSTART, *words, "--gyms.data.echo", "echo.json"]) == 2
    assert "my_gym has no released rules" in capsys.readouterr().err


def test_check_plays_the_gym_and_says_what_is_wrong_with_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", QUICKSTART, "--run", "echo", "--gyms.modules", "my_gym", "--gyms.weights", "{echo = 1}"]
    assert main(words) == 0
    assert "echo 1" in capsys.readouterr().out
    broken = TEMPLATE.read_text().replace("score=float(right)", "score=3 * right")
    (here / "broken_gym.py").write_text(broken)
    assert main(["broken_gym" if word == "my_gym" else word for word in words]) == 2
    told = capsys.readouterr().err
    assert told.startswith("gyms: echo: a dialogue paid 3 with its expert") and told.count("\n") == 1


def test_the_gyms_of_a_recipe_open_in_another_process_too(here: Path) -> None:
    (here / "open.pickle").write_bytes(pickle.dumps(load(None, OWN).gyms.open))
    code = "import pickle; print(*pickle.load(open('open.pickle', 'rb'))(with_data=False))"
    printed = run([sys.executable, "-c", code], folder=here).stdout.split()
    assert printed == [*GYMS, "echo"]


def run(command: list[str], *, folder: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=typed,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )


def test_a_person_plays_it(here: Path) -> None:
    play = [sys.executable, "-m", "cluster.cli", "play", "echo", "--gyms.modules", "my_gym"]
    assert "environment: It is " in run(play, folder=here, typed="Word 1?\n").stdout


def test_a_job_takes_along_the_gym_that_lies_here_and_none_that_is_installed(here: Path) -> None:
    (here / "r.toml").touch()
    text = TEMPLATE.read_text().replace('name="echo"', 'name="other"')
    installed = here / "site" / "elsewhere"
    installed.mkdir(parents=True)
    (installed / "other_gym.py").write_text(text)
    sys.path.append(str(installed))
    pack(load(None, {"gyms.modules": "my_gym,other_gym"}), recipe=here / "r.toml", target=here / "p.zip")
    with zipfile.ZipFile(here / "p.zip") as package:
        names = package.namelist()
    assert "my_gym.py" in names and not [name for name in names if "other_gym" in name]


@pytest.mark.soak
@pytest.mark.slow
def test_dialogues_of_a_gym_that_was_changed_are_other_dialogues(here: Path) -> None:
    def settings() -> dict[str, object]:
        config = load(None, OWN)
        request = make_request(
            config,
            policy="expert",
            model=None,
            api_key_env=None,
            simulators="all",
            split="test",
            num_trials=1,
            success_score=0.99,
            output=None,
            as_json=False,
        )
        return settings_of(config, request, policy_folder=str(here))

    before = settings()
    assert settings() == before
    (here / "my_gym.py").write_text(TEMPLATE.read_text().replace("Yes!", "Right!"))
    assert settings()["code"] != before["code"]


def test_the_small_policys_tokenizer_knows_what_is_said_there() -> None:
    gyms = {**GYMS, "echo": template_gym.GYM}
    tokenizer = make_tokenizer(vocab_size=1536, gyms=gyms)
    assert [len(tokenizer.encode(text)) for text in constants(gyms)] == [1] * len(constants(gyms))
    ours = make_tokenizer(vocab_size=1536)
    said = "It is karst."
    assert len(tokenizer.encode(said)) < len(ours.encode(said))
    assert tokenizer.decode(tokenizer.encode(said)) == said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gym_of_ones_own_is_trained(here: Path) -> None:
    """The newcomer's way: one file, one recipe, one command; every process of the run finds the gym."""
    (here / "my_gym.toml").write_text(RECIPE)
    run([sys.executable, "-m", "cluster.cli", "train", "my_gym.toml"], folder=here)
    folder = here / "runs" / "job"
    rows: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())["rows"]
    assert {row["stage"] for row in rows} == {"untrained", "sft", "grpo"}
    assert "echo" in {row["gym"] for row in rows}
    table = pq.read_table(folder / "trajectories", columns=["gym"])
    assert set(table["gym"].to_pylist()) == {"echo"}
    assert RunConfig.model_validate(load(folder / "config.toml")).gyms.modules == ("my_gym",)
