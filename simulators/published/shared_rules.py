"""Shared parts of the published rules: turn rewards, tasks from data, parsing of action tags, text
comparison.

Published gyms pay each turn by its own rules, independent of the best so far: what can be collected twice
under the released rules is paid twice.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulators.gym import GymScoring
from simulators.message import Action, parse_action
from simulators.task import SPLITS, Split, Task, TaskKey
from simulators.user import UserCall, UserReply

TAG_LENGTH = len("[action]")
"""All released tags have this length; some released gyms cut so many letters off any text, tagged or not."""
CANNOT_RESPOND = "I cannot respond to that."
"""Shown for a verdict that the rules cannot use. The released code shows such a text, at reward 0, also when
its model fails; here a failing user raises `SimulatorError` and the dialogue is no score at all."""


def each_turn(best: float, score: float) -> float:
    """Pays the turn's own reward, independent of earlier pay."""
    return score


EACH_TURN = GymScoring(turn_reward=each_turn)


def stateless(task: Task) -> None:
    """The `initial_state` of gyms without a state."""


def never(state: Any, action: Action) -> bool:
    """The `needs_user` of a gym that computes everything itself."""
    return False


def every_turn(state: Any, action: Action) -> bool:
    """The `needs_user` of gyms whose user is called on every action except `finish`."""
    return action.choice != "finish"


def data_only(key: TaskKey) -> Task:
    """The `make_task` of published rules: their tasks come from released data alone."""
    raise ValueError(f"{key.task_id}: published rules generate no tasks: load a file of the released data")


def no_user(call: UserCall, rng: random.Random) -> UserReply:
    """The `rule_based_reply` of a gym that computes everything itself: raises ValueError."""
    raise ValueError(f"{call.gym}: these published rules ask no user")


def make_task(
    gym: str, *, index: int, opening: str, scenario: Mapping[str, Any], split: object = "train"
) -> Task:
    """The task of one published record. `split` is the record's own split, if any."""
    known: list[Split] = [name for name in SPLITS if name == split]
    key = TaskKey(gym=gym, split=known[0] if known else "train", index=index, seed=0, difficulty=0)
    return Task(key=key, opening=opening, scenario=scenario)


def missing_in_parquet(path: Path, *, gym: str, fields: str, cure: str) -> ValueError:
    """The error for a file that lacks whole parts of the gym's tasks."""
    return ValueError(f"data={path}: Parquet rows of {gym} carry no {fields}: {cure}")


def parse_stripped(text: str) -> Action | None:
    """Parses a tag after leading blanks, like the released gyms that strip a text first."""
    return parse_action(text.strip())


def parse_any_finish(text: str) -> Action | None:
    """The same, for the two gyms that accept `[finish]` in any case."""
    text = text.strip()
    if text[:TAG_LENGTH].lower() == "[finish]":
        return Action(choice="finish", content="")
    return parse_action(text)


def parse_leniently(text: str) -> Action:
    """Reads `[answer]` and `[finish]`; everything else is `[action]`, untagged text whole."""
    action = parse_action(text)
    if action is not None and action.choice in ("action", "answer", "finish"):
        return action
    return Action(choice="action", content=text.strip())


def parse_cutting(text: str) -> Action:
    """Reads `[answer]` and `[finish]`; of everything else the first eight letters are lost, tag or not.

    Example: `parse_cutting("Is it a person?").content` is `"person?"`.
    """
    action = parse_action(text)
    if action is not None and action.choice in ("answer", "finish"):
        return action
    return Action(choice="action", content=text[TAG_LENGTH:].strip())


def both_flags(action: Action | None, done: bool, is_last: bool) -> tuple[bool, bool]:
    """(terminated, truncated) of most released gyms: the last turn is truncated even if it is done."""
    return done, is_last


def travel_flags(action: Action | None, done: bool, is_last: bool) -> tuple[bool, bool]:
    """The same, but `finish` is never truncated."""
    return done, is_last and not _finishes(action)


def intention_flags(action: Action | None, done: bool, is_last: bool) -> tuple[bool, bool]:
    """The last turn is terminated too; it is also truncated if details remain."""
    return done or is_last, is_last and not done


def _finishes(action: Action | None) -> bool:
    return action is not None and action.choice == "finish"


def norm(text: str) -> str:
    """Lower-case letters and digits only: released answers are compared in this form."""
    return "".join(letter for letter in text.lower() if letter.isalnum())
