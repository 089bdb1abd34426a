"""The environment: turns, best-so-far rewards, ends, failures of the user, observation keys."""

import dataclasses

import pytest

from simulators.env import GymEnv
from simulators.gym import MAX_TURNS, ActionOutcome, Gym, GymScoring
from simulators.gyms import GYMS
from simulators.message import CHOICES, Action
from simulators.task import Task
from simulators.user import SimulatorError, UserReply
from simulators.users.rule_user import RuleUser
from tests.fakes import ScriptedUser, make_tasks, play

(TASK,) = make_tasks("function", num=1)


def scoring_env(scores: list[float], *, max_turns: int = 16) -> GymEnv:
    """A gym in which the n-th action is worth the n-th score."""

    def apply_action(task: Task, state: int, action: Action, reply: UserReply | None) -> ActionOutcome:
        return ActionOutcome(state=state + 1, feedback=f"{state}", score=scores[state])

    gym: Gym = dataclasses.replace(
        GYMS["function"],
        initial_state=lambda task: 0,
        needs_user=lambda state, action: False,
        apply_action=apply_action,
        scoring=GymScoring(),
    )
    return GymEnv(gym, task=TASK, user=RuleUser(), max_turns=max_turns)


async def test_only_what_exceeds_the_best_so_far_is_paid():
    env = scoring_env([0.25, 0.0, 0.75, 0.5, 0.75, 1.0])
    rewards = [(await env.step("[action] x")).reward for _ in range(6)]
    assert rewards == [0.25, 0.0, 0.5, 0.0, 0.0, 0.25]


async def test_rounding_pays_nothing_for_a_score_held():
    scores = [1 / 3, 1 / 3 + 0.8 / 3, 1 / 3 + 0.8 / 3, 0.1 + 0.2 + 0.5, 0.8, 0.8]
    env = scoring_env(scores)
    rewards = [(await env.step("[action] x")).reward for _ in scores]
    assert rewards[2] == rewards[4] == rewards[5] == 0.0
    assert sum(rewards) == pytest.approx(max(scores), abs=1e-12)


async def test_all_turns_of_the_budget_are_executed_and_the_last_can_score():
    env = scoring_env([0.0] * 15 + [1.0])
    steps = [await env.step("[action] x") for _ in range(MAX_TURNS)]
    assert MAX_TURNS == len(steps) == 16
    assert [step.truncated for step in steps] == [False] * 15 + [True]
    assert steps[-1].reward == 1.0 and not steps[-1].terminated


async def test_a_step_after_the_end_is_an_error():
    env = scoring_env([0.0, 0.0], max_turns=1)
    await env.step("[action] x")
    with pytest.raises(ValueError, match="after the end"):
        await env.step("[action] x")
    closed = scoring_env([0.0])
    await closed.close()
    with pytest.raises(ValueError, match="after the end"):
        await closed.step("[action] x")


async def test_finish_ends_the_episode_without_pay():
    (step,) = await play(TASK, ["[finish] bye", "[action] 1 2 3 4"])
    assert step.terminated and not step.truncated and step.reward == 0.0


async def test_an_unknown_tag_costs_a_turn_and_names_the_choices():
    steps = await play(TASK, ["[buy] x"] * 3, max_turns=2)
    assert [step.truncated for step in steps] == [False, True]
    assert all(choice in steps[0].feedback for choice in CHOICES)


async def test_a_failed_user_leaves_the_env_as_it_was():
    user = ScriptedUser(fails_on=frozenset({1}))
    env = GymEnv(GYMS["function"], task=TASK, user=user, max_turns=2)
    first = await env.step("[action] 0 0 0 0")
    with pytest.raises(SimulatorError, match="no reply"):
        await env.step("[action] 1 2 3 4")
    again = await env.step("[action] 1 2 3 4")
    assert (first.truncated, again.truncated) == (False, True)
    assert user.calls[1] == user.calls[2]
    assert user.calls[1].history == (("0 0 0 0", first.feedback),)


async def test_the_user_is_asked_only_for_actions_and_its_reply_is_kept():
    user = ScriptedUser()
    action, search = await play(TASK, ["[action] 0 0 0 0", "[search] test"], user=user)
    assert len(user.calls) == 1
    assert action.user_reply is not None and action.user_reply.facts.keys() == {"value"}
    assert search.user_reply is None


@pytest.mark.parametrize("gym", GYMS)
async def test_the_opening_and_the_rules_are_what_is_observed(gym: str):
    (task,) = make_tasks(gym, num=1)
    observation = await GymEnv(GYMS[gym], task=task, user=RuleUser()).reset()
    assert (observation.system, observation.opening) == (GYMS[gym].system, task.opening)


@pytest.mark.parametrize("gym", ["travel", "intention", "turtle", "telepathy", "persuade"])
def test_the_same_answer_is_the_same_news_however_the_user_words_it(gym: str):
    action, meant = Action(choice="action", content="Which?"), {"slot": "seat", "wish": "aisle"}
    other = {**meant, "wish": "window"}
    news = [
        GYMS[gym].scoring.observation_key(action, text, UserReply(text=text, facts=facts))
        for text, facts in (("I want aisle.", meant), ("On the aisle, if you can!", meant), ("Hm.", other))
    ]
    assert news[0] == news[1] != news[2]
    assert GYMS[gym].scoring.observation_key(action, "Hm.", UserReply(text="Hm.")) == "Hm.", (
        "nothing was meant: its own text"
    )


def test_a_value_is_news_about_what_was_asked_and_not_about_how():
    """The hidden function may well give equal values for different integers."""
    reply = UserReply(text="The value is 3.", facts={"value": 3})
    news = [
        GYMS["function"].scoring.observation_key(Action(choice="action", content=content), reply.text, reply)
        for content in ("1 0 0 0", "1, 0, 0, 0", "0 1 0 0")
    ]
    assert news[0] == news[1] != news[2]


@pytest.mark.parametrize("gym", GYMS)
async def test_feedback_that_no_user_gave_is_news_by_its_own_text(gym: str):
    (task,) = make_tasks(gym, num=1)
    step = await GymEnv(GYMS[gym], task=task, user=RuleUser()).step("[no such choice] x")
    assert step.observation_key == step.feedback != ""
