"""Laws of every gym under the published rules."""

import asyncio
import math
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.env import GymEnv
from simulators.message import CHOICES
from simulators.published import PUBLISHED, published_gyms
from simulators.published.settings import CONSTANTS
from simulators.task import Task, TaskKey
from simulators.user import SimulatorError, UserCall, UserReply
from simulators.users.rule_user import RuleUser
from tests.effort import examples
from tests.simulators.published.scripted_judges import USERRL, Oracle, play
from tests.simulators.published.trip_data import load_trip

OURS = ("function", "intention", "persuade", "search", "telepathy", "travel", "turtle")
FILES = {
    "function": "gyms/functions.train.json",
    "intention": "gyms/intentions.train.json",
    "persuade": "parquet/persuasion_multiturn.train.parquet",
    "search": "gyms/questions.sample.json",
    "telepathy": "gyms/entities.train.json",
    "turtle": "gyms/stories.train.json",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """The first published task of each gym."""
    if not USERRL.is_dir():
        pytest.skip("the published data are not here")
    found = {name: PUBLISHED[name].load_tasks(USERRL / file)[0] for name, file in FILES.items()}
    return {**found, "travel": load_trip(tmp_path_factory.mktemp("travel"))}


def test_the_released_settings_are_as_stated():
    training, evaluation = CONSTANTS["training"], CONSTANTS["evaluation"]
    assert (training.max_turns, evaluation.max_turns) == (15, 16)
    assert (training.travel_search, training.travel_preference) == (0.0, 0.8)
    assert (evaluation.travel_search, evaluation.travel_preference) == (0.2, 0.6)
    for constants in (training, evaluation):
        assert (constants.travel_best, constants.travel_correct) == (1.0, 0.8)
        assert constants.turtle_threshold == 1.0
    assert set(OURS) <= set(PUBLISHED)


@pytest.mark.parametrize("gym", OURS)
def test_published_tasks_are_never_generated(gym: str):
    key = TaskKey(gym=gym, split="test", index=0, seed=0, difficulty=0)
    with pytest.raises(ValueError, match="load a file"):
        PUBLISHED[gym].make_task(key)
    with pytest.raises(ValueError, match="no such file"):
        PUBLISHED[gym].load_tasks(Path("nowhere.json"))


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="training, evaluation"):
        published_gyms("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("gym", OURS)
async def test_training_shows_each_reward_and_executes_fifteen_turns(gym: str, tasks: dict[str, Task]):
    texts = ["[search] x", "[answer] x", "[action] x"] * 6
    steps = await play(tasks[gym], texts, gym=published_gyms("training")[gym], user=Oracle(lambda call: {}))
    assert len(steps) == 15 and steps[-1].truncated
    assert all(step.feedback.endswith(f"\nReward: {step.reward}") for step in steps)
    steps = await play(tasks[gym], texts, user=Oracle(lambda call: {}))
    assert len(steps) == 16 and not any("Reward:" in step.feedback for step in steps)


async def test_experts_do_not_trip_over_the_shown_reward(tasks: dict[str, Task]):
    gym = published_gyms("training")["function"]
    env = GymEnv(gym, task=tasks["function"], user=RuleUser(PUBLISHED))
    expert = gym.expert(tasks["function"].opening, random.Random(0), 0.0)
    step = await env.step(str(next(expert)))
    while not step.terminated:
        step = await env.step(str(expert.send(step.feedback)))
    assert step.reward == 1.0


@pytest.mark.parametrize("gym", OURS)
async def test_finish_ends_every_gym_without_pay(gym: str, tasks: dict[str, Task]):
    (step,) = await play(tasks[gym], ["[finish]"])
    assert step.terminated and step.reward == 0.0


@pytest.mark.parametrize("gym", OURS)
async def test_a_reply_without_facts_is_shown_and_gains_nothing(gym: str, tasks: dict[str, Task]):
    texts = [f"[{choice}] nothing at all" for choice in CHOICES if choice != "finish"]
    oracle = Oracle(lambda call: {})
    steps = await play(tasks[gym], texts, user=oracle)
    assert [step.reward for step in steps] == [0.0] * 3
    assert sum("Well." in step.feedback for step in steps) == len(oracle.calls)


@pytest.mark.parametrize("gym", [gym for gym in OURS if gym != "function"])
async def test_a_failing_user_is_no_score(gym: str, tasks: dict[str, Task]):
    class Failing:
        async def reply(self, call: UserCall) -> UserReply:
            raise SimulatorError("down")

    choice = "search" if gym == "search" else "action"
    with pytest.raises(SimulatorError):
        await play(tasks[gym], [f"[{choice}] x"], user=Failing())


@pytest.mark.parametrize("gym", OURS)
@pytest.mark.parametrize("guess_rate", [0.0, 0.5])
async def test_experts_and_random_actions_play_to_the_end(
    gym: str, guess_rate: float, tasks: dict[str, Task]
):
    task, rng = tasks[gym], random.Random(3)
    env = GymEnv(PUBLISHED[gym], task=task, user=RuleUser(PUBLISHED))
    expert = PUBLISHED[gym].expert(task.opening, rng, guess_rate)
    try:
        action = next(expert)
        while not (step := await env.step(str(action))).terminated and not step.truncated:
            action = expert.send(step.feedback)
    except StopIteration:
        pass
    steps = await play(task, [str(PUBLISHED[gym].random_action(task, rng)) for _ in range(16)])
    assert all(0 <= step.reward <= 1 for step in steps)


FACTS: tuple[str, ...] = (
    "stance",
    "covered",
    "response",
    "judgment",
    "scores",
    "type",
    "preference_id",
    "alignment_judgement",
    "alignment_aspect",
)
VERDICTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(FACTS),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.floats(),
        st.sampled_from(["Yes", "No", "True", "Neutral", "hotel", "P1", "x"]),
        st.lists(st.one_of(st.integers(-1, 4), st.floats(), st.none(), st.text(max_size=3)), max_size=6),
    ),
)


