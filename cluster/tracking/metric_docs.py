"""Generator of the tables in docs/metrics.md: `python -m cluster.tracking.metric_docs`."""

import sys
from pathlib import Path

from cluster.tracking.metric_catalogue import EXPORTED, SECTIONS, Metric

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"
HEADINGS = {
    "train": "Learners and the policy",
    "rollout": "Rollouts",
    "users": "Simulated users",
    "time": "Time",
    "ledger": "Ledger, buffer and faults",
    "eval": "Evaluations",
}
"""Heading of each section."""


def tables() -> str:
    """One table per section, each under a heading."""
    parts: list[str] = []
    for section in SECTIONS:
        lines = [_line(metric) for metric in EXPORTED if metric.section == section]
        head = ["| key | at the endpoint | unit | meaning |", "|---|---|---|---|"]
        parts.append("\n".join([f"### {HEADINGS[section]}", "", *head, *lines, ""]))
    return "\n".join(parts)


def _line(metric: Metric) -> str:
    labels = "".join(f", {label}" for label in metric.labels)
    key = metric.key.replace("{", "<").replace("}", ">")
    return f"| `{key}` | `{metric.series}` run{labels} | {metric.unit or 'number'} | {metric.meaning} |"


def with_tables(page: str) -> str:
    """The page with the catalogue's tables between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> int:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
