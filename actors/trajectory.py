"""Records of the acting side: completions, turns, trajectories, groups. Finished when made."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from simulators.gauges import NO_COUNTS, GaugeCounts
from simulators.message import Action
from simulators.task import TaskKey
from simulators.user import UserReply


class StopReason(StrEnum):
    """Why a trajectory ended."""

    TERMINATED = "terminated"
    """The environment's own end."""
    MAX_TURNS = "max_turns"
    NO_TOOL_CALL = "no_tool_call"
    """The policy spoke without a valid tool call: it stopped acting."""
    MAX_TOKENS = "max_tokens"
    """The next turn would not fit the context."""
    SIMULATOR_ERROR = "simulator_error"
    SIMULATOR_TIMEOUT = "simulator_timeout"
    EMPTY_REPLY = "empty_reply"
    ROLE_FLIP = "role_flip"
    INVALID_VERDICT = "invalid_verdict"
    USER_LEFT = "user_left"
    OUT_OF_BUDGET = "out_of_budget"
    """These seven: the simulated user failed, as `simulators.user.Failure` says."""
    ENGINE_ERROR = "engine_error"
    ERROR = "error"
    """The environment raised."""

    @property
    def failed(self) -> bool:
        """Not the policy's doing: such a trajectory is never scored and never trained."""
        return self not in (
            StopReason.TERMINATED,
            StopReason.MAX_TURNS,
            StopReason.NO_TOOL_CALL,
            StopReason.MAX_TOKENS,
        )

    @property
    def truncated(self) -> bool:
        return self in (StopReason.MAX_TURNS, StopReason.MAX_TOKENS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What the engine sampled in one call: kept as sampled, never tokenised again."""

    token_ids: Sequence[int]  # [num_tokens]
    logprobs: Sequence[float]  # [num_tokens]
    """Behavior logprobs (natural log, of the distribution sampled from, before top-k or top-p)."""
    policy_versions: Sequence[int]  # [num_tokens]
    """The policy version that sampled each token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One policy completion and the env's reply to it."""

    context_ids: Sequence[int]  # [num_context_tokens]
    """Tokens put before the completion since the last turn (all of the prompt where `forked`)."""
    forked: bool
    """True where a new sample starts: on the first turn, and where the chat template changed earlier
    tokens."""
    completion: Completion
    text: str
    """The completion's text."""
    action: Action | None
    """The parsed tool call; None where there was no valid one."""
    feedback: str
    """The env's reply; empty where the dialogue ended before one."""
    reward: float
    """Environment reward of this turn."""
    progress: float = 0.0
    """How far the dialogue has come after this turn, in [0, 1], as its gym says."""
    news: str = ""
    """What the feedback told, as a key of its gym; empty: its own text."""
    user_reply: UserReply | None = None
    """What the user said, meant, and who answered for it; None where nobody was asked."""
    policy_s: float = 0.0
    """Seconds this turn waited for the engine."""
    env_s: float = 0.0
    """Seconds this turn waited for the environment, its user included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One finished episode's record."""

    task_key: TaskKey
    system: str
    opening: str
    turns: Sequence[Turn]  # [num_turns]
    stop_reason: StopReason
    error: str = ""
    """The failure's text where `stop_reason.failed`. In the table also why a trajectory has no reward."""
    persona: str = "plain"
    """How the user talked: the name of its `Persona`."""
    simulator: str = ""
    """Who played the user; empty where nobody was asked."""
    gauges: GaugeCounts = NO_COUNTS
    """What the simulator gauges count in this dialogue."""
    gold: Sequence[Action] = ()
    """The calls that solve the task, as its gym says; empty where it knows none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupOrder:
    """An order for one group: the trajectories of one task."""

    group_id: int
    task_key: TaskKey
    group_size: int
    seed: int
    """Run seed; sampling seeds derive from (seed, group_id, trajectory index, turn index)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """The numbers of a finished group that travel without its tokens."""

    group_id: int
    task_key: TaskKey
    rewards: Sequence[float]  # [group_size]
    """Sum of each trajectory's turn rewards, as the learner gets them; NaN where it failed."""
    scores: Sequence[float]  # [group_size]
    """Sum of each trajectory's environment rewards, in [0, 1]; NaN where it failed. What evaluation
    reports."""
    num_turns: Sequence[int]  # [group_size]
    turn_rewards: Sequence[Sequence[float]]  # [group_size][num_turns]
    """What the learner gets for each turn; NaN where the trajectory failed. As in the table, a trajectory
    without turns has one, of no tokens."""
    turn_tokens: Sequence[Sequence[int]]  # [group_size][num_turns]
    """Completion tokens."""
    turn_states: Sequence[Sequence[int]]  # [group_size][num_turns]
    """What the policy had been told before each turn: equal numbers are equal states of the group."""
    stop_reasons: Sequence[StopReason]  # [group_size]
    simulator: str
    """Who played the user of this group; empty where nobody was asked."""
    persona: str
    num_policy_tokens: int
    oldest_version: int
    newest_version: int
    duration_s: float
    policy_s: float
    """Summed over turns: seconds waited for the engine."""
    env_s: float
    user_retries: int
    gauges: GaugeCounts = NO_COUNTS
    """What the simulator gauges count in the group's dialogues."""


NO_COMPLETION = Completion(token_ids=(), logprobs=(), policy_versions=())
