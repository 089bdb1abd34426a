"""Check of a model folder's files without loading them: context length, vocabulary, quantisation, and weights
that are missing or incomplete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config.recipe import BadInput
from cluster.preflight.chat_template import read_json

WEIGHTS = ("*.safetensors", "*.bin")
LFS_POINTER = b"version https://git-lfs"
SCALED_ROPES = ("linear", "dynamic", "yarn")
"""Kinds of rotary embeddings whose factor multiplies the original context length. The others' positions are
counted in `max_position_embeddings` already."""


def check_model_folder(folder: Path, *, key: str, max_model_len: int | None) -> None:
    """Raises `BadInput`, one line, if the model cannot be loaded, or trained. `max_model_len` is that of the
    engine; None: the model is not trained."""
    config = read_json(folder / "config.json")
    text = config.get("text_config") or config
    where = f"{key}={str(folder)!r}"
    if max_model_len is not None and "quantization_config" in config:
        raise BadInput(f"{where}: quantised weights cannot be trained: take the model that is not quantised")
    longest = longest_context(text)
    if max_model_len is not None and longest is not None and max_model_len > longest:
        raise BadInput(
            f"engine.max_model_len={max_model_len}: the model of {where} takes {longest} tokens: give at "
            f"most {longest}"
        )
    num_tokens, num_rows = _num_tokens(folder), text.get("vocab_size")
    if num_rows is not None and num_tokens > num_rows:
        raise BadInput(
            f"{where}: its tokenizer has {num_tokens} tokens and its embedding {num_rows} rows: take the "
            "tokenizer of this model, or enlarge the embedding"
        )
    _check_weights(folder, where=where)


def longest_context(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model's positions reach; None if its config does not say."""
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions is None:
        return None
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in SCALED_ROPES:
        return int(positions)
    original = rope.get("original_max_position_embeddings", positions)
    return max(int(positions), int(original * rope.get("factor", 1.0)))


def _num_tokens(folder: Path) -> int:
    """Ids that the tokenizer can give; 0 if it is not in tokenizer.json."""
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab", ())
    added = [token["id"] + 1 for token in tokenizer.get("added_tokens", ())]
    return max([len(vocabulary), *added])


def _check_weights(folder: Path, *, where: str) -> None:
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        raise BadInput(f"{where}: no weights there (*.safetensors): copy the model folder again")
    for file in files:
        with file.open("rb") as content:
            head = content.read(len(LFS_POINTER))
        if head == LFS_POINTER:
            raise BadInput(f"{file}: a pointer of Git LFS, not the weights: run `git lfs pull` in the folder")
        header = int.from_bytes(head[:8], "little")
        if file.suffix == ".safetensors" and 8 + header > file.stat().st_size:
            raise BadInput(f"{file}: cut off: copy the model folder again")
