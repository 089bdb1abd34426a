"""Published TurtleGym rules: tell the hidden story behind a strange surface.

Every turn calls the user. It sees the story and its criteria in the scenario, `choice` action for a question
or answer for a told story. Verdict facts: {"response": "Yes", "No" or "Maybe"} for a question, shown as it
is; {"scores": [one of 0, 0.5, 1 a criterion, in order]} for a story, each bare or, as the released judge
writes it, in an object under "score"; the judge's text is discarded.

Kept as released: overall = sum of weight times score, added up as floats, so that for some stories even a
perfect answer stays below the threshold of 1.0; a story pays what exceeds the best so far, at most 1 a turn;
scores are numbers of any size (a 2 is accepted), but there must be one for each criterion, or the turn is
worth nothing; the statements scored 1 are revealed verbatim; the response to a question is never checked.
Untagged text is read as TelepathyGym reads it.
"""

import math
import random
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simulators.dataset_files import is_parquet, read_records, wrong_record
from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.message import Action
from simulators.published.settings import PublishedConstants
from simulators.published.shared_rules import (
    CANNOT_RESPOND,
    EACH_TURN,
    data_only,
    every_turn,
    make_task,
    missing_in_parquet,
    parse_cutting,
)
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "A short story hides a deeper one. Uncover the hidden story, its twist and its reasons. Your rounds are "
    "limited.\n"
    "action: a question that yes or no can answer.\n"
    "answer: the whole hidden story as you understand it; you may try again."
)
SAY_LENGTH = 200
FULL, HALF = 0.6, 0.3
"""Shares of a criterion's words that earn 1 and 0.5 from the rule-based judge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    best: float = 0.0
    """The best overall score so far."""


def load_tasks(path: Path) -> list[Task]:
    """The released JSON object of stories. Corrupt surfaces are kept: the released gym plays them too."""
    if is_parquet(path):
        cure = "give the JSON of stories"
        raise missing_in_parquet(path, gym="TurtleGym", fields="evaluation (criteria and weights)", cure=cure)
    fields = {"new_title": str, "new_surface": str, "new_bottom": str, "evaluation": list}
    tasks: list[Task] = []
    for row, record in enumerate(read_records(path, fields=fields)):
        title, surface = record["new_title"], record["new_surface"]
        criteria = [_criterion(path, row, number, item) for number, item in enumerate(record["evaluation"])]
        if not criteria:
            raise wrong_record(path, row=row, field="evaluation", problem="is empty")
        scenario = {
            "title": title,
            "surface": surface,
            "bottom": record["new_bottom"],
            "statements": [statement for statement, _ in criteria],
            "weights": [weight for _, weight in criteria],
        }
        opening = f"Title: {title}\nSurface: {surface}\nWhat is really going on?"
        tasks.append(make_task("turtle", index=row, opening=opening, scenario=scenario))
    return tasks


def initial_state(task: Task) -> State:
    return State()


def apply_action(
    task: Task, state: State, action: Action, reply: UserReply | None, *, threshold: float
) -> ActionOutcome:
    facts, said = (reply.facts, reply.text) if reply else ({}, "")
    if action.choice != "answer":
        feedback = str(facts.get("response", said or CANNOT_RESPOND))
        return ActionOutcome(state=state, feedback=feedback, score=0.0)
    scores = _bare(facts.get("scores"))
    if not _are_scores(scores, num=len(task.scenario["weights"])):
        said = CANNOT_RESPOND if facts else said
        return ActionOutcome(state=state, feedback=said or CANNOT_RESPOND, score=0.0)
    overall = 0.0
    for weight, score in zip(task.scenario["weights"], scores, strict=True):
        overall += weight * score
    told = [text for text, score in zip(task.scenario["statements"], scores, strict=True) if score == 1]
    feedback = f"Your story covers: {' '.join(told)}" if told else "Your story covers none of the key points."
    return ActionOutcome(
        state=State(best=max(state.best, overall)),
        feedback=feedback,
        score=min(1.0, max(0.0, overall - state.best)),
        done=overall >= threshold,
    )


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Yes if the hidden story contains most content words of the question, Maybe if it contains some. A
    criterion is met by a story that contains most of its words."""
    if call.choice == "answer":
        told = stems_of(call.question)
        shares = [_share(stems_of_fixed(text), told) for text in call.scenario["statements"]]
        scores = [1 if share >= FULL else 0.5 if share >= HALF else 0 for share in shares]
        return UserReply(text="I have read your story.", facts={"scores": scores})
    share = _share(
        stems_of(call.question), stems_of_fixed(f"{call.scenario['surface']} {call.scenario['bottom']}")
    )
    response = "Yes" if share >= FULL else "Maybe" if share > 0 else "No"
    return UserReply(text=response, facts={"response": response})


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Repeats the surface with common twists, and keeps what was confirmed. At
    `guess_rate` it tells the surface alone."""
    told = opening.partition("Surface: ")[2].rpartition("\n")[0]
    for twist in TWISTS:
        if rng.random() >= guess_rate:
            told = f"{told} {twist}"
        feedback = yield Action(choice="answer", content=told)
        confirmed = feedback.partition("covers: ")[2]
        told = f"{told} {confirmed}" if confirmed and confirmed not in told else told


def random_action(task: Task, rng: random.Random) -> Action:
    if rng.random() < 0.5:
        return Action(choice="answer", content="It was all a dream.")
    return Action(choice="action", content="Is it a dream?")


def instructions(call: UserCall) -> str:
    story = f"Surface: {call.scenario['surface']}\nHidden story: {call.scenario['bottom']}\n"
    if call.choice != "answer":
        return f"{story}Answer the question about the hidden story with Yes, No, or Maybe."
    statements = "\n".join(f"{place}: {text}" for place, text in enumerate(call.scenario["statements"]))
    return (
        f"{story}Criteria:\n{statements}\nFor each criterion give 1 if the told story covers it, "
        "0.5 if in part, 0 if not."
    )


def schema(call: UserCall) -> dict[str, Any]:
    if call.choice != "answer":
        return flat_schema({"response": {"type": "string", "maxLength": SAY_LENGTH}})
    level = {"type": "string", "enum": ["0", "0.5", "1"]}
    return flat_schema({f"score_{place}": level for place in range(len(call.scenario["statements"]))})


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    if call.choice != "answer":
        response = str(verdict["response"])[:SAY_LENGTH]
        return UserReply(text=response, facts={"response": response})
    places = range(len(call.scenario["statements"]))
    scores = [float(verdict[f"score_{place}"]) for place in places]
    return UserReply(text="I have read your story.", facts={"scores": scores})


def make_gym(constants: PublishedConstants) -> Gym:
    return Gym(
        name="turtle",
        system=SYSTEM,
        make_task=data_only,
        initial_state=initial_state,
        needs_user=every_turn,
        apply_action=partial(apply_action, threshold=constants.turtle_threshold),
        rule_based_reply=rule_based_reply,
        expert=expert,
        random_action=random_action,
        llm_role=LlmRole(instructions=instructions, schema=schema, read=read),
        load_tasks=load_tasks,
        rules=GymRules(parse_action=parse_cutting),
        scoring=EACH_TURN,
    )


def _share(wanted: Set[str], held: Set[str]) -> float:
    return len(wanted & held) / len(wanted) if wanted else 0.0


def _bare(scores: Any) -> Any:
    if not isinstance(scores, list | tuple):
        return scores
    return [item.get("score") if isinstance(item, Mapping) else item for item in scores]


def _are_scores(scores: Any, *, num: int) -> bool:
    return (
        isinstance(scores, list | tuple)
        and len(scores) == num
        and all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
    )


def _criterion(path: Path, row: int, number: int, item: Any) -> tuple[str, float]:
    statement = item.get("statement") if isinstance(item, dict) else None
    weight = item.get("score") if isinstance(item, dict) else None
    if not isinstance(statement, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
        problem = "is not {statement: text, score: number}"
        raise wrong_record(path, row=row, field=f"evaluation.{number}", problem=problem)
    return statement, float(weight)


TWISTS = (
    "In truth somebody died, was murdered or killed by a family member, out of love or revenge.",
    "The narrator is not who he seems: a ghost, a twin, an impostor, or dead already.",
    "It was an accident that was hidden for years until an old photo or letter revealed it.",
    "One of them is blind, ill, insane or poisoned, and realized the truth too late.",
    "The body was buried, eaten or hidden in the house, and the sound came from it.",
)
"""The scripted expert's guesses, the same for every story."""
