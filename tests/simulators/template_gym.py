"""Template of a gym: the user thinks of words and tells each when asked. Levels: 0 three words; 1 and up
four."""

import random
import re

from simulators.gym import ActionOutcome, Expert, Gym
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import UserCall, UserReply

SYSTEM = "Find out the user's words. action: ask for word 1, 2, ... answer: all words in order, once."
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "karst")


def make_task(key: TaskKey) -> Task:
    """Draws until what is hidden, here the words, belongs to the split of the key."""
    rng, count = key.rng(), 3 if key.difficulty == 0 else 4
    words = rng.choices(WORDS, k=count)
    while split_of(f"echo:{' '.join(words)}") != key.split:
        words = rng.choices(WORDS, k=count)
    return Task(key=key, opening=f"I think of {count} words.", scenario={"words": words})


def initial_state(task: Task) -> int:
    """The state before the first turn: how many words have been told."""
    return 0


def apply_action(task: Task, told: int, action: Action, reply: UserReply | None) -> ActionOutcome:
    """The rules. `reply` is the user's, if needed; without facts the question was put off: no gain."""
    if reply is not None:
        return ActionOutcome(state=told + bool(reply.facts), feedback=reply.text, score=0.0)
    if action.choice == "search":
        return ActionOutcome(state=told, feedback="There is nothing to search here.", score=0.0)
    right = action.content.lower().split() == list(task.scenario["words"])
    return ActionOutcome(state=told, feedback="Yes!" if right else "No.", score=float(right), done=True)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """The rule-based user: the text is for the agent, the facts are for `apply_action`."""
    words, asked = call.scenario["words"], re.findall(r"\d+", call.question)
    if len(asked) != 1 or not 1 <= int(asked[0][:3]) <= len(words):
        return UserReply(text="Ask for one word by its number.")
    word = words[int(asked[0][:3]) - 1]
    return UserReply(text=f"It is {word}.", facts={"word": word}, decoy=f"It is {rng.choice(WORDS)}.")


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Solves the task from the opening and the feedback. At `guess_rate` it guesses instead of asking."""
    words = []
    for number in range(1, int(opening.split()[3]) + 1):
        if rng.random() < guess_rate:
            words.append(rng.choice(WORDS))
        else:
            feedback = yield Action(choice="action", content=f"Word {number}?")
            words.append(feedback.split()[-1].rstrip("."))
    yield Action(choice="answer", content=" ".join(words))


def random_action(task: Task, rng: random.Random) -> Action:
    """A well-formed action that ignores the dialogue."""
    if rng.random() < 0.5:
        return Action(choice="action", content=f"Word {rng.randint(0, 4)}?")
    return Action(choice="answer", content=" ".join(rng.choices(WORDS, k=len(task.scenario["words"]))))


GYM = Gym(
    name="echo",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
)
