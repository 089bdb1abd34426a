"""The `Gym` record: everything that defines one gym, as pure functions (tasks, rules, rule-based user,
expert, scoring), with the defaults of the optional ones.

`simulators.env.GymEnv` plays it. How to write one: docs/add-a-gym.md.
"""

import json
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulators import message
from simulators.message import CHOICES, Action
from simulators.task import Task, TaskKey
from simulators.user import LlmRole, UserCall, UserReply

MAX_TURNS = 16
"""Turn budget of training and evaluation alike; all of them are executed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionOutcome:
    """Result of one action under a gym's rules."""

    state: Any
    feedback: str
    score: float
    """Value of what has been reached, in [0, 1]; only the part above the best so far is paid. Under
    `published` rules: this turn's reward."""
    done: bool = False


Expert = Generator[Action, str, None]
"""A scripted expert in dialogue: yields actions and is sent their feedback. It knows only what the policy may
know."""


def speaks_to_user(state: Any, action: Action) -> bool:
    """True for the choice `action`: in most gyms all other choices are computed without the user."""
    return action.choice == "action"


def empty_view(state: Any) -> Mapping[str, Any]:
    """Empty view: the user knows only what was said."""
    return {}


def no_gold_actions(task: Task) -> Sequence[Action]:
    """Empty: no calls are known to solve the task."""
    return ()


def no_published_data(path: Path) -> list[Task]:
    """Raises ValueError: this gym's published data were never released."""
    raise ValueError(f"data={path}: this gym has no published data: leave the path out to generate tasks")


def unknown_choice(state: Any) -> ActionOutcome:
    """Outcome of text without a known tag: a lost turn."""
    known = ", ".join(CHOICES)
    return ActionOutcome(state=state, feedback=f"Unknown choice. Use one of: {known}.", score=0.0)


def end_without_score(task: Task, state: Any) -> ActionOutcome:
    """Outcome of `finish` in most gyms."""
    return ActionOutcome(state=state, feedback="The conversation is over.", score=0.0, done=True)


def terminated_or_truncated(action: Action | None, done: bool, is_last: bool) -> tuple[bool, bool]:
    """Never both: an episode that is done in its last turn is terminated, not truncated."""
    return done, is_last and not done


@dataclass(frozen=True, kw_only=True, slots=True)
class GymRules:
    """Optional rules of a gym: how text is parsed and how an episode ends."""

    parse_action: Callable[[str], Action | None] = message.parse_action
    """Text to action; None if it is no action."""
    on_unparsed: Callable[[Any], ActionOutcome] = unknown_choice
    """(state): the outcome of text that `parse_action` did not parse; the turn is used up."""
    on_finish: Callable[[Task, Any], ActionOutcome] = end_without_score
    """(task, state): the outcome of the policy's `finish`; it always ends the episode."""
    end_flags: Callable[[Action | None, bool, bool], tuple[bool, bool]] = terminated_or_truncated
    """(action, done, last turn of the budget) to (terminated, truncated); either ends the episode."""


def improvement(best: float, score: float) -> float:
    """What exceeds the best score so far: nothing can be collected twice."""
    return max(0.0, score - best)


def no_progress(task: Task, state: Any) -> float:
    """0: the gym has no measure of progress."""
    return 0.0


def feedback_key(action: Action | None, feedback: str, reply: UserReply | None) -> str:
    """The feedback's text itself."""
    return feedback


def facts_key(action: Action | None, feedback: str, reply: UserReply | None) -> str:
    """The facts of the user's reply, independent of wording; the feedback's text if there are none."""
    return json.dumps(dict(reply.facts), sort_keys=True) if reply and reply.facts else feedback


@dataclass(frozen=True, kw_only=True, slots=True)
class GymScoring:
    """Optional scoring of a gym: turn rewards, progress, and keys of equal observations."""

    turn_reward: Callable[[float, float], float] = improvement
    """(best score so far, this turn's score) to the turn's reward."""
    progress: Callable[[Task, Any], float] = no_progress
    """(task, state): how far a dialogue has come, in [0, 1] and 0 before the first turn, for potential-based
    shaping: what was learned of the hidden part, and what was done. Never shown to the policy."""
    observation_key: Callable[[Action | None, str, UserReply | None], str] = feedback_key
    """(action, feedback, reply): key of the information that a turn gave the policy, independent of wording.
    Dialogues with equal keys so far are in one state, for estimators that compare within it (GiGPO)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gym:
    """One gym. All functions are pure."""

    name: str
    system: str
    """The rules, as the policy reads them."""
    make_task: Callable[[TaskKey], Task]
    initial_state: Callable[[Task], Any]
    """The state before the first turn."""
    needs_user: Callable[[Any, Action], bool] = speaks_to_user
    """(state, action): whether the user's reply is needed to apply the action."""
    apply_action: Callable[[Task, Any, Action, UserReply | None], ActionOutcome]
    """(task, state, action, the user's reply if needed) to the outcome. Never called with `finish`."""
    rule_based_reply: Callable[[UserCall, random.Random], UserReply]
    """The rule-based user."""
    expert: Callable[[str, random.Random, float], Expert]
    """(opening, randomness, guess_rate) to a scripted expert. `guess_rate` is its probability, at each
    question, to guess instead of asking; 0 is the expert at its best."""
    random_action: Callable[[Task, random.Random], Action]
    """A well-formed action that ignores the dialogue."""
    llm_role: LlmRole | None = None
    """The LLM form of the user. None if the user only computes: a model cannot replace that."""
    load_tasks: Callable[[Path], list[Task]] = no_published_data
    """A file of published data to tasks. Raises ValueError with file, row and field."""
    user_view: Callable[[Any], Mapping[str, Any]] = empty_view
    """The part of the state that the user may know, as JSON."""
    gold_actions: Callable[[Task], Sequence[Action]] = no_gold_actions
    """The calls that solve the task, given its hidden part; empty if unknown. What must be asked or looked up
    before them is not included."""
    rules: GymRules = GymRules()
    scoring: GymScoring = GymScoring()
    max_turns: int = MAX_TURNS
    """The turn budget, in training and evaluation alike."""
