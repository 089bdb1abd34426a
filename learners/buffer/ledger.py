"""Ledger of all trajectories that were ever ordered: issued = trained + dropped (by reason) + in flight.
Counts trajectories, knows no tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

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

    @classmethod
    def of(cls, outcomes: Mapping[str, int], *, issued: int, in_flight: int) -> "Ledger":
        """From the counts of "trained" and of drop reasons. Raises AssertionError if they do not balance,
        which is always a bug."""
        dropped = {reason: outcomes.get(reason, 0) for reason in LEDGER_REASONS}
        ledger = cls(issued=issued, trained=outcomes.get(TRAINED, 0), dropped=dropped, in_flight=in_flight)
        assert ledger.closes(), f"the ledger does not balance: {ledger}"
        return ledger

    def closes(self) -> bool:
        return self.issued == self.trained + sum(self.dropped.values()) + self.in_flight

    def metrics(self) -> dict[str, float]:
        """The fixed keys `ledger/issued`, `ledger/trained`, `ledger/dropped/<reason>`, `ledger/in_flight`."""
        dropped = {f"ledger/dropped/{reason}": float(count) for reason, count in self.dropped.items()}
        counts = {"ledger/issued": float(self.issued), "ledger/trained": float(self.trained)}
        return {**counts, **dropped, "ledger/in_flight": float(self.in_flight)}
