"""Checkpoints of a learner group: model and optimizer, sharded on disk, resumable on another number of
learners.

The index is written last: a folder without it is unfinished. Besides tensors it holds a format number and a
few scalars, see `_scalars`. File format: learners/model/safetensors_storage.py.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from learners.losses.entropy import EntropyControl
from learners.model.lora import adapter_scale
from learners.model.policy import Policy
from learners.model.safetensors_storage import (
    INDEX,
    CheckpointFolderReader,
    CheckpointFolderWriter,
    JsonLoadPlanner,
    JsonSavePlanner,
)
from learners.model.weight_export import full_state_dict

FORMAT = 2
"""Number of the current checkpoint format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """State of training besides tensors."""

    stage: str
    """Stage of the optimizer state: "sft", "grpo", or "" before the first step."""
    entropy: EntropyControl = field(default_factory=EntropyControl)


def is_checkpoint(path: Path) -> bool:
    """Whether the folder holds a finished checkpoint."""
    return (path / INDEX).is_file()


def withdraw(path: Path) -> None:
    """Marks the folder as unfinished, so that another checkpoint may be written to it."""
    (path / INDEX).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveReport:
    """Progress of one rank with the last checkpoint."""

    done: bool
    """Writing has ended, by success or failure."""
    error: str = ""
    """Why it failed, one line; empty if it did not."""


