"""The environment interface in Gymnasium's terms, the `Gym` record of a gym's rules, and the one environment
that plays any gym.

A gym gives pure functions; the environment holds the state, asks the user and pays the best-so-far
difference.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from simulators.input_limits import MAX_ACTION_CHARS, MAX_REPLY_CHARS
from simulators.llm_role import LlmRole
from simulators.message import CHOICES, Action, parse_action
from simulators.persona import PLAIN, Persona
from simulators.task import Task, TaskKey
from simulators.user import WEB, Failure, SimulatorError, User, UserCall, UserReply

MAX_TURNS = 16
"""Turn budget of training and evaluation alike; all of them are executed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the policy sees before its first turn."""

    system: str
    """The gym's rules."""
    opening: str
    """The user's first message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnResult:
    """The environment's answer to one action."""

    feedback: str
    """The only thing that the policy sees of it."""
    reward: float
    """This turn's environment reward. A dialogue's sum is its score: in [0, 1] but for `published` rules."""
    terminated: bool
    """The episode reached its end: solved, out of attempts, or finished by the policy."""
    truncated: bool
    """The turn budget ran out. Under `published` rules both may be true, as in the released gyms."""
    user_reply: UserReply | None
    """The user's reply behind the feedback; None where no user was asked."""
    progress: float = 0.0
    """How far the dialogue has come after this action, in [0, 1]; 0 where the gym does not say."""
    news: str = ""
    """What the feedback told, as a key; empty: its own text. See `Gym.news`."""
    user_s: float = field(default=0.0, compare=False)
    """Seconds in which the environment waited for a user; a search of the web is a tool's time, not a
    user's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActionOutcome:
    """What a gym's rules make of one action."""

    state: Any
    feedback: str
    score: float
    """The worth of what has been reached, in [0, 1]; only what exceeds the best so far is paid. Under
    `published` rules: this turn's reward."""
    done: bool = False


class Env(Protocol):
    """One dialogue's environment: made for one task, used once."""

    async def reset(self) -> Observation: ...

    async def step(self, text: str, *, request_id: str = "", known: UserReply | None = None) -> TurnResult:
        """Takes `[choice] content`. Raises `SimulatorError` if the user fails; the state is then unchanged. A
        repeated `request_id` returns the same result. `known`: the user's recorded reply in a replay."""
        ...

    async def close(self) -> None: ...


Expert = Generator[Action, str, None]
"""A scripted expert in dialogue: yields actions and is sent their feedback. Knows only what the policy may
know."""


def best_so_far(best: float, score: float) -> float:
    """Pays only what exceeds the best score so far: nothing can be collected twice."""
    return max(0.0, score - best)


def end_without_score(task: Task, state: Any) -> ActionOutcome:
    """What `finish` does in most gyms."""
    return ActionOutcome(state=state, feedback="The conversation is over.", score=0.0, done=True)


def unknown_choice(state: Any) -> ActionOutcome:
    """What text without a known tag brings: a lost turn."""
    known = ", ".join(CHOICES)
    return ActionOutcome(state=state, feedback=f"Unknown choice. Use one of: {known}.", score=0.0)


def too_long(state: Any) -> ActionOutcome:
    """Result of a text longer than `MAX_ACTION_CHARS`, under all rules: a lost turn; the text is not read."""
    return ActionOutcome(state=state, feedback=f"Too long: at most {MAX_ACTION_CHARS} characters.", score=0.0)


def one_end(action: Action | None, done: bool, is_last: bool) -> tuple[bool, bool]:
    """An episode is either terminated or truncated: one that is done in its last turn is not cut off."""
    return done, is_last and not done


def nothing_to_see(state: Any) -> Mapping[str, Any]:
    """Empty view: the user knows nothing but what was said."""
    return {}


def no_gold(task: Task) -> Sequence[Action]:
    """No calls are known to solve the task."""
    return ()


def no_progress(task: Task, state: Any) -> float:
    """Nothing is known of how far a dialogue has come."""
    return 0.0


def own_words(action: Action | None, feedback: str, reply: UserReply | None) -> str:
    """Feedback is news by its own text."""
    return feedback


def meaning(action: Action | None, feedback: str, reply: UserReply | None) -> str:
    """Key of new information in the feedback: a user's reply by its facts, independent of wording; other
    feedback by its text."""
    return json.dumps(dict(reply.facts), sort_keys=True) if reply and reply.facts else feedback


