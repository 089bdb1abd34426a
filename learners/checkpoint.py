"""Checkpoints of a learner group: model and optimizer, sharded on disk, resumable on another number of
learners.

`torch.distributed.checkpoint` writes `.metadata` last: a folder without it was never finished.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveReport:
    """How far one rank is with the checkpoint that it last began."""

    done: bool
    """Nothing of it is left to write, or it failed."""
    error: str = ""
    """Why it failed, one line; empty where it did not."""


class CheckpointWriter:
    """Writes checkpoints behind training, one at a time.

    Has a process group of its own: what ranks tell each other while they write must not meet what they tell
    each other while they train. Collective to make.
    """

    def __init__(self) -> None:
        group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._group = cast("dist.ProcessGroup | None", group)  # every rank of it is a member
        self._writing: Future[Any] | None = None

    def save(self, path: Path, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
        """Copies this moment's state to CPU memory and returns; the writing goes on. Waits for the end of the
        checkpoint before. Collective."""
        self.report(wait=True)
        model, optim = _state(policy, optimizer)
        state = {"model": model, "optimizer": optim, **_entries(progress)}
        writing = async_save(
            state, checkpoint_id=path, process_group=self._group, no_dist=self._group is None
        )
        self._writing = cast("Future[Any]", writing)  # the other type is for stagers of one's own

    def report(self, *, wait: bool) -> SaveReport:
        """How the last `save` stands on this rank; `wait` for its end. Never raises."""
        if self._writing is None:
            return SaveReport(done=True)
        if not wait and not self._writing.done():
            return SaveReport(done=False)
        error = self._writing.exception()
        return SaveReport(done=True, error="" if error is None else _first_cause(error))


def save_checkpoint(path: Path, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
    """A whole checkpoint when it returns. Raises OSError where one rank failed. Collective."""
    writer = CheckpointWriter()
    writer.save(path, policy, optimizer, progress)
    if error := writer.report(wait=True).error:
        raise OSError(error)


def _first_cause(error: BaseException) -> str:
    """One line. A `CheckpointException` holds what went wrong on each rank."""
    failures = getattr(error, "failures", None) or {0: (error,)}
    rank, (cause, *_) = min(failures.items())
    return f"learner {rank}: {' '.join(str(cause).split()) or type(cause).__name__}"


def load_checkpoint(path: Path, policy: Policy, optimizer: Optimizer) -> Progress:
    """Collective: loads in place, whatever number of ranks wrote it. Raises FileNotFoundError for an
    unfinished one."""
    if not is_checkpoint(path):
        raise FileNotFoundError(
            f"{path}: no finished checkpoint there (no .metadata): name a folder that holds one"
        )
    model, optim = _state(policy, optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optim, **_entries(Progress(stage=""))}
    load(state, checkpoint_id=path, no_dist=not dist.is_initialized())
    whole = len(model) == len(policy.state_dict())
    set_state_dict(
        policy,
        optimizer,
        model_state_dict=model,
        optim_state_dict=optim,
        options=StateDictOptions(strict=whole),
    )
    return Progress(
        stage=state["stage"],
        entropy=EntropyControl(coefficient=state["entropy_coefficient"], last_entropy=state["last_entropy"]),
    )


def _entries(progress: Progress) -> dict[str, str | float]:
    return {
        "stage": progress.stage,
        "entropy_coefficient": progress.entropy.coefficient,
        "last_entropy": progress.entropy.last_entropy,
    }


def _state(policy: Policy, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and optimizer, without the weights that never train: those are the policy folder's own."""
    model, optim = get_state_dict(policy, optimizer)
    # Both names of a tied weight, of which the option `ignore_frozen_params` would leave one.
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.items() if name not in frozen}, optim


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
