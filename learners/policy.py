"""The policy as the learner sees it: a Hugging Face causal LM that gives logprobs of selected tokens, sharded
by FSDP2.

Weights are float32; matrix products may run in bfloat16 (autocast). Knows no loss and no Ray.
"""

from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from learners.attention import PACKED_CAUSAL
from learners.packing import MicroBatch

LOGITS_AT_ONCE = 2**25
"""Logits alive at a time (128 MiB in float32): more loss tokens go through the head in chunks, computed
again backward."""


class TokenLogprobs(NamedTuple):
    """What the policy says of each loss token. A named tuple: FSDP2 must find the tensors of a forward's
    output."""

    logprobs: Float[Tensor, "L"]
    """Natural log, of the distribution at the sampling temperature; has a gradient."""
    entropies: Float[Tensor, "L"]
    """Nats; with a gradient only where the policy was asked for one."""


class Policy(nn.Module):
    """A causal LM with a packed row in and the logprobs of its loss tokens out."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        dtype: torch.dtype = torch.float32,
        entropies_have_gradient: bool = False,
    ):
        super().__init__()
        _check_supported(model)
        self.model = model
        self._temperature = temperature
        self._dtype = dtype
        self._entropies_have_gradient = entropies_have_gradient

    @property
    def head(self) -> Tensor:
        """The output embedding, [vocab_size, hidden_size]."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return cast(nn.ModuleList, self.model.base_model.layers)

    def forward(self, batch: MicroBatch) -> TokenLogprobs:
        """One packed row on this module's device. Logits are made only for the tokens in the loss."""
        with torch.autocast(batch.token_ids.device.type, self._dtype, enabled=self._dtype is torch.bfloat16):
            backbone = self.model.base_model
            hidden = backbone(
                input_ids=batch.token_ids[None],
                position_ids=batch.position_ids[None],
                sample_lengths=batch.lengths,
                use_cache=False,
            ).last_hidden_state[0]
            return self._token_logprobs(hidden[batch.predictors], head=self.head, targets=batch.targets)

    def _token_logprobs(
        self, hidden: Float[Tensor, "L hidden_size"], *, head: Tensor, targets: Int64[Tensor, "L"]
    ) -> TokenLogprobs:
        per_chunk = max(1, LOGITS_AT_ONCE // head.shape[0])
        function = partial(
            _logprobs_of_chunk,
            temperature=self._temperature,
            entropies_have_gradient=self._entropies_have_gradient,
        )
        if len(targets) > per_chunk:
            function = partial(checkpoint, function, use_reentrant=False)
        chunks = [
            function(h, head, t)
            for h, t in zip(hidden.split(per_chunk), targets.split(per_chunk), strict=True)
        ]
        logprobs, entropies = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return TokenLogprobs(logprobs=logprobs, entropies=entropies)


def _logprobs_of_chunk(
    hidden: Float[Tensor, "L hidden_size"],
    head: Tensor,
    targets: Int64[Tensor, "L"],
    *,
    temperature: float,
    entropies_have_gradient: bool,
) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
    logits = linear(hidden, head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    with torch.set_grad_enabled(entropies_have_gradient and torch.is_grad_enabled()):
        log_probs = logits.log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)
    return -cross_entropy(logits, targets, reduction="none"), entropies


def _check_supported(model: PreTrainedModel) -> None:
    """Refuses models whose logprobs this class would get wrong."""
    config, name = model.config.get_text_config(), type(model).__name__
    if config._attn_implementation != PACKED_CAUSAL:
        raise ValueError(f"{name}: load the model with attn_implementation={PACKED_CAUSAL!r}")
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise ValueError(
            f"{name}: only full causal attention can train: choose a model without sliding or linear layers"
        )
    if getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_scaling", 1.0) != 1.0:
        raise ValueError(
            f"{name}: its logits are capped or scaled, which is not supported: choose another model"
        )


def load_policy(
    folder: str,
    *,
    temperature: float,
    dtype: torch.dtype,
    device: torch.device,
    recompute_activations: bool,
    entropies_have_gradient: bool = False,
) -> Policy:
    """Loads a Hugging Face causal LM (a folder or a hub name) with float32 weights, whole, onto `device`."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=PACKED_CAUSAL
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if recompute_activations:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        model, temperature=temperature, dtype=dtype, entropies_have_gradient=entropies_have_gradient
    )
    return policy.to(device).train()


def shard(policy: Policy, *, num_ranks: int, device: torch.device) -> Policy:
    """Shards the policy in place over the process group: each decoder layer is gathered when used."""
    if num_ranks > 1:
        mesh = init_device_mesh(device.type, (num_ranks,))
        for layer in policy.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(policy, mesh=mesh)
    return policy


def full_state_dict(policy: Policy, *, keep: bool) -> dict[str, Tensor]:
    """The model's weights under their Hugging Face names, whole, on CPU, each tied weight once.

    Collective: every rank calls it; those with `keep=False` get an empty dict.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            state[name] = whole.detach().cpu()
    return state
