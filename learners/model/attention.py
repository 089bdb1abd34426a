"""Causal attention over packed samples, registered with transformers' attention interface: samples of one row
never see each other, without a mask and without padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED_CAUSAL = "packed_causal"
"""The `attn_implementation` that `Policy` loads its model with. Unknown to the mask interface: no mask is
ever built."""


def packed_causal_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads T head_dim"],
    key: Float[Tensor, "1 kv_heads T head_dim"],
    value: Float[Tensor, "1 kv_heads T head_dim"],
    attention_mask: None,
    *,
    sample_lengths: Sequence[int],
    scaling: float,
    **ignored: object,
) -> tuple[Float[Tensor, "1 T heads head_dim"], None]:
    """Each sample attends to itself alone, causally: one kernel a sample, so the cost is the sum of squares.

    Dropout is ignored: a policy that drops units has no logprob to compare with the engine's.
    """
    outputs = [
        scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        for q, k, v in zip(*(x.split(list(sample_lengths), dim=2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_CAUSAL, packed_causal_attention)
