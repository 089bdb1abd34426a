"""Published rules for comparisons: tasks by id, outside verdicts, end flags, both settings."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.config.gyms import GymsConfig
from simulators import make_env
from simulators.env import TurnResult
from simulators.env_factory import open_gyms
from simulators.published import FLAGS, PUBLISHED, published_gyms
from simulators.published.settings import PublishedSetting
from simulators.published.shared_rules import make_task
from simulators.task import Task
from tests.simulators.published.scripted_judges import USERRL, Oracle, needs_data, play, rewards
from tests.simulators.published.trip_data import load_trip, write_trip

DOCS = Path(__file__).resolve().parents[3] / "docs" / "gyms.md"
FUNCTIONS = [
    {"id": f"func-{n}", "rule": "a + b + c + d", "test_case": [1, 2, 3, n], "expected_result": 6.0 + n}
    for n in (7, 12, 120)
]
SCENARIOS = {
    "function": FUNCTIONS[0],
    "intention": {
        "id": "i",
        "category": "c",
        "task": "t",
        "details": [{"description": "d", "importance": 3, "inquiry": "q", "options": []}],
    },
    "persuade": {"id": "p", "claim": "A is B", "argument": "because"},
    "search": {"id": "s", "question": "Who?", "answer": "Ann"},
    "telepathy": {"title": "Cat", "target_entity": "Cat - an animal", "category": "animal"},
    "turtle": {"title": "t", "surface": "s", "bottom": "b", "statements": ["x"], "weights": [1.0]},
}
RIGHT = {
    "function": ("[answer] 13", {}),
    "intention": ("[action] q", {"covered": [0]}),
    "persuade": ("[answer] x", {"stance": "Strongly Disagree"}),
    "search": ("[answer] Ann", {}),
    "telepathy": ("[answer] cat", {"judgment": "Yes"}),
    "turtle": ("[answer] x", {"scores": [1]}),
    "travel": ("[answer] F1,H1", {}),
}
IDLE = ("[action] x", {"type": 1, "stance": "Strongly Agree", "covered": [], "response": "No"})


def task_of(gym: str, folder: Path) -> Task:
    return (
        load_trip(folder) if gym == "travel" else make_task(gym, index=0, opening="", scenario=SCENARIOS[gym])
    )


async def last_step(
    gym: str, folder: Path, *, text: str, facts: Mapping[str, Any], setting: PublishedSetting
) -> TurnResult:
    """The last step of a dialogue of idle turns that ends with `text` at the limit."""
    rules = published_gyms(setting)[gym]
    texts = [IDLE[0]] * (rules.max_turns - 1) + [text]
    verdicts = [IDLE[1]] * (rules.max_turns - 1) + [facts]
    steps = await play(task_of(gym, folder), texts, gym=rules, user=Oracle(verdicts))
    assert len(steps) == rules.max_turns
    return steps[-1]


@pytest.mark.parametrize(
    ("gym", "solved", "idle", "finished"),
    [
        ("function", (True, True), (False, True), (True, True)),
        ("search", (True, True), (False, True), (True, True)),
        ("telepathy", (True, True), (False, True), (True, True)),
        ("turtle", (True, True), (False, True), (True, True)),
        ("persuade", (True, False), (False, True), (True, False)),
        ("intention", (True, False), (True, True), (True, False)),
        ("travel", (True, True), (False, True), (True, False)),
    ],
)
async def test_the_sixteenth_turn_is_flagged_as_released(
    tmp_path: Path, gym: str, solved: object, idle: object, finished: object
):
    cases = ((*RIGHT[gym], solved), (*IDLE, idle), ("[finish]", {}, finished))
    for text, facts, flags in cases:
        step = await last_step(gym, tmp_path, text=text, facts=facts, setting="evaluation")
        assert (step.terminated, step.truncated) == flags, text


@pytest.mark.parametrize("gym", RIGHT)
async def test_in_training_no_gym_reaches_its_own_limit(tmp_path: Path, gym: str):
    """The released rollout stops after 15 of the gym's 16 turns: that is a cut, whatever the gym."""
    step = await last_step(gym, tmp_path, text=RIGHT[gym][0], facts=RIGHT[gym][1], setting="training")
    assert (step.terminated, step.truncated) == (True, False)
    step = await last_step(gym, tmp_path, text=IDLE[0], facts=IDLE[1], setting="training")
    assert (step.terminated, step.truncated) == (False, True)


