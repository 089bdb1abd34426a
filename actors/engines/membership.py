"""The engines of a run at one moment, as whoever samples from them needs to know them."""

from dataclasses import dataclass

from ray.actor import ActorHandle


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSet:
    """The engines that serve. A later set takes the place of an earlier one, whichever comes first."""

    version: int
    """Grows with every change."""
    engines: tuple[ActorHandle, ...]  # [num_engines]
    """Each has the live weights. Empty while the only one is being replaced."""
    places: float
    """Sequences that they compute at once for one rollout actor; inf where nobody knows."""
