"""The policy model in the learner: a Hugging Face causal LM that returns logprobs of selected tokens, with
causal attention over packed samples, sharded by FSDP2.

Weights that train are float32; matrix products may run in bfloat16 (autocast, and under FSDP2 on weights
gathered in it). No loss, no Ray.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from learners.batch.packing import MicroBatch
from learners.model.critic import Critic
from learners.model.lora import add_adapters

PACKED_CAUSAL = "packed_causal"
"""Name of `packed_causal_attention` in transformers' attention interface. The mask interface does not know
it, so no mask is built."""
LOGITS_AT_ONCE = 2**25
"""Logits alive at a time (128 MiB in float32): more loss tokens go through the head in chunks, computed
again backward."""


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
    """Each sample attends causally to itself alone, without a mask or padding: one kernel per sample, so the
    cost is the sum of squares.

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


class PolicyOutput(NamedTuple):
    """Outputs of the policy for each loss token and of its critic for each turn. A named tuple: FSDP2 must
    find the tensors of a forward's output."""

    logprobs: Float[Tensor, "L"]
    """Natural log, of the distribution at the sampling temperature; has a gradient."""
    entropies: Float[Tensor, "L"]
    """Nats; with a gradient only if the policy was made with `entropies_have_gradient`."""
    values: Float[Tensor, "K"]
    """The critic's value before each turn that has a token in the loss; empty without a critic."""


class Policy(nn.Module):
    """A causal LM that maps a packed row of samples to the logprobs of its loss tokens."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float,
        dtype: torch.dtype = torch.float32,
        entropies_have_gradient: bool = False,
        critic: Critic | None = None,
    ):
        super().__init__()
        _check_supported(model)
        self.model = model
        self.critic = critic
        self.temperature = temperature
        self.dtype = dtype
        """Number format of matrix products."""
        self._entropies_have_gradient = entropies_have_gradient

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters except the critic's."""
        return self.model.parameters()

    @property
    def head(self) -> Tensor:
        """The output embedding, [vocab_size, hidden_size]."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return cast(nn.ModuleList, self.model.base_model.layers)

    def forward(self, batch: MicroBatch) -> PolicyOutput:
        """One packed row on this module's device. Logits are made only for the tokens in the loss."""
        with torch.autocast(batch.token_ids.device.type, self.dtype, enabled=self.dtype is torch.bfloat16):
            backbone = self.model.base_model
            hidden = backbone(
                input_ids=batch.token_ids[None],
                position_ids=batch.position_ids[None],
                sample_lengths=batch.lengths,
                use_cache=False,
            ).last_hidden_state[0]
            values = self.critic(hidden[batch.states]) if self.critic is not None else hidden.new_zeros(0)
            logprobs, entropies = self._token_logprobs(
                hidden[batch.predictors], head=self.head, targets=batch.targets
            )
            return PolicyOutput(logprobs=logprobs, entropies=entropies, values=values)

    def _token_logprobs(
        self, hidden: Float[Tensor, "L hidden_size"], *, head: Tensor, targets: Int64[Tensor, "L"]
    ) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
        per_chunk = max(1, LOGITS_AT_ONCE // head.shape[0])
        function = partial(
            _logprobs_of_chunk,
            temperature=self.temperature,
            entropies_have_gradient=self._entropies_have_gradient,
        )
        if len(targets) > per_chunk:
            function = partial(checkpoint, function, use_reentrant=False)
        chunks = [
            function(h, head, t)
            for h, t in zip(hidden.split(per_chunk), targets.split(per_chunk), strict=True)
        ]
        logprobs, entropies = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)


def _logprobs_of_chunk(
    hidden: Float[Tensor, "L hidden_size"],
    head: Tensor,
    targets: Int64[Tensor, "L"],
    *,
    temperature: float,
    entropies_have_gradient: bool,
) -> tuple[Float[Tensor, "L"], Float[Tensor, "L"]]:
    logits = linear(hidden, head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    log_probs = logits.log_softmax(-1)
    del logits  # as large as log_probs
    logprobs = log_probs.gather(-1, targets[:, None])[:, 0]
    with torch.set_grad_enabled(entropies_have_gradient and torch.is_grad_enabled()):
        entropies = -(log_probs.exp() * log_probs).sum(-1)
    return logprobs, entropies


def _check_supported(model: PreTrainedModel) -> None:
    """Raises ValueError for models whose logprobs this class would compute wrongly."""
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
    recompute_activations: bool,
    entropies_have_gradient: bool = False,
    lora_rank: int = 0,
    lora_alpha: int = 32,
    has_critic: bool = False,
    seed: int = 0,
    frozen: bool = False,
) -> Policy:
    """Loads a Hugging Face causal LM (a folder or a hub name) with float32 weights, unsharded, into CPU
    memory; `shard` moves it to the device, which may have room for a part of it only.

    With `lora_rank` only adapters train; with `frozen` nothing does. Adapters and critic are initialised from
    `seed`. Linear layers that do not train are stored in the number format of matrix products.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=PACKED_CAUSAL
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if lora_rank:
        add_adapters(model, rank=lora_rank, alpha=lora_alpha, seed=seed)
    if frozen:
        model.requires_grad_(False)
    _narrow_frozen(model, dtype=dtype)
    if recompute_activations:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    hidden_size = model.config.get_text_config().hidden_size
    policy = Policy(
        model,
        temperature=temperature,
        dtype=dtype,
        entropies_have_gradient=entropies_have_gradient,
        critic=Critic(hidden_size, seed=seed) if has_critic else None,
    )
    return policy.train(not frozen)


def _narrow_frozen(model: PreTrainedModel, *, dtype: torch.dtype) -> None:
    """Stores frozen linear layers in the format of matrix products: autocast would round them to the same
    numbers at each use. Norms and embeddings stay float32, since they enter sums."""
    embedding = cast(nn.Embedding, model.get_input_embeddings()).weight
    for module in model.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight is not embedding
            and not any(parameter.requires_grad for parameter in module.parameters())
        ):
            module.to(dtype)


def shard(policy: Policy, *, num_ranks: int, device: torch.device) -> Policy:
    """Moves the policy to `device`, in place: unsharded on one rank, else sharded over the process group,
    each decoder layer gathered when used.

    `fully_shard` moves a unit's weights and buffers itself and keeps this rank's part, so that a device never
    holds more than its shards and one gathered unit. In bfloat16 the shards, the optimizer's moments and the
    sum of gradients over ranks stay float32; only gathered weights are bfloat16.
    """
    if num_ranks == 1:
        return policy.to(device)
    mesh = init_device_mesh(device.type, (num_ranks,))
    rounds = policy.dtype is torch.bfloat16
    precision = MixedPrecisionPolicy(
        param_dtype=policy.dtype if rounds else None, reduce_dtype=torch.float32 if rounds else None
    )
    trains = any(parameter.requires_grad for parameter in policy.parameters())
    for layer in policy.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    if policy.critic is not None:
        fully_shard(policy.critic, mesh=mesh)
    # FSDP keeps the outermost weights gathered for a backward pass, which a frozen policy does not have.
    fully_shard(policy, mesh=mesh, mp_policy=precision, reshard_after_forward=None if trains else True)
    return policy
