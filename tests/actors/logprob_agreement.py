"""Random policies, and a learner's logprobs of given tokens: for tests with a real engine."""

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ray import cloudpickle
from transformers import Qwen3Config, Qwen3ForCausalLM

from learners.model.policy import Policy
from learners.model.weight_payload import pack_weights

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test file

VOCAB_SIZE = 256
STOP_TOKEN_ID = 1


def random_model(*, tied: bool, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        eos_token_id=STOP_TOKEN_ID,
        initializer_range=0.12,  # far from uniform, so that other weights mean other logprobs
    )
    return Qwen3ForCausalLM(config)


def write_model(folder: Path, *, tied: bool) -> str:
    random_model(tied=tied).save_pretrained(folder)
    return str(folder)


def learn(policy: Policy, *, seed: int) -> None:
    """Replaces all trainable matrices by random ones of the same scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.own_parameters():
            if parameter.requires_grad and parameter.ndim == 2:
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))


def packed(weights: Iterable[tuple[str, torch.Tensor]]) -> NDArray[np.uint8]:
    """The payload that an engine receives, from a model's `named_parameters`, which name tied ones once."""
    known = dict(weights)
    return pack_weights([(name, one.dtype, tuple(one.shape)) for name, one in known.items()], known.items())[
        0
    ]


def logprobs_of(policy: Policy, ids: list[int]) -> np.ndarray:
    """The learner's logprobs [num_tokens - 1] of all tokens but the first."""
    tokens = torch.tensor(ids, device=policy.head.device)
    with torch.no_grad():
        hidden = policy.model.base_model(
            input_ids=tokens[None],
            position_ids=torch.arange(len(ids), device=tokens.device)[None],
            sample_lengths=[len(ids)],
            use_cache=False,
        ).last_hidden_state[0, :-1]
        logprobs = (hidden @ policy.head.T).log_softmax(-1)
    return logprobs.gather(-1, tokens[1:, None])[:, 0].cpu().numpy()


def random_ids(seed: int, length: int = 100) -> list[int]:
    return np.random.default_rng(seed).integers(2, VOCAB_SIZE, length).tolist()
