"""Turtle gym: a mystery whose story only the user knows; find it out by yes-or-no questions, then tell it
whole.

A generated story has facts (who, place, how, why), each one of the values that the opening lists. Levels: 0
three facts with three values each; 1 four facts; 2 four facts with six values each, and facts are linked:
servants act from need, relatives from feeling, and other things are used indoors than outdoors. Splits are
disjoint by story. A fact counts only if the user's replies determine it, so a guess pays nothing; a wrong
value, or two for one fact, costs what a right one gains. Two attempts, the second worth half.

Under the same rules, released stories (turtle_data) have statements as facts, which need not be determined.
"""

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulators.gym import ActionOutcome, Expert, Gym, GymScoring, facts_key
from simulators.gyms.stemming import stem, stems_of, words_of
from simulators.gyms.turtle_data import load_tasks, told_statements, verdict_by_words
from simulators.message import Action
from simulators.task import Task, TaskKey, split_of
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user knows the story behind a mystery. "
    "action: a yes-or-no question about one thing. "
    "answer: the whole story, one value for each fact; you may answer twice. "
    "Where servants and relatives are suspects: servants act from need, relatives from feeling. "
    "Where a story is indoors or outdoors, so is what was used."
)
WORLD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "who": (("cook", "maid", "guard", "driver"), ("aunt", "son", "twin", "uncle")),
    "place": (("cellar", "attic", "kitchen", "library"), ("garden", "harbor", "forest", "bridge")),
    "how": (("candle", "pillow", "curtain", "mirror"), ("boat", "horse", "ladder", "wagon")),
    "why": (("debt", "hunger", "fear", "duty"), ("envy", "love", "pride", "grief")),
}
"""Fact to its values, those of its first side and those of its second. No value belongs to two facts."""
SIDES: dict[str, tuple[str, str]] = {
    "who": ("servant", "relative"),
    "place": ("indoors", "outdoors"),
    "how": ("indoors", "outdoors"),
    "why": ("servant", "relative"),
}
"""Fact to the names of its sides; facts with the same sides are on the same one if facts are linked."""
AXES = (SIDES["who"], SIDES["place"])
SIDE_OF = {
    value: name
    for fact, sides in WORLD.items()
    for name, values in zip(SIDES[fact], sides, strict=True)
    for value in values
}
KNOWN = {stem(word): word for word in (*SIDE_OF, *(name for axis in AXES for name in axis))}
"""Stem to word, of all values and sides."""
THINGS = ("ring", "vase", "letter", "clock", "crown", "violin", "parrot", "painting")
WEIGHTS = {"who": 2, "place": 1, "how": 1, "why": 2}
LEVELS: tuple[tuple[tuple[str, ...], bool], ...] = (
    (("who", "how", "why"), False),
    (("who", "place", "how", "why"), False),
    (("who", "place", "how", "why"), True),
)
"""Level to (facts, whether they are linked)."""
NUM_VALUES = 3
"""Candidates of a fact, or of each of its sides if facts are linked."""
ATTEMPT_WORTH = (1.0, 0.5)
REFUSAL = "Ask a plain question about one thing."
YES, NO, IRRELEVANT = "Yes.", "No.", "Irrelevant."
VERDICTS = {"yes": YES, "no": NO, "irrelevant": IRRELEVANT}
NEGATIONS = frozenset(("not", "no", "never", "isn", "wasn", "didn", "doesn", "don", "nor", "without"))
MAX_ANSWER_WORDS = 160
"""Longer answers try to cover every story."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    heard: frozenset[tuple[str, bool]] = frozenset()
    """(word, whether it is part of the story), as the user said."""
    num_attempts: int = 0
    score: float = 0.0


def make_task(key: TaskKey) -> Task:
    rng = key.rng()
    facts, is_linked = LEVELS[min(key.difficulty, len(LEVELS) - 1)]
    while True:
        candidates = {fact: _draw_values(rng, WORLD[fact], is_linked=is_linked) for fact in facts}
        sides = [rng.choice(axis) for axis in AXES]
        story = [
            rng.choice([value for value in values if not is_linked or SIDE_OF[value] in sides])
            for values in candidates.values()
        ]
        if split_of(f"turtle:{' '.join(story)}") == key.split:
            break
    values = ". ".join(f"{fact}: {', '.join(values)}" for fact, values in candidates.items())
    return Task(
        key=key,
        opening=f"The {rng.choice(THINGS)} is gone. {values}.",
        scenario={"candidates": candidates, "is_linked": is_linked, "story": story},
    )


def initial_state(task: Task) -> State:
    return State()


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    if reply is not None:
        word, verdict = reply.facts.get("word"), reply.facts.get("verdict")
        if isinstance(word, str) and verdict in ("yes", "no"):
            state = replace(state, heard=state.heard | {(word, verdict == "yes")})
        return ActionOutcome(state=state, feedback=reply.text, score=state.score)
    if action.choice == "search":
        return ActionOutcome(state=state, feedback="There is nothing to search here.", score=state.score)
    grade = _grade_statements if "statements" in task.scenario else _grade_facts
    return grade(task, state, action.content)


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Yes, No or Irrelevant to a plain question about one thing, and nothing else."""
    words = words_of(call.question)
    if not NEGATIONS.isdisjoint(words):
        return UserReply(text=REFUSAL)
    if "statements" in call.scenario:
        return _say("", verdict_by_words(call.scenario, stems_of(call.question)))
    asked = {KNOWN[root] for root in map(stem, words) if root in KNOWN}
    if len(asked) > 1:
        return UserReply(text=REFUSAL)
    return _reveal(call, asked.pop()) if asked else _say("", "irrelevant")


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Asks for the sides, then for the values in turn, skipping what the remaining stories agree on; then
    tells the remaining story. At `guess_rate` it guesses the answer to a question."""
    listed = re.findall(r"(\w+): ([a-z, ]+)\.", opening)
    candidates = {fact: values.split(", ") for fact, values in listed}
    if not candidates or not candidates.keys() <= WORLD.keys():
        yield Action(choice="finish", content="")  # no script can make up a published story
        return
    is_linked = len(next(iter(candidates.values()))) > NUM_VALUES
    heard: list[tuple[str, bool]] = []
    left = _narrow(candidates, heard, is_linked=is_linked)
    for fact, word in [("who", "servant"), ("place", "indoors")] * is_linked + [
        (fact, value) for fact, values in candidates.items() for value in values
    ]:
        if len({_is_in(word, [value]) for value in left[fact]}) < 2:
            continue
        holds = rng.random() < 1 / len(left[fact])
        if rng.random() >= guess_rate:
            feedback = yield Action(choice="action", content=f"Is it {word}?")
            holds = feedback == YES
        heard.append((word, holds))
        left = _narrow(candidates, heard, is_linked=is_linked)
    yield Action(choice="answer", content=" ".join(values[0] for values in left.values() if values))


def gold_actions(task: Task) -> Sequence[Action]:
    """The whole story."""
    scenario = task.scenario
    text = scenario["bottom"] if "statements" in scenario else " ".join(scenario["story"])
    return (Action(choice="answer", content=text),)


def progress(task: Task, state: State) -> float:
    """1 - log n / log N: of N stories that the opening allows, fact by fact, n fit all replies so far. In a
    released story: the score of the answers."""
    scenario = task.scenario
    if "statements" in scenario:
        return state.score
    left = _narrow(scenario["candidates"], state.heard, is_linked=scenario["is_linked"])
    num_left = math.prod(max(1, len(values)) for values in left.values())
    num_all = math.prod(map(len, scenario["candidates"].values()))
    return 1.0 - math.log(num_left) / math.log(num_all)


def random_action(task: Task, rng: random.Random) -> Action:
    candidates = task.scenario.get("candidates") or {"": task.scenario["surface"].split()}
    if rng.random() < 0.5:
        return Action(choice="action", content=f"Is it {rng.choice(rng.choice(list(candidates.values())))}?")
    return Action(choice="answer", content=" ".join(rng.choice(values) for values in candidates.values()))


def _draw_values(rng: random.Random, sides: tuple[tuple[str, ...], ...], *, is_linked: bool) -> list[str]:
    """Candidates in the order of `WORLD`, which gives nothing away."""
    pools = sides if is_linked else (sides[0] + sides[1],)
    return [value for pool in pools for value in sorted(rng.sample(pool, NUM_VALUES), key=pool.index)]


def _narrow(
    candidates: Mapping[str, Sequence[str]], heard: Iterable[tuple[str, bool]], *, is_linked: bool
) -> dict[str, list[str]]:
    """Fact to the values that are still possible after the replies so far."""
    yes = {word for word, holds in heard if holds}
    no = {word for word, holds in heard if not holds}
    left = {
        fact: [value for value in values if value not in no and (value in yes or yes.isdisjoint(values))]
        for fact, values in candidates.items()
    }
    for axis in AXES if is_linked else ():
        facts = [fact for fact in left if SIDES[fact] == axis]
        sides = {side for side in axis if side not in no and (side in yes or yes.isdisjoint(axis))}
        for fact in facts:
            sides &= {SIDE_OF[value] for value in left[fact]}
        for fact in facts:
            left[fact] = [value for value in left[fact] if SIDE_OF[value] in sides]
    return left


def _is_in(word: str, story: Sequence[str]) -> bool:
    """Whether a word is a value of a story, or the side of one."""
    return word in story or any(SIDE_OF[value] == word for value in story)


def _grade_facts(task: Task, state: State, content: str) -> ActionOutcome:
    """Weighted right facts that the replies determine, minus wrong ones."""
    scenario = task.scenario
    stems = {stem(word) for word in words_of(content)}
    named = {
        fact: [value for side in WORLD[fact] for value in side if stem(value) in stems]
        for fact in scenario["candidates"]
    }
    if not any(named.values()):
        return ActionOutcome(
            state=state, feedback="Tell the story: one value for each fact.", score=state.score
        )
    left = _narrow(scenario["candidates"], state.heard, is_linked=scenario["is_linked"])
    gained = num_right = 0
    for at, (fact, values) in enumerate(named.items()):
        if values == [scenario["story"][at]]:
            is_settled = left[fact] == values
            num_right += is_settled
            gained += WEIGHTS[fact] * is_settled
        elif values:
            gained -= WEIGHTS[fact]
    share = max(0, gained) / sum(WEIGHTS[fact] for fact in named)
    return _attempt(state, share=share, num_right=num_right, num_all=len(named))


def _grade_statements(task: Task, state: State, content: str) -> ActionOutcome:
    """Weighted statements that an answer tells. Words of the surface do not count."""
    scenario = task.scenario
    if len(words_of(content)) > MAX_ANSWER_WORDS:
        feedback = f"Tell the story in {MAX_ANSWER_WORDS} words."
        return ActionOutcome(state=state, feedback=feedback, score=state.score)
    told = [statement in told_statements(scenario, stems_of(content)) for statement in scenario["statements"]]
    gained = sum(weight for weight, is_told in zip(scenario["weights"], told, strict=True) if is_told)
    return _attempt(state, share=gained / sum(scenario["weights"]), num_right=sum(told), num_all=len(told))


def _attempt(state: State, *, share: float, num_right: int, num_all: int) -> ActionOutcome:
    worth = ATTEMPT_WORTH[state.num_attempts] * share
    state = replace(state, num_attempts=state.num_attempts + 1, score=max(state.score, worth))
    done = num_right == num_all or state.num_attempts == len(ATTEMPT_WORTH)
    return ActionOutcome(
        state=state, feedback=f"{num_right} of {num_all} are right.", score=state.score, done=done
    )


def _say(word: str, verdict: str) -> UserReply:
    """One of the three replies; `irrelevant` has no facts."""
    if verdict == "irrelevant":
        return UserReply(text=IRRELEVANT)
    decoy = NO if verdict == "yes" else YES
    return UserReply(text=VERDICTS[verdict], facts={"word": word, "verdict": verdict}, decoy=decoy)


def _reveal(call: UserCall, word: str) -> UserReply:
    """Whether a word is part of the story; irrelevant if it belongs to none of its facts."""
    scenario = call.scenario
    values = {value for fact in scenario["candidates"] for side in WORLD[fact] for value in side}
    if word not in values and not (scenario["is_linked"] and word not in SIDE_OF):
        return _say("", "irrelevant")
    return _say(word, "yes" if _is_in(word, scenario["story"]) else "no")


def _instructions(call: UserCall) -> str:
    scenario = call.scenario
    if "statements" in scenario:
        return (
            "Someone guesses the story behind a mystery by yes-or-no questions. Decide whether what the last "
            "message asks is true of the story (yes), false (no), or neither, or no yes-or-no question "
            "(irrelevant).\nThe mystery: "
            f"{scenario['surface']}\nThe story: {scenario['bottom']}"
        )
    return (
        "Someone guesses a story by yes-or-no questions. Decide which one word of this list the last message "
        f"asks about: {', '.join(KNOWN.values())}. Take `none` where it asks about none of them, `several` "
        "where it asks about more than one, denies one, or asks for anything but yes or no."
    )


def _schema(call: UserCall) -> dict[str, Any]:
    if "statements" in call.scenario:
        return flat_schema({"verdict": {"enum": list(VERDICTS)}})
    return flat_schema({"word": {"enum": [*KNOWN.values(), "none", "several"]}})


def _read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if "statements" in call.scenario:
        return _say("", verdict["verdict"])
    word = verdict["word"]
    if word == "several":
        return UserReply(text=REFUSAL)
    return _say("", "irrelevant") if word == "none" else _reveal(call, word)


GYM = Gym(
    name="turtle",
    system=SYSTEM,
    make_task=make_task,
    initial_state=initial_state,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=LlmRole(instructions=_instructions, schema=_schema, read=_read),
    load_tasks=load_tasks,
    gold_actions=gold_actions,
    scoring=GymScoring(progress=progress, observation_key=facts_key),
)
