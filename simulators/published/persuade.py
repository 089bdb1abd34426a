"""Published PersuadeGym rules: argue until a user who holds a claim gives it up.

Every argument calls the user, which judges its own stance. It sees `UserCall.view` {"stance": its stance so
far}, the claim and its argument in the scenario, and `choice` action or answer, which mean the same. Verdict
facts: {"stance": one of `STANCES`}, the stance after this argument; the reply's text is what the user says.

Kept as released: a turn pays the levels moved towards disagreement, over 6; moves back cost nothing, so the
same levels can be paid again; a stance that is not on the scale is kept, and the next move from it earns
nothing. The agent never sees the user's argument. Untagged text and `[search]` are arguments too. Facts
without a stance leave it as it is, at reward 0. Own choice: the names of the four levels between the ends and
Neutral.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulators.dataset_files import ENV_NAME, is_parquet, read_records
from simulators.gym import ActionOutcome, Expert, Gym, GymRules
from simulators.gyms.stemming import stems_of, stems_of_fixed
from simulators.message import Action
from simulators.published.shared_rules import EACH_TURN, data_only, every_turn, make_task, parse_leniently
from simulators.task import Task
from simulators.user import LlmRole, UserCall, UserReply, flat_schema

SYSTEM = (
    "The user holds a claim that you oppose. Change the user's mind with arguments: find the weak points of "
    "the claim and answer what the user says. Your rounds are limited.\n"
    "answer: your argument against the claim."
)
STANCES = (
    "Strongly Agree",
    "Agree",
    "Partly Agree",
    "Neutral",
    "Partly Disagree",
    "Disagree",
    "Strongly Disagree",
)
"""Level 0 to 6."""
MIN_WORDS = 6
"""New words that an argument needs to move the rule-based user."""
SAY_LENGTH = 800


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    stance: str = STANCES[0]
    """The user's last verdict, on the scale or not."""


def load_tasks(path: Path) -> list[Task]:
    """The released Parquet rows (claim and argument stand in `reward_model`), or a JSON list of {id, claim,
    argument}."""
    inside = "reward_model." if is_parquet(path) else ""
    fields: dict[str, Any] = {f"{inside}{name}": str for name in ("id", "claim", "argument")}
    optional = {"extra_info.split": (str, type(None))}
    records = read_records(path, fields={**fields, **optional}, where={ENV_NAME: "PersuadeGym"})
    return [
        make_task(
            "persuade",
            index=row,
            opening=f"You oppose this claim, and I hold it: {record[f'{inside}claim']}\nChange my mind.",
            scenario={name.removeprefix(inside): record[name] for name in fields},
            split=record["extra_info.split"],
        )
        for row, record in enumerate(records)
    ]


def initial_state(task: Task) -> State:
    return State()


def user_view(state: State) -> Mapping[str, Any]:
    return {"stance": state.stance}


def apply_action(task: Task, state: State, action: Action, reply: UserReply | None) -> ActionOutcome:
    stance = reply.facts.get("stance") if reply else None
    feedback = reply.text if reply else ""
    if not isinstance(stance, str):
        return ActionOutcome(state=state, feedback=feedback, score=0.0)
    score = round(min(1.0, max(0, _moved(state.stance, stance)) / (len(STANCES) - 1)), 6)
    return ActionOutcome(
        state=State(stance=stance), feedback=feedback, score=score, done=stance == STANCES[-1]
    )


def rule_based_reply(call: UserCall, rng: random.Random) -> UserReply:
    """Moves one level at each argument with enough new words, if some of its words are on the claim's
    subject."""
    said = {word for question, _ in call.history for word in stems_of(question)}
    new = stems_of(call.question) - said
    subject = stems_of_fixed(f"{call.scenario['claim']} {call.scenario['argument']}")
    stance = str(call.view["stance"])
    level = STANCES.index(stance) if stance in STANCES else 0
    if len(new) < MIN_WORDS or not stems_of(call.question) & subject:
        return UserReply(text="That does not change my mind.", facts={"stance": stance})
    stance = STANCES[min(level + 1, len(STANCES) - 1)]
    return UserReply(text=f"You have a point. By now I {stance.lower()}.", facts={"stance": stance})


def expert(opening: str, rng: random.Random, guess_rate: float) -> Expert:
    """Brings one new argument a turn. At `guess_rate` it only insists."""
    claim = opening.partition(": ")[2].partition("\n")[0]
    for argument in ARGUMENTS:
        insists = rng.random() < guess_rate
        yield Action(
            choice="answer", content="No." if insists else f"{argument} That is why '{claim}' fails."
        )


def random_action(task: Task, rng: random.Random) -> Action:
    return Action(choice="answer", content=rng.choice(("No.", "I disagree.", "Think again.")))


def instructions(call: UserCall) -> str:
    scenario = call.scenario
    return (
        f"You believe this claim: {scenario['claim']}\nYour reason: {scenario['argument']}\n"
        f"Your stance so far: {call.view['stance']}. You are open-minded but critical: you move only for an "
        "argument that answers your reason, and you may move back. Say what you think, and your stance now."
    )


def schema(call: UserCall) -> dict[str, Any]:
    return flat_schema(
        {
            "say": {"type": "string", "maxLength": SAY_LENGTH},
            "stance": {"type": "string", "enum": list(STANCES)},
        }
    )


def read(call: UserCall, verdict: Mapping[str, Any]) -> UserReply:
    return UserReply(text=str(verdict["say"])[:SAY_LENGTH], facts={"stance": verdict["stance"]})


def _moved(old: str, new: str) -> int:
    """Levels from `old` to `new`; 0 if one of them is not on the scale."""
    if old not in STANCES or new not in STANCES:
        return 0
    return STANCES.index(new) - STANCES.index(old)


ARGUMENTS = (
    "Careful studies across several countries measured the opposite effect over many years.",
    "The costs fall upon people whose voices nobody counts, which is unfair by every moral standard.",
    "Practical experience shows simpler alternatives reach the same goal without harming freedom.",
    "History offers examples where exactly this reasoning failed and had to be reversed later.",
    "Experts who once defended it changed their judgement after fresh evidence appeared recently.",
    "Long term incentives reward cheating, waste public money and slowly erode mutual trust.",
    "Even its strongest supporters admit exceptions, so a universal rule cannot stand logically.",
)
"""The scripted expert's arguments, the same against every claim."""

GYM = Gym(
    name="persuade",
    system=SYSTEM,
    make_task=data_only,
    initial_state=initial_state,
    needs_user=every_turn,
    apply_action=apply_action,
    rule_based_reply=rule_based_reply,
    expert=expert,
    random_action=random_action,
    llm_role=LlmRole(instructions=instructions, schema=schema, read=read),
    load_tasks=load_tasks,
    user_view=user_view,
    rules=GymRules(parse_action=parse_leniently),
    scoring=EACH_TURN,
)
