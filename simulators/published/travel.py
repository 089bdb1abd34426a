"""Published TravelGym: ask for preferences, search, recommend one option an aspect; the asynchronous branch
of the released code, which its training and its evaluation use.

An `[action]` asks the user. It sees `UserCall.view` {"remaining": [{"id", "aspect", "subcategory",
"preference", "hint"}, ...]}. Verdict facts: {"type": 1 small talk, 2 a concrete question about a remaining
preference, 3 a concrete question about anything else, 4 a vague one; with 2 also "preference_id": an id of
the view}; ids are `<aspect>-<n>`, n from 1 in the order of the data. A `[search]` that is not made to fail
asks the user as well. Verdict facts: {"aligned": "True" or "False", "aspect": name}. The reply's text is
what the user says; types 3, 4 and searches have fixed texts. An `[answer]` asks nobody.

Kept as released: every fifth search fails; only the text "True" counts (a boolean is a backend issue); the
first aligned search of an aspect pays and shows all of its options, later ones are sent back to it; a hit
preference pays and is gone; several ids in one answer are summed, one an aspect's letter in the whole
dialogue; an answer deletes its aspect's remaining preferences; the dialogue ends when all best ids are
named, not when all aspects are answered; the user who was meant to volunteer a preference after three turns
without one says, one turn later, an apology and no preference. Options need not have been shown to be
chosen.
Chosen where the facts are silent: a verdict that names no remaining preference is small talk; a hit pays in
the apology's turn too; only `[action]` turns count towards volunteering, and only while preferences remain;
ids are found anywhere in an answer; the order of options comes from the task, not from global random state;
untagged text is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from simulators.env import Gym, Outcome
from simulators.message import Action
from simulators.published.constants import Constants
from simulators.published.released import data_only, each_turn
from simulators.published.travel_data import load
from simulators.published.travel_user import (
    NO_PREFERENCE,
    ROLE,
    TOO_VAGUE,
    TYPES,
    answer,
    expert,
    random_action,
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
SEARCH_FAILED = "The search failed. Please try it again."
BACKEND_ISSUE = "The search has a backend issue. Please try it again."
REFINE = "The search matches nothing. Give one aspect and all arguments that you know."
LOOK_BACK = "You have seen these options already: look back."


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    remaining: tuple[Mapping[str, str], ...]
    """Preferences neither asked about nor given up."""
    num_searches: int = 0
    num_quiet: int = 0
    """`[action]` turns in a row without a preference."""
    shown: frozenset[str] = frozenset()
    """Aspects whose options were shown."""
    answered: frozenset[str] = frozenset()
    """Letters of the ids recommended so far."""
    best_found: frozenset[str] = frozenset()
    """Best ids recommended so far."""


def start(task: Task) -> State:
    aspects = task.scenario["aspects"].values()
    return State(remaining=tuple(wish for aspect in aspects for wish in aspect["preferences"]))


def asks_user(state: State, action: Action, *, failure_interval: int) -> bool:
    if action.choice == "search":
        return (state.num_searches + 1) % failure_interval != 0
    return action.choice == "action"


def view(state: State) -> Mapping[str, Any]:
    return {"remaining": [dict(wish) for wish in state.remaining]}


def apply(
    task: Task, state: State, action: Action, reply: UserReply | None, *, constants: Constants
) -> Outcome:
    if action.choice == "answer":
        return _recommend(task, state, action.content, constants)
    if action.choice == "search":
        state = replace(state, num_searches=state.num_searches + 1)
        return _search(task, state, reply, constants)
    return _speak(state, reply, constants)


def make_gym(constants: Constants) -> Gym:
    return Gym(
        name="travel",
        system=SYSTEM,
        make_task=data_only,
        start=start,
        asks_user=partial(asks_user, failure_interval=constants.travel_search_failure_interval),
        apply=partial(apply, constants=constants),
        answer=answer,
        expert=expert,
        random_action=random_action,
        role=ROLE,
        load=load,
        view=view,
        pay=each_turn,
    )


def _speak(state: State, reply: UserReply | None, constants: Constants) -> Outcome:
    facts, said = (reply.facts, reply.text) if reply else ({}, "")
    kind = facts.get("type")
    hit = facts.get("preference_id") if kind == TYPES["remaining_preference"] else None
    left = tuple(wish for wish in state.remaining if wish["id"] != hit)
    if len(left) < len(state.remaining):
        state = replace(state, remaining=left, num_quiet=0)
        return Outcome(state=state, feedback=said, score=constants.travel_preference)
    if state.remaining and state.num_quiet >= constants.travel_elicitation_interval:
        # The released code forgets to make the volunteered reply, and its handler apologises instead.
        return Outcome(state=replace(state, num_quiet=0), feedback=APOLOGY, score=0.0)
    fixed = {TYPES["other_preference"]: NO_PREFERENCE, TYPES["vague"]: TOO_VAGUE}
    feedback = fixed.get(kind, said or APOLOGY) if type(kind) is int else said or APOLOGY
    return Outcome(state=replace(state, num_quiet=state.num_quiet + 1), feedback=feedback, score=0.0)


def _search(task: Task, state: State, reply: UserReply | None, constants: Constants) -> Outcome:
    if reply is None:
        return Outcome(state=state, feedback=SEARCH_FAILED, score=0.0)
    aligned, name = reply.facts.get("aligned"), reply.facts.get("aspect")
    if not reply.facts and reply.text:
        return Outcome(state=state, feedback=reply.text, score=0.0)
    if aligned == "False":
        return Outcome(state=state, feedback=REFINE, score=0.0)
    if aligned != "True" or not isinstance(name, str) or name not in task.scenario["aspects"]:
        return Outcome(state=state, feedback=BACKEND_ISSUE, score=0.0)
    if name in state.shown:
        return Outcome(state=state, feedback=LOOK_BACK, score=0.0)
    options = list(task.scenario["aspects"][name]["options"])
    task.key.rng().shuffle(options)
    lines = "\n".join(json.dumps(option) for option in options)
    fields = ", ".join(options[0]) if options else ""
    return Outcome(
        state=replace(state, shown=state.shown | {name}),
        feedback=f"Options for {name}, one a line:\n{lines}\nFields: {fields}",
        score=constants.travel_search,
    )


def _recommend(task: Task, state: State, content: str, constants: Constants) -> Outcome:
    ids = re.findall(r"\b[A-Z][0-9]+\b", content)
    if not ids:
        return Outcome(state=state, feedback="Recommend an id: a letter and a number.", score=0.0)
    score, said = 0.0, []
    for option_id in ids:
        if option_id[0] in state.answered:
            said.append(f"{option_id}: you have recommended for this aspect already.")
            continue
        state, worth, verdict = _judge_option(task, state, option_id, constants)
        score += worth
        said.append(f"{option_id} is {verdict}.")
    best = {aspect["best_id"] for aspect in task.scenario["aspects"].values()}
    return Outcome(state=state, feedback=" ".join(said), score=score, done=best <= state.best_found)


def _judge_option(task: Task, state: State, option_id: str, constants: Constants) -> tuple[State, float, str]:
    """The first recommendation of an aspect: (state after it, reward, words)."""
    letter = option_id[0]
    names = [name for name, aspect in task.scenario["aspects"].items() if aspect["best_id"][0] == letter]
    state = replace(
        state,
        answered=state.answered | {letter},
        remaining=tuple(wish for wish in state.remaining if wish["aspect"] not in names),
    )
    aspects = [task.scenario["aspects"][name] for name in names]
    if any(option_id == aspect["best_id"] for aspect in aspects):
        state = replace(state, best_found=state.best_found | {option_id})
        return state, constants.travel_best, "the best choice"
    if any(option_id in aspect["correct_ids"] for aspect in aspects):
        return state, constants.travel_correct, "correct, but not the best choice"
    return state, 0.0, "neither the best nor a correct choice"
