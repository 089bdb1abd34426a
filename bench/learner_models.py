"""Models and dialogues of the learner's benchmark: shapes, random weights, samples."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from bench.learner_vs_trl import OurSide, TrlSide, padded
from bench.random_dialogues import dialogues, sampled_by
from bench.result_rows import ROOT
from learners.batch.samples import TrainingSample
from learners.config import TinyPolicyConfig
from learners.model.tiny_policy import make_tokenizer

RECIPE = ROOT.parent / "recipes" / "cpu-quickstart.toml"
TINY = TinyPolicyConfig(**tomllib.loads(RECIPE.read_text())["policy"]["tiny"])
SEED = 0
GAP = 0.02
"""Between engine and learner, nats a token: ratios near 1, none of them exactly 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model with random weights, and the step that it takes."""

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    num_dialogues: int
    batch_sizes: tuple[int, ...]
    """Dialogues a forward pass that TRL is tried with."""


QUICKSTART = Shape(
    name="quick-start",
    hidden_size=TINY.hidden_size,
    num_layers=TINY.num_layers,
    num_heads=TINY.num_heads,
    num_kv_heads=TINY.num_heads,
    head_dim=TINY.head_dim,
    intermediate_size=TINY.intermediate_size,
    vocab_size=TINY.vocab_size,
    num_dialogues=32,
    batch_sizes=(4, 16, 32),
)
SHAPES = (
    QUICKSTART,
    Shape(
        name="25M",
        hidden_size=384,
        num_layers=8,
        num_heads=6,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=1024,
        vocab_size=32_768,
        num_dialogues=8,
        batch_sizes=(2, 8),
    ),
)
HEAD = Shape(
    name="head alone",
    hidden_size=64,
    num_layers=0,
    num_heads=1,
    num_kv_heads=1,
    head_dim=64,
    intermediate_size=64,
    vocab_size=151_936,
    num_dialogues=8,
    batch_sizes=(8,),
)
"""No layers and Qwen3's vocabulary: what is left of a step is its logits."""


def build(shape: Shape, folder: str) -> int:
    """Writes the model with a tokenizer; returns the number of weights."""
    disable_progress_bar()
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    make_tokenizer(vocab_size=TINY.vocab_size).save_pretrained(folder)
    return model.num_parameters()


def samples_of(shape: Shape, folder: str) -> list[TrainingSample]:
    samples = dialogues(shape.num_dialogues, vocab_size=shape.vocab_size, seed=SEED)
    return sampled_by(OurSide(folder).policy, samples, gap=GAP, seed=SEED)


def make_trl(shape: Shape, folder: str, *, batch_size: int) -> TrlSide:
    return TrlSide(folder, num_samples=shape.num_dialogues, batch_size=batch_size, output_dir=folder + "/trl")


def num_places(samples: Sequence[TrainingSample]) -> int:
    batch = padded(samples)
    return batch["prompt_ids"].numel() + batch["completion_ids"].numel()
