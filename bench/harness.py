"""Harness of every part of the benchmark: its command line, and interleaved runs of what it compares."""

import argparse
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.result_rows import Row, markdown

RUNS = 5


def interleaved(cases: Mapping[str, Callable[[], float]], *, runs: int = RUNS) -> dict[str, list[float]]:
    """Each case `runs` times, taking turns, after one run of each that does not count: what slows the machine
    for a while slows all of them."""
    values: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(runs + 1):
        for name, measure in cases.items():
            gc.collect()
            value = measure()
            if turn:
                values[name].append(value)
    return values


def compare(
    values: Mapping[str, Sequence[float]], *, bench: str, metric: str, unit: str, ratio_to: str, ours: str
) -> list[Row]:
    """A row a case; ours with its ratio, the median of the ratios run by run. More must be better."""
    ratios = [mine / other for mine, other in zip(values[ours], values[ratio_to], strict=True)]
    return [
        Row(
            bench=bench,
            case=case,
            metric=metric,
            value=median(numbers),
            unit=unit,
            runs=len(numbers),
            ratio_to=ratio_to if case == ours else "",
            ratio=median(ratios) if case == ours else None,
        )
        for case, numbers in values.items()
    ]


def run(measure: Callable[[bool], list[Row]], *, doc: str | None) -> int:
    """A part's main: prints its rows and leaves them for whoever called."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument("--out", type=Path, help="where to write the rows as JSON")
    arguments = parser.parse_args()
    rows = measure(arguments.quick)
    print(markdown(rows))
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(row) for row in rows]))
    return 0
