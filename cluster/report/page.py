"""Rendering of run folders to one self-contained HTML page: styles, scripts, pictures, numbers, dialogues."""

import base64
import hashlib
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cluster.report.blocks import chart_block, dialogue_blocks
from cluster.report.chart_list import ChartSection, sections
from cluster.report.charts import DASHES, NUM_COLOURS, Chart, Series, draw
from cluster.report.run_rows import RunRows, read_runs
from cluster.report.tables import differences, evaluation_tables, facts, number, runs_table

PARTS = Path(__file__).parent / "page"
SCRIPTS = ("data.js", "charts.js", "dialogue.js", "browser.js", "live.js")
MOST_BYTES = 9_500_000
"""Of a page."""
NUM_TRIES = 5
"""Retries after a running run deleted files between listing and reading them."""
HERO = "reward"
"""The section that is drawn a second time for wide screens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A finished page."""

    html: str
    num_dialogues: int
    """In the page."""
    num_on_disk: int


def page_of(paths: Sequence[Path], *, version: str = "") -> Page:
    """The page of the runs in these folders, which may be running. Raises FileNotFoundError if files are
    deleted faster than they can be read."""
    for _ in range(NUM_TRIES - 1):
        with suppress(FileNotFoundError):
            return render(read_runs(paths), version=version)
    return render(read_runs(paths), version=version)


def render(runs: Sequence[RunRows], *, version: str = "") -> Page:
    """The page of one run, or of several that are compared. With a `version` it follows its server's."""
    shown = sections(runs)
    script = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(PARTS), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("page.html")
    blocks = {"charts": chart_block([chart for section in shown for chart in section.charts])}
    fixed = {
        "title": _title(runs),
        "state": " · ".join(map(_state, runs)),
        "version": version,
        "style": Markup((PARTS / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "sections": shown,
        "pictures": ChartPictures(shown),
        "runs": runs,
        "facts": facts(runs[0]) if len(runs) == 1 else [],
        "runs_table": runs_table(runs),
        "tables": evaluation_tables(runs),
        "differences": differences(runs),
        "made": f"Made by userrl report on {time.strftime('%Y-%m-%d %H:%M')}.",
    }
    bare = len(template.render(fixed, blocks=blocks, shown="").encode())
    dialogues = dialogue_blocks(runs, room=MOST_BYTES - bare)
    num_on_disk = sum(run.num_dialogues for run in runs)
    told = _coverage(dialogues.num_dialogues, num_on_disk=num_on_disk, with_tokens=dialogues.num_with_tokens)
    html = template.render(fixed, blocks=blocks | dialogues.packed, shown=told)
    return Page(html=html, num_dialogues=dialogues.num_dialogues, num_on_disk=num_on_disk)


def _title(runs: Sequence[RunRows]) -> str:
    return f"Run {runs[0].name}" if len(runs) == 1 else "Runs " + ", ".join(run.name for run in runs)


def _state(run: RunRows) -> str:
    """How far a run has come, and when it last said so."""
    if not len(run.steps):
        return f"{run.name}: no step yet"
    last = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.folder.metrics.stat().st_mtime))
    of = f" of {run.config.grpo.num_steps}" if run.config else ""
    return f"{run.name}: step {run.steps[-1]}{of}, written {last}"


def _coverage(num_dialogues: int, *, num_on_disk: int, with_tokens: int) -> str:
    """How many of the dialogues on disk are in the page."""
    if not num_on_disk:
        return "No dialogue is on disk yet."
    words = f"All {num_on_disk:,} dialogues on disk."
    if num_dialogues < num_on_disk:
        words = (
            f"{num_dialogues:,} of {num_on_disk:,} dialogues on disk: whole groups, drawn evenly. "
            "All numbers above are of all of them."
        )
    if num_dialogues and with_tokens < num_dialogues:
        words += f" Sampled tokens of {with_tokens:,}."
    return words


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartPicture:
    name: str
    """narrow or wide."""
    svg: Markup


class ChartPictures:
    """What the template asks of charts, each drawn once."""

    def __init__(self, shown: Sequence[ChartSection]):
        self._drawn = {
            chart.key: _drawn(chart, twice=section.key == HERO)
            for section in shown
            for chart in section.charts
        }

    def of(self, chart: Chart) -> list[ChartPicture]:
        return self._drawn[chart.key]

    def key_of(self, series: Series, chart: Chart) -> Markup:
        """The sign of a series in the legend."""
        colour = f"var(--s{series.look % NUM_COLOURS})"
        if chart.stacked:
            return Markup(f'<rect x="3" y="0" width="14" height="10" fill="{colour}"/>')
        if series.kind == "scores":
            return Markup(f'<path d="M10 0l5 5-5 5-5-5z" fill="{colour}"/>')
        if series.kind == "dots":
            return Markup(f'<circle cx="10" cy="5" r="2.5" fill="{colour}" opacity="0.6"/>')
        dash = DASHES[series.look // NUM_COLOURS % len(DASHES)]
        pattern = "" if isinstance(dash, str) else " ".join(f"{2 * length:g}" for length in dash[1])
        return Markup(
            f'<path d="M0 5h20" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{pattern}"/>'
        )

    def first(self, chart: Chart) -> str:
        return f"{min(x for series in chart.shown for x in series.x):g}"

    def last(self, chart: Chart) -> str:
        """The last step that has more than an evaluation, where there is one."""
        lines = [series for series in chart.shown if series.kind != "scores"] or chart.shown
        return f"{max(x for series in lines for x in series.x):g}"

    def words(self, chart: Chart) -> str:
        """Where each series begins and ends."""
        parts = []
        for series in chart.shown:
            known = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
            if len(known) > 1:
                parts.append(f"{series.name} {_said(known[0][1], chart)} → {_said(known[-1][1], chart)}")
            else:
                parts.append(f"{series.name} {_said(known[0][1], chart)}")
        return " · ".join(parts)


def _drawn(chart: Chart, *, twice: bool) -> list[ChartPicture]:
    """For any screen, and before it for wide ones."""
    narrow = ChartPicture(name="narrow", svg=Markup(draw(chart)))
    if not twice:
        return [narrow]
    return [
        ChartPicture(name="wide", svg=Markup(draw(chart, width=900.0, height=270.0, prefix="w-"))),
        narrow,
    ]


def _said(value: float, chart: Chart) -> str:
    return f"{value:.1%}" if chart.share else number(value)
