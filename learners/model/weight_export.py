"""Export of the policy's weights: gathered from all ranks, under Hugging Face names, with LoRA adapters
merged in."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from learners.model.lora import LoraAdapter, adapter_of, merge, plain_name
from learners.model.policy import Policy
from learners.model.weight_payload import Shape


class WeightExport:
    """All weights, tied ones once, in `dtype`; without it in float32 at least.

    Iterating gathers one weight at a time on the policy's device. It is collective: every rank must iterate
    to the end. Weights are rounded after adapters were merged."""

    def __init__(self, policy: Policy, *, dtype: torch.dtype | None = None, keep: bool = True):
        """With `keep=False` this rank only joins the gathering: it merges and rounds nothing."""
        self._policy = policy
        self._dtype = dtype
        self._keep = keep

    def shapes(self) -> list[Shape]:
        """Shapes of the weights in the order of iteration, without gathering."""
        return [
            (name, self._format(adapter.b if adapter else tensor), tuple(tensor.shape))
            for name, tensor, adapter in self._stored()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor, adapter in self._stored():
            whole = _whole(tensor)
            if adapter is not None:
                adapter = adapter._replace(a=_whole(adapter.a), b=_whole(adapter.b))
            if self._keep:
                merged = merge(whole, adapter) if adapter is not None else whole
                whole = merged.to(self._format(merged))
            yield name, whole

    def _stored(self) -> Iterator[tuple[str, Tensor, LoraAdapter | None]]:
        seen: set[int] = set()
        model = self._policy.model
        for name, tensor in model.state_dict(keep_vars=True).items():
            plain = plain_name(name)
            if id(tensor) not in seen and plain is not None:
                yield plain, tensor, adapter_of(model, name)
            seen.add(id(tensor))

    def _format(self, tensor: Tensor) -> torch.dtype:
        return self._dtype or torch.promote_types(tensor.dtype, torch.float32)


def full_state_dict(policy: Policy, *, keep: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """`WeightExport` as a dict on CPU. Collective; ranks with `keep=False` get an empty one."""
    weights = WeightExport(policy, dtype=dtype, keep=keep)
    return {name: tensor.cpu() for name, tensor in weights if keep}


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
