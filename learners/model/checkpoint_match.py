"""Check that a checkpoint fits a policy: compares parameter names and shapes."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

MODEL = "model."
"""Before each weight's name."""


def check_same_policy(path: Path, written: Metadata, model: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the checkpoint's weights are not this policy's, by their names and shapes."""
    theirs = {
        name.removeprefix(MODEL): tuple(entry.size)
        for name, entry in written.state_dict_metadata.items()
        if name.startswith(MODEL) and isinstance(entry, TensorStorageMetadata)
    }
    ours = {name: tuple(tensor.shape) for name, tensor in model.items()}
    if theirs == ours:
        return
    there, asked = _kind(theirs), _kind(ours)
    if there == asked:
        name = min(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        there, asked = (f"{name} {shapes.get(name, 'missing')}" for shapes in (theirs, ours))
    raise ValueError(
        f"{path}: written with {there}, and this run has {asked}: give the settings of the run that wrote "
        "it, or begin a new run"
    )


def _kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the settings make of a policy, told by its weights."""
    rank = next((shape[0] for name, shape in shapes.items() if ".lora_A." in name), 0)
    critic = any(name.startswith("critic.") for name in shapes)
    return f"lora_rank={rank} and {'a' if critic else 'no'} critic"
