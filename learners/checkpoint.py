"""Checkpoints of a learner group: model and optimizer, sharded on disk, resumable on another number of
learners.

`torch.distributed.checkpoint` writes `.metadata` last: a folder without it was never finished.
"""

from dataclasses import dataclass, field
from pathlib import Path

from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from learners.loss_entropy import EntropyControl
from learners.policy import Policy, full_state_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a checkpoint says beside tensors."""

    stage: str
    """Whose optimizer state it holds: "sft", "grpo", or "" before the first step."""
    entropy: EntropyControl = field(default_factory=EntropyControl)


def is_checkpoint(path: Path) -> bool:
    """True where a checkpoint was finished."""
    return (path / ".metadata").is_file()


def save_checkpoint(path: Path, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
    """Collective: every rank writes its shards."""
    model, optim = get_state_dict(policy, optimizer)
    save(
        {
            "model": model,
            "optimizer": optim,
            "stage": progress.stage,
            "entropy_coefficient": progress.entropy.coefficient,
            "last_entropy": progress.entropy.last_entropy,
        },
        checkpoint_id=path,
        no_dist=not dist.is_initialized(),
    )


def load_checkpoint(path: Path, policy: Policy, optimizer: Optimizer) -> Progress:
    """Collective: loads in place, whatever number of ranks wrote it. Raises FileNotFoundError for an
    unfinished one."""
    if not is_checkpoint(path):
        raise FileNotFoundError(
            f"{path}: no finished checkpoint there (no .metadata): name a folder that holds one"
        )
    model, optim = get_state_dict(policy, optimizer)
    state = {
        "model": model,
        "optimizer": optim,
        "stage": "",
        "entropy_coefficient": 0.0,
        "last_entropy": 0.0,
    }
    load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    set_state_dict(policy, optimizer, model_state_dict=model, optim_state_dict=optim)
    return Progress(
        stage=state["stage"],
        entropy=EntropyControl(coefficient=state["entropy_coefficient"], last_entropy=state["last_entropy"]),
    )


def export_model(
    folder: Path, policy: Policy, *, tokenizer: PreTrainedTokenizerBase | None, is_writer: bool
) -> None:
    """Writes the model, with its tokenizer if given, as a folder that `transformers` and vLLM load.
    Collective."""
    state = full_state_dict(policy, keep=is_writer)
    if is_writer:
        policy.model.save_pretrained(folder, state_dict=state)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
