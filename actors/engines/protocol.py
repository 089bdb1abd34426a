"""Protocol of policy engines: token ids in, a sampled completion out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.trajectory import Completion, TokenIds
from simulators.message import Message


class EngineError(Exception):
    """The engine returned no usable completion. It ends the trajectory as a failure and never becomes a
    reward."""


class EngineGoneError(EngineError):
    """The engine will serve nothing any more; another one may, or its replacement."""


class RequestError(EngineError):
    """The request itself is at fault, and every engine would refuse it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Sampling settings."""

    temperature: float = 1.0
    max_completion_tokens: int = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A request for one turn's completion.

    Example: `CompletionRequest(token_ids=as_ids([1, 8, 2]), messages=dialogue.messages, sampling=Sampling(),
    seed=17, dialogue=16)`.
    """

    token_ids: TokenIds
    """The prompt."""
    messages: Sequence[Message]
    """The same dialogue as messages, for scripted policies; a model's engine reads only the ids."""
    sampling: Sampling
    seed: int
    dialogue: int | None = None
    """A number that all turns of a dialogue share, so that they can go to the engine that has the earlier
    ones cached. None: a single request."""


class PolicyEngine(Protocol):
    """Samples completions from a policy: a model, or a script."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion, its stop token included. Raises `EngineError`."""
        ...
