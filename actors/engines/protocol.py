"""The engine's protocol: token ids in, a sampled completion out. What stands behind it, a rollout need not
know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.trajectory import Completion, TokenIds
from simulators.message import Message


class EngineError(Exception):
    """The engine gave no usable completion. It ends a trajectory as a failure and never becomes a reward."""


class EngineGoneError(EngineError):
    """The engine will serve nothing any more: another may, or the one that takes its place."""


class RequestError(EngineError):
    """The request itself is at fault, and every engine would refuse it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to sample."""

    temperature: float = 1.0
    max_completion_tokens: int = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """All that is known when a turn begins."""

    token_ids: TokenIds
    """The prompt."""
    messages: Sequence[Message]
    """The same dialogue as messages, for scripted policies; a model's engine reads only the ids."""
    sampling: Sampling
    seed: int
    dialogue: int | None = None
    """Whose turn this is: the same number at every turn, so that all of them can go where the earlier ones
    are cached. None: nobody's."""


class PolicyEngine(Protocol):
    """What samples from a policy: vLLM, or a script."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion, its stop token included. Raises `EngineError`."""
        ...
