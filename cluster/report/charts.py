"""A chart and its SVG, drawn by matplotlib with colours from the page's style sheet, so that one picture fits
light and dark mode. Knows nothing of runs."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

INK, GRID = "#0a0a01", "#0a0a02"
NUM_COLOURS = 8
SERIES = [f"#0a0b{number:02x}" for number in range(NUM_COLOURS)]
PAGE_COLOURS = {INK: "var(--muted)", GRID: "var(--grid)"}
PAGE_COLOURS |= {colour: f"var(--s{number})" for number, colour in enumerate(SERIES)}
"""Placeholder colours, and the CSS variables that replace them in the page."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""Lines of one colour differ in these; the page's legend shows them too."""
SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
LEFT, RIGHT, TOP, BOTTOM = 40.0, 10.0, 8.0, 30.0
"""Margins around the axes, in points."""

SeriesKind = Literal["line", "dots", "scores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One name's numbers over steps, P points."""

    name: str
    x: Sequence[float]  # [P]
    y: Sequence[float]  # [P]
    """NaN where there is nothing to draw."""
    low: Sequence[float] = ()  # [P] or none
    """Ends of a 95 % interval."""
    high: Sequence[float] = ()  # [P] or none
    labels: Sequence[str] = ()  # [P] or none
    """What a point stands for, where its step does not say it."""
    kind: SeriesKind = "line"
    """A line; faint dots; single scores with their intervals."""
    look: int = 0
    """Which colour and dash."""

    @property
    def has_numbers(self) -> bool:
        return any(map(math.isfinite, self.y))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """Series over one axis of steps."""

    key: str
    """Its name in the page: letters, digits and hyphens."""
    title: str
    series: Sequence[Series]
    note: str = ""
    """What the numbers are, for people."""
    unit: str = ""
    stacked: bool = False
    """Series stand on each other; all have the same x."""
    share: bool = False
    """y is a part of 1."""

    @property
    def shown(self) -> list[Series]:
        return [series for series in self.series if series.has_numbers]


def draw(chart: Chart, *, width: float = 340.0, height: float = 190.0, prefix: str = "") -> str:
    """The chart as SVG for a page; sizes in points, of which the page makes what it has room for. `prefix`
    tells its names from those of another picture of the same chart."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "userrl", "font.family": "sans-serif", "font.size": 9.5}
    ):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        box = (LEFT / width, BOTTOM / height, 1 - (LEFT + RIGHT) / width, 1 - (TOP + BOTTOM) / height)
        axes = figure.add_axes(box)
        if chart.stacked:
            _stack(axes, chart.shown)
        else:
            for series in chart.shown:
                _DRAW[series.kind](axes, series)
            _limit(axes, chart)
        _dress(axes, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    low, high = axes.get_xlim()
    return _for_page(buffer.getvalue(), prefix + chart.key, box=box, x=(float(low), float(high)))


def _line(axes: Axes, series: Series) -> None:
    colour = SERIES[series.look % NUM_COLOURS]
    if series.low:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0)
    has_gaps = len(series.x) == 1 or not all(map(math.isfinite, series.y))
    axes.plot(
        series.x,
        series.y,
        color=colour,
        linewidth=1.8,
        linestyle=DASHES[series.look // NUM_COLOURS % len(DASHES)],
        marker="o" if has_gaps else None,  # a value between two gaps is no line
        markersize=2.5,
    )


def _dots(axes: Axes, series: Series) -> None:
    colour = SERIES[series.look % NUM_COLOURS]
    axes.plot(series.x, series.y, color=colour, alpha=0.45, linestyle="", marker="o", markersize=2)


def _scores(axes: Axes, series: Series) -> None:
    colour = SERIES[series.look % NUM_COLOURS]
    y, low, high = (np.asarray(values, float) for values in (series.y, series.low, series.high))
    axes.errorbar(
        series.x, y, yerr=np.maximum(0.0, [y - low, high - y]), color=colour, linestyle="", marker="D",
        markersize=4.5, capsize=2.5, linewidth=1.3, zorder=3,
    )  # fmt: skip


_DRAW = {"line": _line, "dots": _dots, "scores": _scores}


def _stack(axes: Axes, shown: Sequence[Series]) -> None:
    if shown:
        y = np.nan_to_num(np.array([series.y for series in shown], float))
        colours = [SERIES[series.look % NUM_COLOURS] for series in shown]
        axes.stackplot(shown[0].x, y, colors=colours, alpha=0.85, linewidth=0)


def _limit(axes: Axes, chart: Chart) -> None:
    """The means, dots and scores decide the height: bands of few groups are cut."""
    y = np.array([value for series in chart.shown for value in series.y if math.isfinite(value)])
    ends = [v for s in chart.shown if s.kind == "scores" for v in (*s.low, *s.high) if math.isfinite(v)]
    if len(y):
        low, high = min(0.0, y.min(), *ends), max([y.max(), *ends])
        high = high if high > low else low + 1.0
        room = 0.06 * (high - low)
        axes.set_ylim(low - room * (low < 0), high + room)


def _dress(axes: Axes, chart: Chart) -> None:
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GRID, labelcolor=INK, length=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:.0f}" if step >= 0 else ""))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if chart.share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.margins(x=0.02)


def short(value: float) -> str:
    """A number for a tick: three digits and a letter for thousands and millions.

    Example: 0.25 gives `0.25`, 12500 gives `12.5k`.
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _for_page(svg: str, name: str, *, box: tuple[float, ...], x: tuple[float, float]) -> str:
    """The picture as part of an HTML page: hidden from screen readers, which get the numbers; no metadata, no
    names of its own but those it refers to; the page's colours."""
    root = ElementTree.fromstring(svg)
    for child in [child for child in root if child.tag != f"{SVG}g" and child.tag != f"{SVG}defs"]:
        root.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    root.set("data-x", f"{x[0]:.6g} {x[1]:.6g}")
    root.set("data-box", f"{box[0]:.5f} {box[2]:.5f}")
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg))
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")
        if (target := element.attrib.pop(HREF, None)) is not None:
            element.set("href", f"#{name}-{target[1:]}")
        if (clip := element.get("clip-path")) is not None:
            element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))
    for definitions in root.findall("defs"):  # a style sheet that would hold for the whole page
        if definitions.find("style") is not None:
            root.remove(definitions)
    text = re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))
    text = re.sub(r"font-family: [^;\"]+; ", "", text)
    return re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], text)
