"""Records of the acting side: completions, turns, trajectories, groups. Finished when made."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float32, Int32

from simulators.message import Action
from simulators.task import TaskKey
from simulators.user import UserReply
from simulators.users.quality_metrics import NO_COUNTS, GaugeCounts


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
    TIME_LIMIT = "time_limit"
    """It took longer than `rollout.dialogue_timeout_s`: cut, its complete turns are kept."""
    SURPLUS = "surplus"
    """Its group had enough trajectories without it (`rollout.extra_dialogues`): cut, as above."""

    @property
    def failed(self) -> bool:
        """This end is not the policy's doing, but a failure or a cut: never scored and never trained."""
        return self not in (
            StopReason.TERMINATED,
            StopReason.MAX_TURNS,
            StopReason.NO_TOOL_CALL,
            StopReason.MAX_TOKENS,
        )

    @property
    def truncated(self) -> bool:
        return self in (StopReason.MAX_TURNS, StopReason.MAX_TOKENS)


TokenIds = Int32[np.ndarray, "num_tokens"]


def as_ids(token_ids: Sequence[int] | TokenIds) -> TokenIds:
    """The ids as the records keep them: an array, so that no token is a Python object on its way."""
    return np.asarray(token_ids, np.int32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """What the engine sampled in one call: kept as sampled, never tokenised again."""

    token_ids: TokenIds
    logprobs: Float32[np.ndarray, "num_tokens"]
    """Behavior logprobs (natural log, of the distribution sampled from, before top-k or top-p)."""
    policy_versions: Int32[np.ndarray, "num_tokens"]
    """The policy version that sampled each token."""

    @classmethod
    def of(
        cls, token_ids: Sequence[int], *, logprobs: Sequence[float], policy_versions: Sequence[int]
    ) -> "Completion":
        """From Python lists, as scripts make them."""
        return cls(
            token_ids=as_ids(token_ids),
            logprobs=np.asarray(logprobs, np.float32),
            policy_versions=np.asarray(policy_versions, np.int32),
        )

    @classmethod
    def scripted(cls, token_ids: Sequence[int] | TokenIds) -> "Completion":
        """What no policy sampled: logprobs and versions are zero."""
        zeros = np.zeros(len(token_ids), np.int32)
        return cls(token_ids=as_ids(token_ids), logprobs=zeros.astype(np.float32), policy_versions=zeros)

    queue_s: float = 0.0
    """Seconds of the wait for it in which no engine computed it; 0 where the engine does not say."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turn:
    """One policy completion and the env's reply to it."""

    context_ids: TokenIds
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
    """Seconds in which an engine computed the completion, prompt included; beside others, in a batch."""
    queue_s: float = 0.0
    """Seconds of waiting for the engine: its waiting list, weights being received, the way there and back."""
    user_s: float = 0.0
    """Seconds of waiting for the simulated user: its own waiting lists and retries included."""
    tool_s: float = 0.0
    """Seconds of the environment's own work: rules, tools, searches."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
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
    """Trajectories wanted."""
    seed: int
    """Run seed; sampling seeds derive from (seed, group_id, trajectory index, turn index)."""
    num_extra: int = 0
    """Dialogues begun beyond `group_size`: once that many have ended by themselves, the rest is cut."""
    num_completed_turns: int = 0
    """Turns of its dialogues that an earlier actor has completed; the work source has them."""

    @property
    def num_dialogues(self) -> int:
        """Trajectories that the finished group has, failed and cut ones among them."""
        return self.group_size + self.num_extra


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """The numbers of a finished group that travel without its tokens."""

    group_id: int
    task_key: TaskKey
    rewards: Sequence[float]  # [num_dialogues]
    """Sum of each trajectory's turn rewards, as the learner gets them; NaN where it failed or was cut."""
    scores: Sequence[float]  # [num_dialogues]
    """Sum of each trajectory's environment rewards, in [0, 1]; NaN where it failed. What evaluation
    reports."""
    num_turns: Sequence[int]  # [num_dialogues]
    turn_rewards: Sequence[Sequence[float]]  # [num_dialogues][num_turns]
    """What the learner gets for each turn; NaN where the trajectory failed. As in the table, a trajectory
    without turns has one, of no tokens."""
    turn_tokens: Sequence[Sequence[int]]  # [num_dialogues][num_turns]
    """Completion tokens."""
    turn_states: Sequence[Sequence[int]]  # [num_dialogues][num_turns]
    """What the policy had been told before each turn: equal numbers are equal states of the group."""
    stop_reasons: Sequence[StopReason]  # [num_dialogues]
    simulator: str
    """Who played the user of this group; empty where nobody was asked."""
    persona: str
    num_policy_tokens: int
    oldest_version: int
    """The policy version of the oldest token that can be trained: what the group's age is counted from.
    Tokens of trajectories that failed, were cut or have no reward are as old as they like."""
    newest_version: int
    version_spans: Sequence[int]  # [group_size]
    """Policy versions between the oldest and the newest token of each trajectory."""
    duration_s: float
    policy_s: float
    """This and the next four: seconds summed over all turns, as the table's columns say."""
    queue_s: float
    user_s: float
    tool_s: float
    reward_s: float
    user_retries: int
    user_concurrency: float
    """Mean of `UserReply.concurrency` over the replies that have one; 0 where none has."""
    gauges: GaugeCounts = NO_COUNTS
    """What the simulator gauges count in the group's dialogues."""


NO_COMPLETION = Completion.scripted(())
