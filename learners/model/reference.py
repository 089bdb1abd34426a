"""The reference model of the KL term: a frozen copy of the policy at the start of GRPO, or another named
model.

It is stored as a model folder, so that a stopped run resumes with the same one.
"""

import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from learners.batch.packing import MicroBatch
from learners.model.checkpoint import export_model
from learners.model.policy import Policy, load_policy, shard


def write_reference(folder: Path, policy: Policy, *, rank: int, num_ranks: int, device: torch.device) -> None:
    """Rank 0 writes the current policy, atomically, in place of an earlier one. Collective: returns when the
    folder can be read; raises OSError on every rank if it could not be written."""
    partial, problem = folder.with_name(f"{folder.name}.partial"), [""]
    try:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed while writing
        export_model(partial, policy, tokenizer=None, is_writer=rank == 0)
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except OSError as error:
        problem = [str(error)]
    if num_ranks > 1:
        dist.broadcast_object_list(problem, src=0, device=device)
    if problem[0]:
        raise OSError(f"{folder}: the reference model cannot be written ({problem[0]})")


def load_reference(folder: str, *, policy: Policy, num_ranks: int, device: torch.device) -> Policy:
    """The folder's model, frozen and sharded, with the policy's temperature and number format. Raises
    FileNotFoundError if there is none, ValueError if its vocabulary differs from the policy's."""
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no reference model there: copy it from the run that wrote the checkpoint, or name a "
            "model with learner.kl.reference"
        )
    reference = load_policy(
        folder,
        temperature=policy.temperature,
        dtype=policy.dtype,
        recompute_activations=False,
        frozen=True,
    )
    ours, theirs = policy.head.shape[0], reference.head.shape[0]
    if ours != theirs:
        raise ValueError(
            f"learner.kl.reference={folder!r}: its vocabulary has {theirs} tokens and the policy's {ours}: "
            "name a model with the policy's tokenizer"
        )
    return shard(reference, num_ranks=num_ranks, device=device)


@torch.no_grad()
def reference_logprobs(reference: Policy, batch: MicroBatch) -> Float[Tensor, "L"]:
    """The reference's logprobs of the micro-batch's loss tokens; computed when needed, never stored."""
    return reference(batch).logprobs
