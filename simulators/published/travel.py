"""Published TravelGym rules: ask for preferences, search, recommend one option an aspect; the asynchronous
branch of the released code, which its training and its evaluation use.

An `[action]` calls the user. It sees `UserCall.view` {"remaining": [{"id", "aspect", "subcategory",
"preference", "hint"}, ...]}. Verdict facts: {"type": 1 small talk, 2 a concrete question about a remaining
preference, 3 a concrete question about anything else, 4 a vague one; with 2 also "preference_id": an id of
the view}; a type may be text, ids are P1, P2 … in the order of the data, over all aspects. A `[search]` that
does not fail on purpose calls the user, too. Verdict facts, under the released judge's names (or `aligned`
and `aspect`): {"alignment_judgement": "True", "False" or "N/A", "alignment_aspect": name}. The reply's text
is what the user says; types 3, 4 and searches have fixed texts. An `[answer]` does not call the user.

Kept as released: every fifth search fails, with the words of a backend issue; only the text "True" counts (a
boolean is a backend issue); the first aligned search of an aspect pays and shows all of its options, later
ones are sent back to it; a hit preference pays and is gone, in the apology's turn too; a verdict that names
no remaining preference is small talk; an answer is ids separated by commas and nothing else, worked off from
the left and summed, one an aspect's letter in the whole dialogue: at the first that is no id, or of a letter
named before, the turn pays nothing, but the ids to its left are spent all the same; an answer deletes its
aspect's remaining preferences; the dialogue ends when all best ids are named, not when all aspects are
answered; the user who was meant to volunteer a preference after three `[action]` turns without one says, one
turn later and while preferences remain, an apology and no preference. Options need not have been shown to be
chosen; `[finish]` is taken in any case; untagged text is refused.
Own choice: the order of options is drawn from the task, not from global random state.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from simulators.gym import ActionOutcome, Gym, GymRules
from simulators.message import Action
from simulators.published.settings import PublishedConstants
from simulators.published.shared_rules import EACH_TURN, data_only, parse_any_finish
from simulators.published.travel_data import load_tasks
from simulators.published.travel_user import (
    LETTERS,
    NO_PREFERENCE,
    ROLE,
    TOO_VAGUE,
    TYPES,
    expert,
    random_action,
    rule_based_reply,
)
from simulators.task import Task
from simulators.user import UserReply

SYSTEM = (
    "Plan the user's trip: learn the user's preferences, search the database, and recommend the cheapest "
    "option that satisfies all preferences, one for each aspect of the trip. Your rounds are limited.\n"
    "search: one aspect of the trip (flight, hotel, restaurant, apartment, rental car) and what you know.\n"
    "action: a concrete question to the user about one preference.\n"
    "answer: the id of the option that you recommend; one an aspect."
)
APOLOGY = "Sorry, I cannot say anything to that now."
NOT_RELATED = "The search is well formed, but it is about nothing that this trip needs."
BACKEND_ISSUE = "The search has a backend issue. Please try it again."
REFINE = "The search matches nothing. Give one aspect and all arguments that you know."
LOOK_BACK = "You have seen these options already: look back."
NOT_AN_ID = "Recommend ids alone, separated by commas: a letter (A, C, F, H, R) and a number."
ANSWERED = "You have recommended for this aspect already: one option an aspect."
ID = re.compile(r"[ACFHR]\d+")
ASPECTS = {letter: aspect for aspect, letter in LETTERS.items()}
REMAINING = str(TYPES["remaining_preference"])
FIXED = {str(TYPES["other_preference"]): NO_PREFERENCE, str(TYPES["vague"]): TOO_VAGUE}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    remaining: tuple[Mapping[str, str], ...]
    """Preferences neither asked about nor given up."""
    num_searches: int = 0
    num_quiet: int = 0
    """`[action]` turns in a row without a preference."""
    shown: frozenset[str] = frozenset()
    """Aspects with options already shown."""
    answered: frozenset[str] = frozenset()
    """Letters of the ids recommended so far."""
    chosen: frozenset[str] = frozenset()
    """All ids recommended so far."""


def initial_state(task: Task) -> State:
    aspects = task.scenario["aspects"].values()
    return State(remaining=tuple(wish for aspect in aspects for wish in aspect["preferences"]))


def needs_user(state: State, action: Action, *, failure_interval: int) -> bool:
    if action.choice == "search":
        return (state.num_searches + 1) % failure_interval != 0
    return action.choice == "action"


def user_view(state: State) -> Mapping[str, Any]:
    return {"remaining": [dict(wish) for wish in state.remaining]}


def apply_action(
    task: Task, state: State, action: Action, reply: UserReply | None, *, constants: PublishedConstants
) -> ActionOutcome:
    if action.choice == "answer":
        return _recommend(task, state, action.content, constants)
    if action.choice == "search":
        state = replace(state, num_searches=state.num_searches + 1)
        return _search(task, state, reply, constants)
    return _reply_to_question(state, reply, constants)


def make_gym(constants: PublishedConstants) -> Gym:
    return Gym(
        name="travel",
        system=SYSTEM,
        make_task=data_only,
        initial_state=initial_state,
        needs_user=partial(needs_user, failure_interval=constants.travel_search_failure_interval),
        apply_action=partial(apply_action, constants=constants),
        rule_based_reply=rule_based_reply,
        expert=expert,
        random_action=random_action,
        llm_role=ROLE,
        load_tasks=load_tasks,
        user_view=user_view,
        rules=GymRules(parse_action=parse_any_finish),
        scoring=EACH_TURN,
    )


def _reply_to_question(state: State, reply: UserReply | None, constants: PublishedConstants) -> ActionOutcome:
    facts, said = (reply.facts, reply.text) if reply else ({}, "")
    kind = str(facts.get("type", "")).strip()
    hit = str(facts.get("preference_id", "")).strip() if kind == REMAINING else None
    left = tuple(wish for wish in state.remaining if wish["id"] != hit)
    if len(left) < len(state.remaining):
        state = replace(state, remaining=left, num_quiet=0)
        return ActionOutcome(state=state, feedback=said, score=constants.travel_preference)
    if state.remaining and state.num_quiet >= constants.travel_elicitation_interval:
        # The released code forgets to make the volunteered reply, and its handler apologises instead.
        return ActionOutcome(state=replace(state, num_quiet=0), feedback=APOLOGY, score=0.0)
    feedback = FIXED.get(kind, said or APOLOGY)
    return ActionOutcome(state=replace(state, num_quiet=state.num_quiet + 1), feedback=feedback, score=0.0)


def _search(
    task: Task, state: State, reply: UserReply | None, constants: PublishedConstants
) -> ActionOutcome:
    if reply is None:
        return ActionOutcome(state=state, feedback=BACKEND_ISSUE, score=0.0)
    if not reply.facts and reply.text:
        return ActionOutcome(state=state, feedback=reply.text, score=0.0)
    aligned = reply.facts.get("alignment_judgement", reply.facts.get("aligned"))
    name = _aspect_named(reply.facts)
    if aligned in ("False", "N/A"):
        feedback = REFINE if aligned == "False" else NOT_RELATED
        return ActionOutcome(state=state, feedback=feedback, score=0.0)
    if aligned != "True" or name not in task.scenario["aspects"]:
        return ActionOutcome(state=state, feedback=BACKEND_ISSUE, score=0.0)
    if name in state.shown:
        return ActionOutcome(state=state, feedback=LOOK_BACK, score=0.0)
    options = list(task.scenario["aspects"][name]["options"])
    task.key.rng().shuffle(options)
    lines = "\n".join(json.dumps(option) for option in options)
    fields = ", ".join(options[0]) if options else ""
    return ActionOutcome(
        state=replace(state, shown=state.shown | {name}),
        feedback=f"Options for {name}, one a line:\n{lines}\nFields: {fields}",
        score=constants.travel_search,
    )


def _aspect_named(facts: Mapping[str, Any]) -> str:
    name = str(facts.get("alignment_aspect", facts.get("aspect", ""))).lower().strip()
    return "rental_car" if name in ("rental car", "car rental") else name


def _recommend(task: Task, state: State, content: str, constants: PublishedConstants) -> ActionOutcome:
    aspects = task.scenario["aspects"].values()
    best = {aspect["best_id"] for aspect in aspects}
    correct = {option_id for aspect in aspects for option_id in aspect["correct_ids"]} - best
    ids = [part.strip() for part in content.split(",")]
    refusal = ""
    for number, option_id in enumerate(ids):
        refusal = _refusal(state, option_id)
        if refusal:
            ids = ids[:number]
            break
        state = _spend(state, option_id)
    done = best <= state.chosen
    if refusal:
        return ActionOutcome(state=state, feedback=refusal, score=0.0, done=done)
    worth = dict.fromkeys(correct, constants.travel_correct) | dict.fromkeys(best, constants.travel_best)
    score = sum((worth.get(option_id, 0.0) for option_id in ids), start=0.0)
    feedback = _grade(
        num_best=len(best.intersection(ids)), num_correct=len(correct.intersection(ids)), num_ids=len(ids)
    )
    return ActionOutcome(state=state, feedback=feedback, score=score, done=done)


def _refusal(state: State, option_id: str) -> str:
    if not ID.fullmatch(option_id):
        return NOT_AN_ID
    return ANSWERED if option_id[0] in state.answered else ""


def _spend(state: State, option_id: str) -> State:
    """The state after a recommendation: its aspect is answered, and its remaining preferences are removed."""
    aspect = ASPECTS[option_id[0]]
    return replace(
        state,
        answered=state.answered | {option_id[0]},
        chosen=state.chosen | {option_id},
        remaining=tuple(wish for wish in state.remaining if wish["aspect"] != aspect),
    )


def _grade(*, num_best: int, num_correct: int, num_ids: int) -> str:
    wrong = " Others are wrong." if num_best + num_correct < num_ids else ""
    if num_best:
        return f"The best choice is among your recommendations.{wrong}"
    if num_correct:
        return f"A correct choice is among your recommendations, but not the best one.{wrong}"
    return "Your recommendations are neither the best nor correct choices."
