"""Gold actions solve the tasks of every gym, and progress measures how far a dialogue has come."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.env import GymEnv, TurnResult
from simulators.gyms import GYMS
from simulators.message import Action
from simulators.persona import draw_persona
from simulators.published import PUBLISHED
from simulators.published.shared_rules import make_task
from simulators.task import Task
from simulators.users.persona_style import persona_aware
from simulators.users.rule_user import RuleUser
from tests.effort import examples
from tests.fakes import make_tasks, play, play_expert, play_random, score_of

LEVELS = (0, 1, 2)
every_gym = pytest.mark.parametrize("gym", GYMS)
every_level = pytest.mark.parametrize("difficulty", LEVELS)
NUM_TASKS = 8


async def play_gold(task: Task) -> list[TurnResult]:
    """The expert's dialogue with the gold calls in place of its answers: what must be asked is asked."""
    gym = GYMS[task.key.gym]
    env = GymEnv(gym, task=task, user=RuleUser())
    gold = list(gym.gold_actions(task))
    expert = persona_aware(gym.expert(task.opening, random.Random(0), 0.0))
    action = next(expert)
    steps: list[TurnResult] = []
    while True:
        taken = gold.pop(0) if action.choice == "answer" else action
        steps.append(await env.step(str(taken)))
        if steps[-1].terminated or steps[-1].truncated:
            return steps
        action = expert.send(steps[-1].feedback)


@pytest.mark.parametrize("gym", [name for name in GYMS if name != "tau"])
@every_level
async def test_gold_calls_score_all_there_is_to_score(gym: str, difficulty: int):
    for task in make_tasks(gym, num=NUM_TASKS, difficulty=difficulty):
        assert score_of(await play_gold(task)) == pytest.approx(1.0)


@every_level
async def test_the_gold_calls_of_tau_need_no_questions(difficulty: int):
    for task in make_tasks("tau", num=NUM_TASKS, difficulty=difficulty):
        texts = [str(action) for action in GYMS["tau"].gold_actions(task)]
        assert score_of(await play(task, [*texts, "[finish]"])) == 1.0
        assert score_of(await play(task, [*texts[:-1], "[finish]"])) == 0.0


@every_gym
async def test_gold_calls_are_the_gyms_own_answers_and_no_secret_of_the_opening(gym: str):
    for task in make_tasks(gym, num=NUM_TASKS):
        gold = GYMS[gym].gold_actions(task)
        assert gold and all(isinstance(action, Action) and action.choice == "answer" for action in gold)
        assert gold == GYMS[gym].gold_actions(GYMS[gym].make_task(task.key))


@every_gym
@every_level
async def test_progress_begins_at_nothing_and_an_expert_makes_some(gym: str, difficulty: int):
    for task in make_tasks(gym, num=NUM_TASKS, difficulty=difficulty):
        rules = GYMS[gym]
        assert rules.scoring.progress(task, rules.initial_state(task)) == 0.0
        steps = await play_expert(task, persona=draw_persona("varied", seed=str(task.key.index)))
        made = [step.progress for step in steps]
        assert all(0.0 <= progress <= 1.0 for progress in made)
        assert max(made) > 0.4


@every_gym
async def test_random_actions_make_less_progress_than_the_expert(gym: str):
    tasks = make_tasks(gym, num=4 * NUM_TASKS)
    expert = [max(step.progress for step in await play_expert(task)) for task in tasks]
    # As many turns as the expert takes: who has time for everything learns everything.
    ignorant = [(await play_random(task))[:3][-1].progress for task in tasks]
    assert sum(ignorant) < 0.7 * sum(expert)


@settings(deadline=None, max_examples=examples(40))
@given(gym=st.sampled_from(list(GYMS)), difficulty=st.sampled_from(LEVELS), seed=st.integers(0, 10_000))
async def test_progress_is_always_a_share(gym: str, difficulty: int, seed: int):
    task = make_tasks(gym, num=1, difficulty=difficulty, seed=seed)[0]
    assert all(0.0 <= step.progress <= 1.0 for step in await play_random(task))


async def test_telepathys_progress_is_the_share_of_the_doubt_that_is_gone():
    """Twelve cards, three of each family: after a Yes to a family log 3 / log 12 of the doubt is left."""
    task = make_tasks("telepathy", num=1)[0]
    family = task.scenario["cards"][task.scenario["target"]][0]
    (step,) = await play(task, [f"[action] Is it {family}?"])
    assert step.progress == pytest.approx(1 - 0.4421, abs=1e-4)


async def test_what_tells_nothing_makes_no_progress():
    task = make_tasks("travel", num=1)[0]
    (part,) = task.scenario["wishes"]
    slots = list(task.scenario["wishes"][part])
    steps = await play(
        task, [f"[action] Which {slots[0]}?", "[action] Hello.", f"[action] Which {slots[1]}?"]
    )
    assert [step.progress for step in steps] == pytest.approx([1 / 3, 1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("gym", "scenario"),
    [
        ("function", {"rule": "a + b", "test_case": [1.0, 2.0, 3.0, 4.0], "expected_result": 3.0}),
        ("search", {"id": "q", "question": "Which river?", "answer": "The Elbe"}),
        ("telepathy", {"title": "Who?", "target_entity": "Marie Curie", "category": "person"}),
    ],
)
async def test_gold_calls_solve_tasks_under_the_released_rules_too(gym: str, scenario: dict[str, object]):
    rules = PUBLISHED[gym]
    task = make_task(gym, index=0, opening="Go.", scenario=scenario)
    env = GymEnv(rules, task=task, user=RuleUser(PUBLISHED))
    (action,) = rules.gold_actions(task)
    step = await env.step(str(action))
    assert (step.reward, step.terminated, step.progress) == (1.0, True, 0.0)
