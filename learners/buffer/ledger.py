"""Ledger of all trajectories that were ever ordered: issued = trained + dropped (by reason) + in flight.
Counts trajectories, knows no tokens."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.trajectory import GroupSummary
from learners.drop_reasons import CUTS

IsFlat = Callable[[GroupSummary], bool]
"""Whether a group has no advantages: `learners.buffer.zero_advantage.is_flat` with the run's rules."""
TRAINED = "trained"
DROP_REASONS: tuple[str, ...] = (
    *("flat", "failed", "cut", "surplus"),
    *("unscored", "no_tokens", "too_few", "stale"),
)
"""flat: the gym's estimator gives no usable token an advantage, so there is no gradient. failed: not the
policy's doing. cut: longer than a dialogue may take. surplus: begun beyond the group's size, and not needed.
unscored: no finite reward, as where a judge gave no rating. no_tokens: the policy said nothing. too_few:
fewer than two members of the group are usable. stale: older than allowed when a step wanted it."""


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
    """Indexes of the trajectories that may be trained: not failed, with a finite reward and a token."""
    return tuple(index for index, reason in enumerate(_unusable(summary)) if not reason)


def _unusable(summary: GroupSummary) -> list[str]:  # [num_dialogues]
    """Why each trajectory cannot be trained, whatever its group is; empty where it can."""
    reasons = []
    for stop_reason, reward, num_tokens in zip(
        summary.stop_reasons, summary.rewards, summary.turn_tokens, strict=True
    ):
        if stop_reason.failed:
            reasons.append(CUTS.get(stop_reason, "failed"))
        elif not math.isfinite(reward):
            reasons.append("unscored")
        else:
            reasons.append("" if sum(num_tokens) else "no_tokens")
    return reasons


def drop_reason(summary: GroupSummary, *, is_flat: IsFlat) -> str | None:
    """Why a group as a whole cannot be trained, its age aside; None where it can."""
    if len(usable_trajectories(summary)) < 2:
        return "too_few"
    return "flat" if is_flat(summary) else None


def outcomes_of(summary: GroupSummary, outcome: str) -> tuple[str, ...]:
    """One outcome for each trajectory [num_dialogues]: `outcome` where it is usable, its reason where not."""
    return tuple(reason or outcome for reason in _unusable(summary))