@pytest.mark.parametrize("gym", ["function", "search", "travel"])
async def test_blanks_before_a_tag_are_stripped_where_the_released_gym_strips(tmp_path: Path, gym: str):
    (step,) = await play(task_of(gym, tmp_path), [f" \n{RIGHT[gym][0]}"])
    assert step.reward > 0 and step.terminated


async def test_blanks_before_a_tag_make_it_a_question_or_an_argument_elsewhere(tmp_path: Path):
    oracle = Oracle([{"response": "No"}])
    (step,) = await play(task_of("telepathy", tmp_path), [" [answer] cat"], user=oracle)
    assert (oracle.calls[0].choice, oracle.calls[0].question) == ("action", "] cat")
    oracle = Oracle([{"stance": "Agree"}])
    (step,) = await play(task_of("persuade", tmp_path), [" [finish]"], user=oracle)
    assert not step.terminated and oracle.calls[0].question == "[finish]"


@pytest.mark.parametrize(("gym", "ends"), [("intention", True), ("travel", True), ("function", False)])
async def test_finish_in_capitals_is_known_to_two_gyms(tmp_path: Path, gym: str, ends: bool):
    (step,) = await play(task_of(gym, tmp_path), ["[FINISH] now"])
    assert step.terminated is ends and step.reward == 0.0


@pytest.mark.parametrize("gym", ["function", "search", "travel"])
async def test_training_shows_the_reward_of_unread_text_too(tmp_path: Path, gym: str):
    rules = published_gyms("training")[gym]
    (step,) = await play(task_of(gym, tmp_path), ["no tag at all"], gym=rules)
    assert step.feedback.endswith("\nReward: 0.0")


async def test_verdicts_may_be_written_as_the_released_judges_write_them(tmp_path: Path):
    judge = {"analysis": "", "is_task_related": True, "covered_detail_indices": ["0", 7, True]}
    task = task_of("intention", tmp_path)
    assert rewards(await play(task, ["[action] q"], user=Oracle([judge]))) == [1.0]
    assert rewards(await play(task, ["[action] q"], user=Oracle([{**judge, "is_task_related": False}]))) == [
        0.0
    ]
    scores = [{"statement": "x", "thought": "", "score": 0.5}]
    task = task_of("turtle", tmp_path)
    assert rewards(await play(task, ["[answer] q"], user=Oracle([{"scores": scores, "feedback": ""}]))) == [
        0.5
    ]


async def test_empty_searches_count_and_empty_answers_are_not_judged(tmp_path: Path):
    oracle = Oracle(lambda call: {"judgment": "Yes"})
    steps = await play(
        task_of("search", tmp_path), ["[search]"] * 5 + ["[search] x", "[answer] "], user=oracle
    )
    assert not oracle.calls and rewards(steps) == [0.0] * 7
    assert (
        "empty" in steps[0].feedback and "No searches" in steps[5].feedback and "empty" in steps[6].feedback
    )


def test_the_settings_differ_where_stated_and_a_recipe_reaches_both():
    for constants in ("training", "evaluation"):
        config = GymsConfig(
            preset="published",
            constants=constants,
            weights={"travel": 1.0},
            data={"travel": Path("x.json")},
        )
        gyms = open_gyms(config.preset, config.constants, {})
        assert {gym.max_turns for gym in gyms.values()} == {15 if constants == "training" else 16}
    assert set(FLAGS) | {"persuade"} == set(PUBLISHED)


