"""The environment interface in Gymnasium's terms (`reset`, `step`, `close`) and `GymEnv`, the one environment
that plays any gym.

A gym is a record of pure functions; the environment holds the state, calls the user and computes rewards.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from simulators.gym import ActionOutcome, Gym
from simulators.input_limits import MAX_ACTION_CHARS, MAX_REPLY_CHARS, whole_characters
from simulators.message import Action
from simulators.persona import PLAIN, Persona
from simulators.task import Task
from simulators.user import WEB, Failure, SimulatorError, User, UserCall, UserReply


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What the policy sees before its first turn."""

    system: str
    """The gym's rules."""
    opening: str
    """The user's first message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnResult:
    """The environment's result of one action."""

    feedback: str
    """The only thing that the policy sees of it."""
    reward: float
    """This turn's environment reward. A dialogue's sum is its score: in [0, 1] but for `published` rules."""
    terminated: bool
    """The episode reached its end: solved, out of attempts, or finished by the policy."""
    truncated: bool
    """The turn budget ran out. Under `published` rules both may be true, as in the released gyms."""
    user_reply: UserReply | None
    """The user's reply behind the feedback; None if the user was not called."""
    progress: float = 0.0
    """How far the dialogue has come after this action, in [0, 1]; 0 if the gym has no measure of it."""
    observation_key: str = ""
    """Key of the information in the feedback, see `GymScoring`; empty: the feedback itself."""
    user_s: float = field(default=0.0, compare=False)
    """Seconds in which the environment waited for a user; a search of the web is a tool's time, not a
    user's."""


class Env(Protocol):
    """One dialogue's environment: made for one task, used once."""

    async def reset(self) -> Observation: ...

    async def step(self, text: str, *, request_id: str = "", known: UserReply | None = None) -> TurnResult:
        """Takes `[choice] content`. Raises `SimulatorError` if the user fails; the state is then unchanged. A
        repeated `request_id` returns the same result. `known`: the user's recorded reply in a replay."""
        ...

    async def close(self) -> None: ...


def too_long(state: Any) -> ActionOutcome:
    """Outcome of text longer than `MAX_ACTION_CHARS`, under all rules: a lost turn; the text is not read."""
    return ActionOutcome(state=state, feedback=f"Too long: at most {MAX_ACTION_CHARS} characters.", score=0.0)


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
        self._state: Any = gym.initial_state(task)
        self._history: tuple[tuple[str, str], ...] = ()
        self._best = 0.0
        self._num_turns = 0
        self._over = False
        self._answered: dict[str, TurnResult] = {}
        self._turn = asyncio.Lock()

    async def reset(self) -> Observation:
        return Observation(system=self._gym.system, opening=whole_characters(self._task.opening))

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
        action = self._gym.rules.parse_action(text) if is_read else None
        began = time.perf_counter()
        reply = None
        if action and self._gym.needs_user(self._state, action):
            reply = known or await self._ask(action)
        is_user = reply is not None and reply.simulator != WEB
        user_s = time.perf_counter() - began if is_user else 0.0
        step = replace(self._advance(action, reply, is_read=is_read), user_s=user_s)
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
                view=self._gym.user_view(self._state),
                persona=self._persona,
                history=self._history,
                seed=self._seed,
            )
        )
        if len(reply.text) > MAX_REPLY_CHARS:
            problem = f"a reply of {len(reply.text)} characters: at most {MAX_REPLY_CHARS}"
            raise SimulatorError(f"{self._gym.name}: {problem}", Failure.ERROR, reply.simulator)
        return replace(reply, text=whole_characters(reply.text))

    def _advance(self, action: Action | None, reply: UserReply | None, *, is_read: bool) -> TurnResult:
        """Advances the state, after everything that can fail has succeeded."""
        outcome = self._outcome(action, reply) if is_read else too_long(self._state)
        progress = self._gym.scoring.progress(self._task, outcome.state)
        reward = self._gym.scoring.turn_reward(self._best, outcome.score)
        self._best = max(self._best, outcome.score)
        self._state = outcome.state
        if action is not None and reply is not None:
            self._history = (*self._history, (action.content, reply.text))
        self._num_turns += 1
        is_last = self._num_turns >= self._max_turns
        terminated, truncated = self._gym.rules.end_flags(action, outcome.done, is_last)
        self._over = terminated or truncated
        return TurnResult(
            feedback=whole_characters(outcome.feedback),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            user_reply=reply,
            progress=progress,
            observation_key=self._gym.scoring.observation_key(action, outcome.feedback, reply),
        )

    def _outcome(self, action: Action | None, reply: UserReply | None) -> ActionOutcome:
        if action is None:
            return self._gym.rules.on_unparsed(self._state)
        if action.choice == "finish":
            return self._gym.rules.on_finish(self._task, self._state)
        return self._gym.apply_action(self._task, self._state, action, reply)
