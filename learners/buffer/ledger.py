"""Ledger of all trajectories that were ever ordered: issued = trained + dropped (by reason) + in flight.
Counts trajectories, knows no tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from learners.drop_reasons import LEDGER_REASONS

TRAINED = "trained"


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
    """The ledger's running counts, without `in_flight`, which the caller knows."""

    def __init__(self) -> None:
        self.issued = 0
        self._outcomes = Counter[str]()

    def count(self, outcomes: Sequence[str]) -> None:
        """Counts one group: "trained" or a drop reason for each of its trajectories."""
        self._outcomes.update(outcomes)

    def ledger(self, *, in_flight: int) -> Ledger:
        """Raises AssertionError if the ledger does not balance, which is always a bug."""
        dropped = {reason: self._outcomes[reason] for reason in LEDGER_REASONS}
        ledger = Ledger(
            issued=self.issued, trained=self._outcomes[TRAINED], dropped=dropped, in_flight=in_flight
        )
        assert ledger.closes(), f"the ledger does not balance: {ledger}"
        return ledger

    def state(self) -> dict[str, Any]:
        """JSON for `from_state`."""
        return {"issued": self.issued, "settled": dict(self._outcomes)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        counts = cls()
        counts.issued, counts._outcomes = state["issued"], Counter(state["settled"])
        return counts
