"""JSON form of group orders and summaries in the headers of the write-ahead log."""

from collections.abc import Mapping
from typing import Any

from actors.trajectory import GroupOrder, GroupSummary, StopReason
from simulators.task import TaskKey
from simulators.users.quality_metrics import GaugeCounts


def order_of(saved: Mapping[str, Any]) -> GroupOrder:
    """An order from its fields."""
    return GroupOrder(**{**saved, "task_key": TaskKey(**saved["task_key"])})


def summary_of(saved: Mapping[str, Any]) -> GroupSummary:
    """A summary from its fields."""
    return GroupSummary(
        **{
            **saved,
            "task_key": TaskKey(**saved["task_key"]),
            "stop_reasons": [StopReason(reason) for reason in saved["stop_reasons"]],
            "gauges": GaugeCounts(**saved["gauges"]),
        }
    )
