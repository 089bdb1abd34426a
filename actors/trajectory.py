"""Records of the acting side: completions, turns, trajectories, groups. Immutable."""

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
    """The environment ended the dialogue."""
    MAX_TURNS = "max_turns"
    NO_TOOL_CALL = "no_tool_call"
    """The completion has no valid tool call: the policy stopped acting."""
    MAX_TOKENS = "max_tokens"
    """The next turn might not fit the context."""
    SIMULATOR_ERROR = "simulator_error"
    SIMULATOR_TIMEOUT = "simulator_timeout"
    EMPTY_REPLY = "empty_reply"
    ROLE_FLIP = "role_flip"
    INVALID_VERDICT = "invalid_verdict"
    USER_LEFT = "user_left"
    OUT_OF_BUDGET = "out_of_budget"
    """These seven are failures of the simulated user: `simulators.user.Failure`."""
    ENGINE_ERROR = "engine_error"
    ERROR = "error"
    """The environment raised."""
    TIME_LIMIT = "time_limit"
    """It took longer than `rollout.dialogue_timeout_s` and was stopped; its complete turns are kept."""
    SURPLUS = "surplus"
    """Its group had enough trajectories without it (`rollout.extra_dialogues`): stopped, as above."""

    @property
    def failed(self) -> bool:
        """Whether a failure or an early stop ended it, not the policy: never scored and never trained."""
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
    """The ids as the records keep them: an array, so that no token is a Python object in transport."""
    return np.asarray(token_ids, np.int32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """The tokens that an engine sampled in one call, kept as sampled, never tokenised again.

    Example: `Completion.of([812, 57, 2], logprobs=[-0.5, -0.1, -0.2], policy_versions=[6, 6, 7])`, whose last
    token was sampled after new weights had arrived.
    """

    token_ids: TokenIds
    logprobs: Float32[np.ndarray, "num_tokens"]
    """Behavior logprobs (natural log, of the distribution sampled from, before top-k or top-p)."""
    policy_versions: Int32[np.ndarray, "num_tokens"]
    """The policy version that sampled each token."""

    @classmethod
    def of(
        cls, token_ids: Sequence[int], *, logprobs: Sequence[float], policy_versions: Sequence[int]
    ) -> "Completion":
        """From Python lists."""
        return cls(
            token_ids=as_ids(token_ids),
            logprobs=np.asarray(logprobs, np.float32),
            policy_versions=np.asarray(policy_versions, np.int32),
        )

    @classmethod
    def scripted(cls, token_ids: Sequence[int] | TokenIds) -> "Completion":
        """Of tokens that no policy sampled: logprobs and versions are zero."""
        zeros = np.zeros(len(token_ids), np.int32)
        return cls(token_ids=as_ids(token_ids), logprobs=zeros.astype(np.float32), policy_versions=zeros)

    queue_s: float = 0.0
    """Seconds of waiting in which no engine computed it; 0 if the engine does not measure it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turn:
    """One policy completion and the environment's reply to it.

    Example: `Turn(context_ids=as_ids([1, 812]), forked=True, completion=Completion.of([57, 2],
    logprobs=[-0.5, -0.1], policy_versions=[6, 6]), text='<tool_call>{...}</tool_call>',
    action=Action(choice="action", content="Is it red?"), feedback="No.", reward=0.0, policy_s=0.4,
    user_s=1.2)`."""

    context_ids: TokenIds
    """Tokens between the last completion and this one (the whole prompt if `forked`)."""
    forked: bool
    """Whether a new sample starts: on the first turn, and if the chat template changed earlier tokens."""
    completion: Completion
    text: str
    """The completion's text."""
    action: Action | None
    """The parsed tool call; None if there is no valid one."""
    feedback: str
    """The environment's reply; empty if the dialogue ended before one."""
    reward: float
    """Environment reward of this turn."""
    progress: float = 0.0
    """The gym's progress after this turn, in [0, 1]."""
    news: str = ""
    """The information in the feedback, as a key of its gym; empty: the feedback's own text."""
    user_reply: UserReply | None = None
    """The user's reply behind the feedback; None if no user was asked."""
    policy_s: float = 0.0
    """Seconds in which an engine computed the completion, prompt included, in a batch with others."""
    queue_s: float = 0.0
    """Seconds of waiting for the engine: its queue, weights being received, transport."""
    user_s: float = 0.0
    """Seconds of waiting for the simulated user, its queues and retries included."""
    tool_s: float = 0.0
    """Seconds of the environment's own work: rules, tools, searches."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """One finished episode.

    Example: `Trajectory(task_key=TaskKey(gym="telepathy", split="train", index=3, seed=0, difficulty=1),
    system="Find the card ...", opening="Ask me.", turns=[turn], stop_reason=StopReason.MAX_TURNS)`.
    """

    task_key: TaskKey
    system: str
    opening: str
    turns: Sequence[Turn]  # [num_turns]
    stop_reason: StopReason
    error: str = ""
    """The failure's text if `stop_reason.failed`. In the table also why a trajectory has no reward."""
    persona: str = "plain"
    """The name of the user's `Persona`."""
    simulator: str = ""
    """The simulator that played the user; empty if none was asked."""
    gauges: GaugeCounts = NO_COUNTS
    """Counts of the user's quality metrics in this dialogue."""
    gold: Sequence[Action] = ()
    """The calls that solve the task; empty if its gym knows none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupOrder:
    """An order to play one group: `num_dialogues` dialogues of one task.

    Example: `GroupOrder(group_id=12, task_key=key, group_size=8, seed=0, num_extra=2)`.
    """

    group_id: int
    task_key: TaskKey
    group_size: int
    """Trajectories wanted."""
    seed: int
    """Run seed; sampling seeds derive from (seed, group_id, trajectory index, turn index)."""
    num_extra: int = 0
    """Dialogues beyond `group_size`: once `group_size` have ended by themselves, the rest is stopped."""
    num_completed_turns: int = 0
    """Turns of its dialogues that an earlier actor has completed; the work source has them."""

    @property
    def num_dialogues(self) -> int:
        """Trajectories of the finished group, including failed and stopped ones."""
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
