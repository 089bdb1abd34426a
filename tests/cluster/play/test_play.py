"""`userrl play`, with standard input in place of the person."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.play.play import read_action, receipt
from simulators.gyms import GYMS
from simulators.gyms.telepathy import PROPERTIES
from simulators.message import Action
from tests.fakes import make_tasks

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[3]


def userrl_play(*words: str, typed: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", "play", *words],
        cwd=ROOT,
        input="".join(f"{line}\n" for line in typed),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("search flight first", Action(choice="search", content="flight first")),
        ("[answer] F12", Action(choice="answer", content="F12")),
        ("Answer: 3", Action(choice="answer", content="3")),
        ("Which cabin?", Action(choice="action", content="Which cabin?")),
        ("finish", Action(choice="finish", content="")),
        ("  ", Action(choice="action", content="")),
    ],
)
def test_a_line_is_a_choice_and_its_content_or_else_an_action(line: str, action: Action):
    assert read_action(line) == action


def test_the_receipt_names_the_turns_that_paid_and_the_sum():
    assert receipt([0.0, 0.5, 0.25]) == "turn 2: +0.50\nturn 3: +0.25\nscore 0.75 in 3 turns"


def test_a_person_plays_the_agent_and_learns_the_rewards_at_the_end():
    (task,) = make_tasks("telepathy", num=1)
    target = task.scenario["target"]
    held, *_ = task.scenario["cards"][target]
    played = userrl_play("Telepathy", typed=[f"Is it {held}?", "", f"answer {target}"])
    assert played.returncode == 0, played.stderr
    shown = played.stdout
    assert GYMS["telepathy"].system in shown and task.opening in shown
    before, _, after = shown.partition("The dialogue is over.")
    assert "environment: Yes." in before and "+1.00" not in before
    assert after.split("\n")[1:3] == ["turn 2: +1.00", "score 1.00 in 2 turns"]


def test_options_name_the_task_and_the_end_of_input_ends_the_dialogue():
    played = userrl_play("function", "--difficulty", "2", "--index", "5", "--split", "train", typed=["1 2"])
    (task,) = make_tasks("function", num=6, split="train", difficulty=2)[5:]
    assert task.opening in played.stdout and task.key.task_id in played.stdout
    assert played.stdout.endswith("The agent has left.\nscore 0.00 in 1 turn\n")


def test_a_person_plays_the_user_of_the_expert():
    (task,) = make_tasks("telepathy", num=1)
    asked = str(PROPERTIES.index("animal") + 1)
    played = userrl_play("telepathy", "--as", "user", typed=[asked])
    assert f'"target": "{task.scenario["target"]}"' in played.stdout
    assert "agent: [action] Is it animal?" in played.stdout
    assert played.stdout.endswith("no score.\n") and played.returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["travl"], "did you mean travel?"),
        (["travel", "--preset", "published"], "--gyms.data.travel FILE"),
        (["travel", "--data", "nowhere.json"], "data=nowhere.json: no such file"),
        (["travel", "--index", "-1"], "index=-1: "),
        (["travel", "--difficulty", "-1"], "gyms.difficulty=-1: "),
    ],
)
def test_what_cannot_be_played_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["play", *words]) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and not told.out
