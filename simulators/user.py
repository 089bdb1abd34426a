"""Interface of simulated users: `UserCall` (one question with its whole history) in, `UserReply` out.

A user keeps no state between calls, so any replica can answer any call and a retry changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from simulators.message import Choice
from simulators.persona import PLAIN, Persona

RULES = "rules"
"""The name of the rule-based user, in recipes and in rows."""
WEB = "web"
"""Name of the web search in rows; it is not a simulated user."""


class Failure(StrEnum):
    """How a simulated user failed. Each is a stop reason of its own; none counts as a score."""

    ERROR = "simulator_error"
    """It could not be reached, or it raised an exception."""
    TIMEOUT = "simulator_timeout"
    EMPTY_REPLY = "empty_reply"
    ROLE_FLIP = "role_flip"
    """It spoke in the agent's role."""
    INVALID_VERDICT = "invalid_verdict"
    """Its reply does not fit the schema of its role, after all retries."""
    USER_LEFT = "user_left"
    """It ended the conversation without a reason."""
    OUT_OF_BUDGET = "out_of_budget"
    """The run's budget of calls or tokens is spent."""


class SimulatorError(Exception):
    """The simulated user gave no usable reply. The trajectory ends as a failure, which is never a reward."""

    def __init__(self, text: str, failure: Failure = Failure.ERROR, simulator: str = ""):
        super().__init__(text, failure, simulator)  # all arguments, so that it can be pickled
        self.failure = failure
        self.simulator = simulator
        """Name of the simulator that failed; empty if unknown."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class UserCall:
    """One question to a simulated user.

    Example: `UserCall(gym="travel", scenario=task.scenario, question="Which body of car?")`."""

    gym: str
    scenario: Mapping[str, Any]
    """What this user knows and wants, as JSON. The policy never sees it."""
    question: str
    """The policy's text, passed as data."""
    choice: Choice = "action"
    """The policy's action: it speaks to the user, or gives an answer that the user must judge."""
    view: Mapping[str, Any] = field(default_factory=dict)
    """The part of the dialogue's state that the gym lets the user know, as JSON."""
    persona: Persona = PLAIN
    history: tuple[tuple[str, str], ...] = ()
    """Earlier (question, reply) pairs of this dialogue, oldest first."""
    seed: int = 0
    """Determines every random choice of the reply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserReply:
    """The user's text, and its meaning in the gym's terms.

    Example: `UserReply(text="I want pickup.", facts={"part": "car", "slot": "body", "wish": "pickup"})`."""

    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The reply's meaning for the environment, e.g. `{"preference": "cabin"}`. The policy never sees it.
    Empty if the reply carries no information: a persona never puts off such a reply."""
    decoy: str = ""
    """A wrong reply that the person could have given; a persona that changes its mind says it first."""
    simulator: str = RULES
    """Name of the simulator in the recipe that replied."""
    model: str = ""
    """The model behind it; empty for rules and people."""
    prompt_hash: str = ""
    """First 16 hex digits of the SHA-256 of the prompt; empty if there was none."""
    seed: int = 0
    """The sampling seed of the reply."""
    num_tokens: int = 0
    """Prompt and completion tokens of all attempts together."""
    latency_s: float = 0.0
    """Seconds from question to reply, measured by the caller."""
    num_retries: int = 0
    concurrency: int = 0
    """Concurrency limit of this process's share of the simulator at that moment; 0 if there is no limit."""


class User(Protocol):
    """Anything that answers a `UserCall`: rules in process, a Serve replica, a model, a person."""

    async def reply(self, call: UserCall) -> UserReply:
        """Answers, or raises `SimulatorError`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LlmRole:
    """The LLM form of one gym's user: role prompt, JSON schema of verdicts, and the reading of a verdict. All
    functions are pure.

    The model never writes a score. It says which of the gym's own facts the agent's text touches, as
    validated JSON; the gym's rules compute the reply and the reward from that."""

    instructions: Callable[[UserCall], str]
    """The model's role and how to decide, including the scenario. Never the agent's words: those are sent
    separately, as JSON."""
    schema: Callable[[UserCall], dict[str, Any]]
    """JSON schema of the verdict: a flat object of enums, booleans and capped strings."""
    read: Callable[[UserCall, Mapping[str, Any]], UserReply]
    """(call, a verdict that fits the schema) to the reply, with the same `facts` as the rule-based user's."""


def flat_schema(properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of an object with exactly these properties, all of them required."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
