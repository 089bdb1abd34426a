"""A model folder that cannot be loaded or trained is refused in one line, before anything starts."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.config.recipe import BadInput
from cluster.preflight.model_folder import check_model_folder, longest_context

CONFIG = {"max_position_embeddings": 512, "vocab_size": 3}
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def weights(missing: int = 0) -> bytes:
    """A safetensors file with an empty header, which is said to have this many bytes more than it has."""
    return struct.pack("<Q", 2 + missing) + b"{}"


def folder_of(
    path: Path, *, config: Mapping[str, Any] = CONFIG, tokenizer: Mapping[str, Any] = TOKENIZER
) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (path / "model.safetensors").write_bytes(weights())
    return path


def refusal(folder: Path, *, max_model_len: int | None = 512) -> str:
    with pytest.raises(BadInput) as refused:
        check_model_folder(folder, key="policy.path", max_model_len=max_model_len)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_whole_folder_passes(tmp_path: Path) -> None:
    check_model_folder(folder_of(tmp_path), key="policy.path", max_model_len=512)


def test_a_context_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert "takes 512 tokens: give at most 512" in refusal(folder, max_model_len=513)
    check_model_folder(folder, key="learner.kl.reference", max_model_len=None)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": YARN}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 2048),
        ({"max_position_embeddings": 2048, "rope_parameters": YARN | {"rope_type": "longrope"}}, 2048),
        ({"max_position_embeddings": 512, "rope_scaling": YARN}, 2048),
        ({"max_position_embeddings": 4096, "rope_scaling": YARN}, 4096),
    ],
)
def test_the_context_length_counts_scaled_positions(config: dict[str, Any], longest: int | None) -> None:
    assert longest_context(config) == longest


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tokenizer=TOKENIZER | {"added_tokens": [{"id": 3, "content": "<end>"}]})
    assert "its tokenizer has 4 tokens and its embedding 3 rows" in refusal(folder)


def test_quantised_weights_are_refused_for_training(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config=CONFIG | {"quantization_config": {"quant_method": "gptq"}})
    assert "quantised weights cannot be trained" in refusal(folder)
    check_model_folder(folder, key="--policy", max_model_len=None)


def test_weights_that_are_missing_or_incomplete_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12\n")
    assert "a pointer of Git LFS" in refusal(folder)
    file.write_bytes(weights(missing=1))
    assert "cut off" in refusal(folder)
    file.unlink()
    assert "no weights there" in refusal(folder)
