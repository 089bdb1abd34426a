"""Policies of the weight-sync benchmark: shapes, and random weights on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cluster.config.run_config import load

ROOT = Path(__file__).resolve().parents[1]


def shapes(*, quick: bool) -> Mapping[str, Mapping[str, int]]:
    """Sizes of the policy, by name."""
    tiny = load(ROOT / "recipes" / "cpu-quickstart.toml").policy.tiny
    found = {
        "quick-start": {
            "vocab_size": tiny.vocab_size,
            "hidden_size": tiny.hidden_size,
            "intermediate_size": tiny.intermediate_size,
            "num_hidden_layers": tiny.num_layers,
            "num_attention_heads": tiny.num_heads,
            "num_key_value_heads": tiny.num_heads,
            "head_dim": tiny.head_dim,
        }
    }
    if not quick:
        found["25M"] = _qwen(8192, 512, 1536, 6, heads=8, kv_heads=4, head_dim=64)
        found["150M"] = _qwen(50304, 1024, 3072, 8, heads=16, kv_heads=8, head_dim=64)
        if torch.cuda.is_available():  # as Qwen3's own
            found["0.6B"] = _qwen(151936, 1024, 3072, 28, heads=16, kv_heads=8, head_dim=128)
            found["8B"] = _qwen(151936, 4096, 12288, 36, heads=32, kv_heads=8, head_dim=128)
    return found


def _qwen(
    vocab: int, hidden: int, intermediate: int, layers: int, *, heads: int, kv_heads: int, head_dim: int
) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def write_policy(folder: str, shape: Mapping[str, int]) -> int:
    """Random weights, embeddings tied but in the largest, as Qwen3's are. Returns how many there are."""
    kwargs: dict[str, Any] = dict(shape)
    tied = shape["hidden_size"] < 4096
    config = Qwen3Config(**kwargs, max_position_embeddings=1024, tie_word_embeddings=tied, eos_token_id=1)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        policy = Qwen3ForCausalLM(config).bfloat16()
    policy.save_pretrained(folder)
    num_weights = policy.num_parameters()
    del policy
    torch.cuda.empty_cache()  # the engine and the learner want that memory; nothing where there is no GPU
    return num_weights
