"""Sampled tokens embedded in a report page: ids, logprobs, policy versions, and the texts of the ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cluster.report.dialogue_texts import read_tokens
from cluster.report.json_blocks import fitting, pack, size_of
from cluster.report.run_rows import RunRows

MOST_TOKENS = 2_000_000
"""That are read; more have no room in any page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBlocks:
    """Blocks `tokens-0`, ... parallel to those of the texts, None for dialogues without tokens; and `words`:
    by run the text of each id, none where the run folder has no tokenizer."""

    packed: dict[str, str]
    num_dialogues: int
    """Dialogues that have their tokens."""


def token_blocks(
    runs: Sequence[RunRows], dialogues: Sequence[dict[str, Any]], *, per_block: int, room: int
) -> TokenBlocks:
    """The tokens of as many whole groups as fit, the earliest drawn first."""
    by_rank = sorted(range(len(dialogues)), key=lambda place: dialogues[place]["rank"])
    wanted, num_tokens = [], 0
    for place in by_rank:
        num_tokens += dialogues[place]["num_tokens"]
        if num_tokens > MOST_TOKENS:
            break
        wanted.append(place)
    tokens = _read(runs, dialogues, wanted)
    words = _words(runs, dialogues, tokens)
    while wanted:
        packed = {"words": pack(words)}
        for number, first in enumerate(range(0, len(dialogues), per_block)):
            places = range(first, min(first + per_block, len(dialogues)))
            packed[f"tokens-{number}"] = pack([tokens.get(place) for place in places])
        if (size := size_of(packed)) <= room:
            return TokenBlocks(packed=packed, num_dialogues=len(wanted))
        wanted = wanted[: fitting(len(wanted), size=size, room=room)]
        tokens = {place: tokens[place] for place in wanted}
    return TokenBlocks(packed={}, num_dialogues=0)


def _read(
    runs: Sequence[RunRows], dialogues: Sequence[dict[str, Any]], wanted: Sequence[int]
) -> dict[int, list[dict[str, Any]]]:
    """By a dialogue's place among `dialogues`, its turns' tokens."""
    by_file: dict[tuple[int, str], list[int]] = {}
    for place in sorted(wanted):
        by_file.setdefault((dialogues[place]["run"], dialogues[place]["place"][0]), []).append(place)
    found: dict[int, list[dict[str, Any]]] = {}
    for (run, name), places in by_file.items():
        spans = [dialogues[place]["rows"] for place in places]
        path = runs[run].folder.trajectories / name
        found |= dict(zip(places, read_tokens(path, spans), strict=True))
    return found


def _words(
    runs: Sequence[RunRows],
    dialogues: Sequence[dict[str, Any]],
    tokens: dict[int, list[dict[str, Any]]],
) -> list[dict[str, str]]:  # [num_runs]
    used: list[set[int]] = [set() for _ in runs]
    for place, turns in tokens.items():
        for turn in turns:
            used[dialogues[place]["run"]].update(turn["ids"])
    return [_words_of(run, ids) for run, ids in zip(runs, used, strict=True)]


def _words_of(run: RunRows, ids: set[int]) -> dict[str, str]:
    """Each id as its tokenizer writes it alone."""
    named = run.config.policy.path if run.config else None
    folders = [run.folder.model, run.folder.policy, run.folder.best_model, *([Path(named)] if named else [])]
    file = next((file for folder in folders if (file := folder / "tokenizer.json").exists()), None)
    if file is None:
        return {}
    tokenizer = Tokenizer.from_file(str(file))
    return {str(token): tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids)}