def no_published_data(path: Path) -> list[Task]:
    """Refuses: this gym's published data were never released."""
    raise ValueError(f"data={path}: this gym has no published data: leave the path out to generate tasks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gym:
    """One gym: everything that the rest of the system asks of it. All functions are pure."""

    name: str
    system: str
    """The rules, as the policy reads them."""
    make_task: Callable[[TaskKey], Task]
    start: Callable[[Task], Any]
    """The state before the first turn."""
    asks_user: Callable[[Any, Action], bool]
    """(state, action): whether the user must be asked before the rules can apply."""
    apply: Callable[[Task, Any, Action, UserReply | None], ActionOutcome]
    """(task, state, action, the user's reply if asked) to the outcome. Never sees `finish`."""
    answer: Callable[[UserCall, random.Random], UserReply]
    """The rule-based user."""
    expert: Callable[[str, random.Random, float], Expert]
    """(opening, randomness, haste) to a scripted expert; haste is its chance to act without asking."""
    random_action: Callable[[Task, random.Random], Action]
    """A well-formed action that ignores the dialogue."""
    role: LlmRole | None = None
    """The LLM form of the user; None where the user only computes: no model may stand in for that."""
    load: Callable[[Path], list[Task]] = no_published_data
    """A file of published data to tasks. Errors name file, row and field."""
    view: Callable[[Any], Mapping[str, Any]] = nothing_to_see
    """What of the state the user may know, as JSON."""
    finish: Callable[[Task, Any], ActionOutcome] = end_without_score
    """(task, state): what the policy's `finish` brings; always the end."""
    parse: Callable[[str], Action | None] = parse_action
    """Text to action; None is refused."""
    refuse: Callable[[Any], ActionOutcome] = unknown_choice
    """(state): what text brings that `parse` refused; the turn is taken all the same."""
    pay: Callable[[float, float], float] = best_so_far
    """(best score so far, this turn's score) to the turn's reward."""
    flag: Callable[[Action | None, bool, bool], tuple[bool, bool]] = one_end
    """(action, done, last turn of the budget) to (terminated, truncated); either ends the episode."""
    gold: Callable[[Task], Sequence[Action]] = no_gold
    """The calls that solve the task, without questions and look-ups before them; empty if unknown."""
    progress: Callable[[Task, Any], float] = no_progress
    """(task, state): progress in [0, 1], 0 before the first turn, for potential-based shaping. Never shown to
    the policy."""
    news: Callable[[Action | None, str, UserReply | None], str] = own_words
    """(action, feedback, reply): what a turn told the policy, as a key in which wording plays no part.
    Dialogues that were told the same are in one state, for estimators that compare within it (GiGPO)."""
    max_turns: int = MAX_TURNS
    """The turn budget, in training and evaluation alike."""


class GymEnv:
    """Plays one task of one gym with one user. Implements `Env`."""

    def __init__(
        self,
        gym: Gym,
        *,
        task: Task,
        user: User,
        max_turns: int | None = None,
        persona: Persona = PLAIN,
        seed: int | None = None,
    ):
        """`max_turns` None: the gym's own. `seed` fixes the user's random choices; None: the task's."""
        self._gym = gym
        self._task = task
        self._user = user
        self._persona = persona
        self._seed = task.key.rng().getrandbits(31) if seed is None else seed
        self._max_turns = gym.max_turns if max_turns is None else max_turns
        self._state: Any = gym.start(task)
        self._history: tuple[tuple[str, str], ...] = ()
        self._best = 0.0
        self._num_turns = 0
        self._over = False
        self._answered: dict[str, TurnResult] = {}
        self._turn = asyncio.Lock()

    async def reset(self) -> Observation:
        return Observation(system=self._gym.system, opening=self._task.opening)

    async def step(self, text: str, *, request_id: str = "", known: UserReply | None = None) -> TurnResult:
        """Executes one action; overlapping calls run one after the other, so a retry finds its call's answer.
        Raises ValueError after the end and `SimulatorError` if the user fails."""
        async with self._turn:
            return await self._step(text, request_id, known)

    async def close(self) -> None:
        self._over = True

    async def _step(self, text: str, request_id: str, known: UserReply | None) -> TurnResult:
        if request_id in self._answered:
            return self._answered[request_id]
        if self._over:
            raise ValueError("step after the end of the episode: make a new environment for a new task")
        is_read = len(text) <= MAX_ACTION_CHARS
        action = self._gym.parse(text) if is_read else None
        began = time.perf_counter()
        reply = None
        if action and self._gym.asks_user(self._state, action):
            reply = known or await self._ask(action)
        is_user = reply is not None and reply.simulator != WEB
        user_s = time.perf_counter() - began if is_user else 0.0
        step = replace(self._take(action, reply, is_read=is_read), user_s=user_s)
        if request_id:
            self._answered[request_id] = step
        return step

    async def _ask(self, action: Action) -> UserReply:
        reply = await self._user.reply(
            UserCall(
                gym=self._gym.name,
                scenario=self._task.scenario,
                question=action.content,
                choice=action.choice,
                view=self._gym.view(self._state),
                persona=self._persona,
                history=self._history,
                seed=self._seed,
            )
        )
        if len(reply.text) > MAX_REPLY_CHARS:
            problem = f"a reply of {len(reply.text)} characters: at most {MAX_REPLY_CHARS}"
            raise SimulatorError(f"{self._gym.name}: {problem}", Failure.ERROR, reply.simulator)
        return reply

    def _take(self, action: Action | None, reply: UserReply | None, *, is_read: bool) -> TurnResult:
        """The state's one way forward: all at once, after everything that can fail."""
        outcome = self._outcome(action, reply) if is_read else too_long(self._state)
        progress = self._gym.progress(self._task, outcome.state)
        reward = self._gym.pay(self._best, outcome.score)
        self._best = max(self._best, outcome.score)
        self._state = outcome.state
        if action is not None and reply is not None:
            self._history = (*self._history, (action.content, reply.text))
        self._num_turns += 1
        is_last = self._num_turns >= self._max_turns
        terminated, truncated = self._gym.flag(action, outcome.done, is_last)
        self._over = terminated or truncated
        return TurnResult(
            feedback=outcome.feedback,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            user_reply=reply,
            progress=progress,
            news=self._gym.news(action, outcome.feedback, reply),
        )

    def _outcome(self, action: Action | None, reply: UserReply | None) -> ActionOutcome:
        if action is None:
            return self._gym.refuse(self._state)
        if action.choice == "finish":
            return self._gym.finish(self._task, self._state)
        return self._gym.apply(self._task, self._state, action, reply)