class CheckpointWriter:
    """Writes checkpoints in the background of training, one at a time.

    It has its own process group, since its collectives run concurrently with those of training. Its
    construction is collective.
    """

    def __init__(self) -> None:
        group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._group = cast("dist.ProcessGroup | None", group)  # every rank of it is a member
        self._writing: Future[Any] | None = None

    def save(self, path: Path, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
        """Copies the current state to CPU memory and returns; it is written in the background. Waits for the
        end of the previous checkpoint. Collective."""
        self.report(wait=True)
        model, optim = _state(policy, optimizer)
        state = {"model": model, "optimizer": optim, **_scalars(policy, progress)}
        writing = async_save(
            state,
            storage_writer=CheckpointFolderWriter(path),
            planner=JsonSavePlanner(),
            process_group=self._group,
            no_dist=self._group is None,
        )
        self._writing = cast("Future[Any]", writing)  # the other type is for custom stagers

    def report(self, *, wait: bool) -> SaveReport:
        """Progress of the last `save` on this rank; with `wait`, after its end. Never raises."""
        if self._writing is None:
            return SaveReport(done=True)
        if not wait and not self._writing.done():
            return SaveReport(done=False)
        error = self._writing.exception()
        return SaveReport(done=True, error="" if error is None else _first_cause(error))


def _first_cause(error: BaseException) -> str:
    """One line with the first failure: a `CheckpointException` holds one per rank."""
    failures = getattr(error, "failures", None) or {0: (error,)}
    rank, (cause, *_) = min(failures.items())
    return f"learner {rank}: {' '.join(str(cause).split()) or type(cause).__name__}"


def load_checkpoint(path: Path, policy: Policy, optimizer: Optimizer) -> Progress:
    """Loads in place, for any number of ranks that wrote it. Collective. Raises FileNotFoundError for an
    unfinished checkpoint, ValueError for one with other settings, OSError for a damaged one, in one line."""
    if not is_checkpoint(path):
        raise FileNotFoundError(
            f"{path}: no finished checkpoint there (no {INDEX}): give a folder that has one"
        )
    model, optim = _state(policy, optimizer)
    expected = _scalars(policy, Progress(stage=""))
    written = _read_metadata(path)
    try:
        _check_same_policy(path, written, model)
        scalars: dict[str, Any] = {
            name: value for name, value in expected.items() if name in written.state_dict_metadata
        }
        _load(scalars, path)
        _check_scalars(path, scalars, expected)
        _load({"model": model, "optimizer": optim}, path)
    except CheckpointException as error:
        raise _damaged(path, _first_cause(error)) from None
    is_complete = len(model) == len(policy.state_dict())
    set_state_dict(
        policy,
        optimizer,
        model_state_dict=model,
        optim_state_dict=optim,
        options=StateDictOptions(strict=is_complete),
    )
    return Progress(
        stage=scalars["stage"],
        entropy=EntropyControl(
            coefficient=scalars["entropy_coefficient"], last_entropy=scalars["last_entropy"]
        ),
    )


def _check_same_policy(path: Path, written: Metadata, model: Mapping[str, Tensor]) -> None:
    """Raises ValueError if names or shapes of the checkpoint's weights differ from the policy's."""
    theirs = {
        name.removeprefix("model."): tuple(entry.size)
        for name, entry in written.state_dict_metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    ours = {name: tuple(tensor.shape) for name, tensor in model.items()}
    if theirs == ours:
        return
    there, asked = _described(theirs), _described(ours)
    if there == asked:
        name = min(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        there, asked = (f"{name} {shapes.get(name, 'missing')}" for shapes in (theirs, ours))
    raise ValueError(
        f"{path}: written with {there}, and this run has {asked}: give the settings of the run that wrote "
        "it, or start a new run"
    )


def _described(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The settings that decide which weights a policy has, read from the weights."""
    rank = next((shape[0] for name, shape in shapes.items() if ".lora_A." in name), 0)
    critic = any(name.startswith("critic.") for name in shapes)
    return f"lora_rank={rank} and {'a' if critic else 'no'} critic"


def _read_metadata(path: Path) -> Metadata:
    try:
        return CheckpointFolderReader(path).read_metadata()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{INDEX}: {type(error).__name__}: {error}") from None


def _damaged(path: Path, reason: str) -> OSError:
    return OSError(f"{path}: the checkpoint is damaged ({reason}): resume from another one")


def _load(state: dict[str, Any], path: Path) -> None:
    load(
        state,
        storage_reader=CheckpointFolderReader(path),
        planner=JsonLoadPlanner(),
        no_dist=not dist.is_initialized(),
    )


def _check_scalars(path: Path, scalars: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises ValueError for a later format and for another scale of the adapters."""
    if scalars["format"] > FORMAT:
        raise ValueError(
            f"{path}: format={scalars['format']} of a later version, and this one reads up to {FORMAT}: "
            "resume with the version that wrote it"
        )
    ours, theirs = expected["adapter_scale"], scalars["adapter_scale"]
    if theirs != ours:
        raise ValueError(
            f"{path}: written with lora_alpha / lora_rank = {theirs:g}, and this run has {ours:g}: give the "
            "settings of the run that wrote it, or start a new run"
        )


def _scalars(policy: Policy, progress: Progress) -> dict[str, str | float]:
    return {
        "format": FORMAT,
        "adapter_scale": adapter_scale(policy.model),
        "stage": progress.stage,
        "entropy_coefficient": progress.entropy.coefficient,
        "last_entropy": progress.entropy.last_entropy,
    }


def _state(policy: Policy, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of model and optimizer without frozen weights, which come from the policy's own folder."""
    model, optim = get_state_dict(policy, optimizer)
    # Covers both names of a tied weight; the option `ignore_frozen_params` would leave one.
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.items() if name not in frozen}, optim


def export_model(
    folder: Path, policy: Policy, *, tokenizer: PreTrainedTokenizerBase | None, is_writer: bool
) -> None:
    """Writes the model, with its tokenizer if given, as a folder that `transformers` and vLLM can load.
    Collective. Raises OSError if it cannot be written."""
    state = full_state_dict(policy, keep=is_writer)
    if is_writer:
        try:
            policy.model.save_pretrained(folder, state_dict=state)
        except SafetensorError as error:  # what a full disk raises
            raise OSError(f"{folder}: cannot be written ({error})") from None
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
