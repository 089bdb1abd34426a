"""Starts ranks of one process group for tests, without Ray."""

from pathlib import Path

import torch
import torch.distributed as dist


def join(rank: int, *, num_ranks: int, folder: Path) -> None:
    """Begins a process group over gloo, one thread a rank. The ranks meet in a file: a port that was free a
    moment ago may be taken by now."""
    meeting = folder / f"meeting-of-{num_ranks}"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=num_ranks)
    torch.set_num_threads(1)