@pytest.mark.parametrize(
    ("constants", "paid", "num_turns"),
    [("training", [0.0, 0.8, 1.0], 15), ("evaluation", [0.2, 0.6, 1.0], 16)],
)
async def test_both_settings_are_reached_from_make_env(
    tmp_path: Path, constants: str, paid: list[float], num_turns: int
):
    verdicts = [
        {"alignment_judgement": "True", "alignment_aspect": "Hotel "},
        {"type": "2", "preference_id": "P2"},
    ]
    env = make_env(
        "travel",
        preset="published",
        constants=constants,  # type: ignore[arg-type]
        data=write_trip(tmp_path),
        published_id="flight:2-1|hotel:2-1",
        user=Oracle(verdicts),
    )
    texts = ["[search] q", "[action] q", "[answer] F1"] + ["[answer] x"] * 20
    steps: list[TurnResult] = []
    while not steps or not (steps[-1].terminated or steps[-1].truncated):
        steps.append(await env.step(texts[len(steps)]))
    assert rewards(steps)[:3] == paid and len(steps) == num_turns
    shown = [step.feedback.endswith(f"\nReward: {step.reward}") for step in steps]
    assert shown == [constants == "training"] * num_turns


async def test_a_task_is_picked_by_its_published_id(tmp_path: Path):
    path = tmp_path / "functions.test.json"
    path.write_text(json.dumps(FUNCTIONS))
    for name, expected in (("func-12", 18), ("func-120", 126), ("func-7", 13)):
        env = make_env("function", preset="published", data=path, published_id=name)
        assert (await env.step(f"[answer] {expected}")).reward == 1.0


def test_an_id_that_is_not_there_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "functions.test.json"
    path.write_text(json.dumps(FUNCTIONS))
    with pytest.raises(ValueError, match="did you mean 'func-12'") as refused:
        make_env("function", preset="published", data=path, published_id="func-13")
    assert "\n" not in str(refused.value)
    for settings in ({"data": path}, {}):
        with pytest.raises(ValueError, match=r"published_id='func-7'.*preset='published' and data=PATH"):
            make_env("function", published_id="func-7", **settings)  # type: ignore[arg-type]


@pytest.mark.medium
@needs_data
@pytest.mark.parametrize(
    ("gym", "file", "published_id"),
    [
        ("function", "gyms/functions.train.json", None),
        ("intention", "gyms/intentions.train.json", None),
        ("persuade", "parquet/persuasion_multiturn.train.parquet", None),
        ("persuade", "parquet/alltrain_multiturn.train.parquet", None),
        ("search", "gyms/questions.sample.json", None),
        ("tau", "gyms/tau.train.json", "retail-train-003"),
        ("tau", "parquet/tau_multiturn.train.parquet", "retail-train-003"),
        ("telepathy", "gyms/entities.train.json", "Albert Einstein"),
        ("telepathy", "parquet/telepathy_multiturn.train.parquet", "Albert Einstein"),
        ("turtle", "gyms/stories.train.json", None),
    ],
)
async def test_every_shipped_form_is_picked_by_id(gym: str, file: str, published_id: str | None):
    tasks = PUBLISHED[gym].load_tasks(USERRL / file)
    name = published_id or str(tasks[1].scenario.get("id", tasks[1].scenario.get("title")))
    opening = (await make_env(gym, preset="published", data=USERRL / file, published_id=name).reset()).opening
    assert opening in [task.opening for task in tasks if name in task.scenario.values()]


@needs_data
async def test_the_example_of_the_page_runs():
    page = DOCS.read_text()
    (example,) = re.findall(r"```python\n(import asyncio\nfrom pathlib.*?)```", page, flags=re.DOTALL)
    assert "DATA = Path(" in example
    example = re.sub(r"DATA = Path\(.*\)", f"DATA = Path({str(USERRL)!r})", example)
    example = example.rpartition("asyncio.run(")[0]
    names: dict[str, object] = {}
    exec(example, names)
    await names["compare"]()  # type: ignore[operator]
