"""The ledger: where every trajectory that was ever ordered has gone. Counts trajectories, knows no tokens."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.trajectory import GroupSummary

TRAINED = "trained"
DROP_REASONS: tuple[str, ...] = ("flat", "failed", "too_few", "stale")
"""flat: all usable rewards of the group are equal, so there is no gradient. failed: not the policy's doing.
too_few: fewer than two members of the group are usable. stale: older than allowed when a step wanted it."""
FLAT_TOLERANCE = 1e-6
"""Rewards are sums of floats: a spread below this is rounding, and dividing by its std would blow it up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """issued = trained + sum(dropped) + in_flight, in trajectories, at any moment."""

    issued: int
    trained: int
    dropped: Mapping[str, int]
    """By reason; every known reason is present."""
    in_flight: int
    """Ordered, and neither trained nor dropped yet: being generated, in the buffer, or in a running step."""

    def closes(self) -> bool:
        return self.issued == self.trained + sum(self.dropped.values()) + self.in_flight

    def metrics(self) -> dict[str, float]:
        """The fixed keys `ledger/issued`, `ledger/trained`, `ledger/dropped/<reason>`, `ledger/in_flight`."""
        dropped = {f"ledger/dropped/{reason}": float(count) for reason, count in self.dropped.items()}
        counts = {"ledger/issued": float(self.issued), "ledger/trained": float(self.trained)}
        return {**counts, **dropped, "ledger/in_flight": float(self.in_flight)}


class LedgerCounts:
    """The ledger's running counts; `in_flight` is counted apart from them, by whoever holds the orders."""

    def __init__(self, *, issued: int = 0, settled: Mapping[str, int] | None = None):
        self.issued = issued
        self._settled = Counter(settled or {})

    def settle(self, outcomes: Sequence[str]) -> None:
        """Books one group: `outcomes` holds "trained" or a drop reason for each of its trajectories."""
        self._settled.update(outcomes)

    def ledger(self, *, in_flight: int) -> Ledger:
        """Raises AssertionError where the books do not close: that is always our own mistake."""
        dropped = {reason: self._settled[reason] for reason in DROP_REASONS}
        ledger = Ledger(
            issued=self.issued, trained=self._settled[TRAINED], dropped=dropped, in_flight=in_flight
        )
        assert ledger.closes(), f"the ledger does not close: {ledger}"
        return ledger

    def state(self) -> dict[str, int | dict[str, int]]:
        """JSON; `LedgerCounts(**state)` makes it again."""
        return {"issued": self.issued, "settled": dict(self._settled)}


def usable_trajectories(summary: GroupSummary) -> tuple[int, ...]:
    """Indexes of the trajectories that may be trained: not failed, and with a finite reward."""
    pairs = zip(summary.stop_reasons, summary.rewards, strict=True)
    return tuple(
        index for index, (reason, reward) in enumerate(pairs) if not reason.failed and math.isfinite(reward)
    )


def drop_reason(summary: GroupSummary) -> str | None:
    """Why a group as a whole cannot be trained, its age aside; None where it can."""
    rewards = [summary.rewards[index] for index in usable_trajectories(summary)]
    if len(rewards) < 2:
        return "too_few"
    return "flat" if max(rewards) - min(rewards) <= FLAT_TOLERANCE else None


def outcomes_of(summary: GroupSummary, outcome: str) -> tuple[str, ...]:
    """One outcome for each trajectory [group_size]: `outcome` where it is usable, "failed" where not."""
    usable = set(usable_trajectories(summary))
    return tuple(outcome if index in usable else "failed" for index in range(len(summary.rewards)))
