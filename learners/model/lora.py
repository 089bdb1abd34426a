"""LoRA adapters (arXiv 2106.09685) through peft: one next to each linear layer of the decoder, and the merged
weights of base and adapter.

Adapters are put into the model's own modules, so that the model stays what it was to everyone else.
"""

from typing import NamedTuple, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

ADAPTER = "default"
BASE = ".base_layer."
"""Stands in the name of a weight that has an adapter beside it, for a dot in its plain name."""


class LoraAdapter(NamedTuple):
    """What is added to a weight W [out, in]: scale x B A."""

    a: Tensor
    """[rank, in]; a shard of it under FSDP2, as `b`."""
    b: Tensor
    """[out, rank]"""
    scale: float


def add_adapters(model: PreTrainedModel, *, rank: int, alpha: int, seed: int) -> None:
    """Adds the adapters in place and freezes all other weights. B begins at zero, so the policy is still the
    base; A is drawn from `seed`, alike on every rank."""
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
    """The weight's name in the model without adapters; None for what belongs to an adapter."""
    return None if ".lora_" in name else name.replace(BASE, ".")


def adapter_of(model: PreTrainedModel, name: str) -> LoraAdapter | None:
    """The adapter beside the weight of this name in `model.state_dict()`, if there is one."""
    owner, base, leaf = name.partition(BASE)
    if not base or leaf != "weight":
        return None
    layer = cast(LoraLayer, model.get_submodule(owner))
    a, b = (cast(nn.Linear, side[ADAPTER]).weight for side in (layer.lora_A, layer.lora_B))
    return LoraAdapter(a=a, b=b, scale=layer.scaling[ADAPTER])


def adapter_scale(model: PreTrainedModel) -> float:
    """What the products of the model's adapters are scaled by; 0 without adapters."""
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return next((layer.scaling[ADAPTER] for layer in layers), 0.0)


def merge(weight: Tensor, adapter: LoraAdapter) -> Tensor:
    """W + scale x B A in the adapter's precision: exactly W while B is zero."""
    return weight.to(adapter.b.dtype) + adapter.scale * (adapter.b @ adapter.a)
