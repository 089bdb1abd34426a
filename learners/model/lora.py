"""LoRA adapters (arXiv 2106.09685) through peft: one next to each linear layer of the decoder, and the merged
weights of base and adapter.

Adapters are injected into the model's own modules, so that its class and interface stay the same.
"""

from typing import NamedTuple, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER = "default"
BASE = ".base_layer."
"""Replaces a dot in the name of a weight that has an adapter."""


class LoraAdapter(NamedTuple):
    """The low-rank update of a weight W [out, in]: scale x B A."""

    a: Tensor
    """[rank, in]; under FSDP2 a shard of it, like `b`."""
    b: Tensor
    """[out, rank]"""
    scale: float


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> None:
    """Adds the adapters in place and freezes all other weights. B starts at zero, so the policy equals the
    base; A is drawn from `seed`, the same on every rank."""
    layers = {id(module) for module in cast(nn.ModuleList, model.base_model.layers).modules()}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in layers
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def plain_name(name: str) -> str | None:
    """The weight's name in the model without adapters; None for a weight of an adapter."""
    return None if ".lora_" in name else name.replace(BASE, ".")


def adapter_of(model: PreTrainedModel, name: str) -> LoraAdapter | None:
    """The adapter of the weight with this name in `model.state_dict()`, if it has one."""
    owner, base, leaf = name.partition(BASE)
    if not base or leaf != "weight":
        return None
    layer = cast(LoraLayer, model.get_submodule(owner))
    a, b = (cast(nn.Linear, side[ADAPTER]).weight for side in (layer.lora_A, layer.lora_B))
    return LoraAdapter(a=a, b=b, scale=layer.scaling[ADAPTER])


def adapter_scale(model: PreTrainedModel) -> float:
    """Scale of the model's adapters; 0 without adapters."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return next((layer.scaling[ADAPTER] for layer in layers), 0.0)


def merge(weight: Tensor, adapter: LoraAdapter) -> Tensor:
    """W + scale x B A in the adapter's precision: exactly W while B is zero."""
    return weight.to(adapter.b.dtype) + adapter.scale * (adapter.b @ adapter.a)
