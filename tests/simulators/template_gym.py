"""Echo: the user has a word in mind and tells it when asked. The smallest gym that obeys every law of a gym.

Copy it to start a new gym. Levels: 0 three words; 1 four.
"""

import random
import re
from dataclasses import dataclass, replace

from simulators.env import Expert, Gym, Outcome
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import UserCall, UserReply

SYSTEM = (
    "Find out the user's words. "
    "action: ask for word 1, word 2, ... "
    "answer: all words in order; you may answer once."
)
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "karst")
MAX_WORDS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What the rules remember between turns."""

    num_asked: int = 0


def make_task(key: TaskKey) -> Task:
    """Draws until the meaning, here the words, belongs to the split of the key."""
    rng = key.rng()
    count = min(key.difficulty + 3, MAX_WORDS)
    words = rng.choices(WORDS, k=count)
    while split_of(f"echo:{' '.join(words)}") != key.split:
        words = rng.choices(WORDS, k=count)
    return Task(key=key, opening=f"I think of {count} words.", scenario={"words": words})


def start(task: Task) -> State:
    return State()


def asks_user(state: State, action: Action) -> bool:
    return action.choice == "action"


def apply(task: Task, state: State, action: Action, reply: UserReply | None) -> Outcome:
    """The rules. A reply without facts was put off: it is shown and gains nothing."""
    if reply is not None:
        state = replace(state, num_asked=state.num_asked + 1) if reply.facts else state
        return Outcome(state=state, feedback=reply.text, score=0.0)
    if action.choice == "search":
        return Outcome(state=state, feedback="There is nothing to search here.", score=0.0)
    right = action.content.lower().split() == list(task.scenario["words"])
    feedback = "Yes, my words!" if right else "No."
    return Outcome(state=state, feedback=feedback, score=float(right), done=True)


def answer(call: UserCall, rng: random.Random) -> UserReply:
    """The rule-based user: the text is for the agent, the facts are for the rules."""
    words = call.scenario["words"]
    asked = re.findall(r"\d+", call.question)
    if len(asked) != 1 or not 1 <= int(asked[0][:3]) <= len(words):
        return UserReply(text="Ask for one word by its number.")
    word = words[int(asked[0][:3]) - 1]
    return UserReply(text=f"It is {word}.", facts={"word": word}, decoy=f"It is {rng.choice(WORDS)}.")


def expert(opening: str, rng: random.Random, haste: float) -> Expert:
    """Knows the opening and the feedback, nothing else. In haste: guesses a word instead of asking."""
    words = []
    for number in range(1, int(opening.split()[3]) + 1):
        if rng.random() < haste:
            words.append(rng.choice(WORDS))
            continue
        feedback = yield Action(choice="action", content=f"Word {number}?")
        words.append(feedback.split()[-1].rstrip("."))
    yield Action(choice="answer", content=" ".join(words))


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="action", content=f"Word {rng.randint(0, MAX_WORDS)}?")
    return Action(choice="answer", content=" ".join(rng.choices(WORDS, k=len(task.scenario["words"]))))


GYM = Gym(
    name="echo",
    system=SYSTEM,
    make_task=make_task,
    start=start,
    asks_user=asks_user,
    apply=apply,
    answer=answer,
    expert=expert,
    random_action=random_action,
)