@given(data=st.data())
@settings(max_examples=examples(150), deadline=None)
def test_any_text_and_any_verdict_give_finite_rewards_in_bounds(tasks: dict[str, Task], data: st.DataObject):
    gym = data.draw(st.sampled_from(OURS))
    pieces = st.sampled_from(
        ["[action]", "[answer]", "[search]", "[finish]", "F1,H1", "1e999 -2 ٣ 4", "nan", "a?"]
    )
    texts = data.draw(st.lists(st.one_of(st.text(), st.lists(pieces).map(" ".join)), max_size=6))

    def verdict(call: UserCall) -> Mapping[str, Any]:
        return data.draw(VERDICTS)

    oracle = Oracle(verdict)
    bound = 2.0 if gym == "travel" else 1.0
    for user in (oracle, RuleUser(PUBLISHED)):
        for step in asyncio.run(play(tasks[gym], texts, user=user)):
            assert math.isfinite(step.reward) and 0.0 <= step.reward <= bound


@pytest.mark.parametrize("gym", [gym for gym in OURS if gym != "function"])
@pytest.mark.parametrize("choice", ["action", "answer", "search"])
def test_roles_make_the_same_facts_of_every_verdict_their_schema_allows(
    gym: str, choice: Any, tasks: dict[str, Task]
):
    rules, task = PUBLISHED[gym], tasks[gym]
    call = UserCall(
        gym=gym,
        scenario=task.scenario,
        question="SECRET-WORDS of the agent",
        choice=choice,
        view=rules.user_view(rules.initial_state(task)),
    )
    assert rules.llm_role is not None
    schema = rules.llm_role.schema(call)
    assert "SECRET-WORDS" not in rules.llm_role.instructions(call) + str(schema)
    for last in (False, True):
        verdict = {
            name: field["enum"][-last] if "enum" in field else last if field["type"] == "boolean" else "text"
            for name, field in schema["properties"].items()
        }
        reply = rules.llm_role.read(call, verdict)
        action = rules.rules.parse_action(f"[{choice}] x")
        assert action is not None
        outcome = rules.apply_action(task, rules.initial_state(task), action, reply)
        assert 0.0 <= outcome.score <= 1.0


def test_gyms_can_be_sent_to_other_processes():
    for gym in published_gyms("training").values():
        assert pickle.loads(pickle.dumps(gym)).max_turns == 15
