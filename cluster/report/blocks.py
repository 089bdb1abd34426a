"""Data embedded in a report page: the numbers of all charts and as many dialogues as fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.report.charts import Chart
from cluster.report.dialogue_texts import choose, read_dialogues
from cluster.report.json_blocks import fitting, pack, size_of
from cluster.report.run_rows import RunRows
from cluster.report.token_blocks import token_blocks

MOST_DIALOGUES = 10_000
FOR_TOKENS = 0.25
"""Share of the room for dialogues that texts leave to tokens."""
PER_BLOCK = 100
"""Dialogues in one block: unpacked together when one of them is opened."""
PREVIEW = 100
"""Letters of a dialogue's opening in the list."""
NAMED = ("run", "stage", "gym", "simulator", "persona", "stop", "outcome")
"""Columns of the index with few values: `{"values": [...], "codes": [...]}`."""
PLAIN = ("step", "score", "reward", "task")


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """What a page carries of the dialogues."""

    packed: dict[str, str]
    """By name: `index`, `texts-0`, `texts-1`, ..., `words`, `tokens-0`, ..."""
    num_dialogues: int
    num_with_tokens: int


def chart_block(charts: Sequence[Chart]) -> str:
    """All charts' numbers as they are, by key: what the page tells of a picture."""
    return pack(
        {
            chart.key: {
                "title": chart.title,
                "share": chart.share,
                "unit": chart.unit,
                "series": [
                    {
                        "name": series.name,
                        "x": list(series.x),
                        "y": _numbers(series.y),
                        "low": _numbers(series.low),
                        "high": _numbers(series.high),
                        "labels": list(series.labels),
                    }
                    for series in chart.shown
                ],
            }
            for chart in charts
        }
    )


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def dialogue_blocks(runs: Sequence[RunRows], *, room: int) -> Blocks:
    """Dialogues in at most `room` bytes: all of them with all their tokens, or an even sample of the groups,
    or tokens for a part of it."""
    chosen, names = choose(runs, most=MOST_DIALOGUES), [run.name for run in runs]
    dialogues = read_dialogues(chosen)
    texts = _text_blocks(dialogues, names=names)
    while (size := size_of(texts)) > room * (1 - FOR_TOKENS) and chosen:
        chosen = chosen[: fitting(len(chosen), size=size, room=room * (1 - FOR_TOKENS))]
        dialogues = read_dialogues(chosen)
        texts = _text_blocks(dialogues, names=names)
    tokens = token_blocks(runs, dialogues, per_block=PER_BLOCK, room=room - size_of(texts))
    return Blocks(
        packed=texts | tokens.packed, num_dialogues=len(dialogues), num_with_tokens=tokens.num_dialogues
    )


def _text_blocks(dialogues: Sequence[dict[str, Any]], *, names: Sequence[str]) -> dict[str, str]:
    """The index and the texts, `PER_BLOCK` dialogues a block."""
    groups: dict[Any, int] = {}
    index: dict[str, Any] = {"perBlock": PER_BLOCK, "runs": list(names)}
    for name in NAMED:
        values = list(dict.fromkeys(dialogue[name] for dialogue in dialogues))
        codes = {value: code for code, value in enumerate(values)}
        index[name] = {"values": values, "codes": [codes[dialogue[name]] for dialogue in dialogues]}
    index["run"]["values"] = [names[number] for number in index["run"]["values"]]
    for name in PLAIN:
        index[name] = [dialogue[name] for dialogue in dialogues]
    index["turns"] = [len(dialogue["turns"]) for dialogue in dialogues]
    index["trajectory"] = [dialogue["place"][2] for dialogue in dialogues]
    index["group"] = [
        groups.setdefault((dialogue["run"], *dialogue["place"][:2]), len(groups)) for dialogue in dialogues
    ]
    index["opening"] = [dialogue["opening"][:PREVIEW] for dialogue in dialogues]
    packed = {"index": pack(index)}
    for number, first in enumerate(range(0, len(dialogues), PER_BLOCK)):
        part = dialogues[first : first + PER_BLOCK]
        systems = list(dict.fromkeys(dialogue["system"] for dialogue in part))
        packed[f"texts-{number}"] = pack(
            {
                "systems": systems,
                "dialogues": [
                    {
                        "system": systems.index(dialogue["system"]),
                        "source": _source(dialogue),
                        **{key: dialogue[key] for key in ("opening", "gold", "error", "turns")},
                    }
                    for dialogue in part
                ],
            }
        )
    return packed


def _source(dialogue: dict[str, Any]) -> str:
    """Where a dialogue lies on disk. Example: `step-00021.parquet rows 376–378`, counted from 0."""
    first, end = dialogue["rows"]
    return f"{dialogue['place'][0]} rows {first}–{end - 1}"
