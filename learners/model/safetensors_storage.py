"""Checkpoint storage for torch.distributed.checkpoint without pickles: tensors as safetensors, everything
else as JSON.

What `torch.distributed.checkpoint` writes by itself are pickles: its index, and each value that is no tensor.
Who reads them runs whatever is in them. So these are its seams, planner and storage, once more: a file for
each rank, with one safetensors block after the other, and an index that is written last.
"""

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load as read_block
from safetensors.torch import save as write_block
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

INDEX = "index.json"
"""Written last: a folder without it was never finished."""
BLOCK = "tensor"
"""The one name in each block."""
TUPLE = "tuple"
"""The one key of what stands for a tuple, which JSON lacks."""


class JsonSavePlanner(DefaultSavePlanner):
    """Values that are no tensors become JSON."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """The other planner pickles them."""
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(json.dumps(_packed(object)).encode())
        return object


class JsonLoadPlanner(DefaultLoadPlanner):
    """The other way round."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts the value where the state has it."""
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, _unpacked(json.loads(value.read())))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Where one item lies."""

    file: str
    offset: int
    length: int


class CheckpointFolderWriter(StorageWriter):
    """Writes one folder."""

    def __init__(self, path: Path):
        self._path = path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._path.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Each rank's file has its name from here."""
        return [dataclasses.replace(plan, storage_data=f"rank-{i}.bin") for i, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's items, one after the other, safe on disk when this returns."""
        name: str = plan.storage_data
        results: list[WriteResult] = []
        with (self._path / name).open("wb") as file:
            for item in plan.items:
                block, offset = _block_of(planner.resolve_data(item)), file.tell()
                file.write(block)
                place = Slice(file=name, offset=offset, length=len(block))
                results.append(WriteResult(index=item.index, size_in_bytes=len(block), storage_data=place))
            file.flush()
            os.fsync(file.fileno())
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The index: from here on it is a checkpoint."""
        index = {
            "entries": {name: _entry(about) for name, about in metadata.state_dict_metadata.items()},
            "slices": [
                [one.index.fqn, one.index.offset, *dataclasses.astuple(one.storage_data)]
                for rank in results
                for one in rank
            ],
        }
        unfinished = self._path / f"{INDEX}.tmp"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path / INDEX)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class CheckpointFolderReader(StorageReader):
    """Reads one folder."""

    def __init__(self, path: Path):
        self._path = path
        self._slices: Mapping[MetadataIndex, Slice] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._slices = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. Raises OSError, or ValueError, TypeError, KeyError for one that is damaged."""
        index = json.loads((self._path / INDEX).read_text(encoding="utf-8"))
        return Metadata(
            state_dict_metadata={name: _about(entry) for name, entry in index["entries"].items()},
            storage_data=dict(map(_slice, index["slices"])),
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self._slices = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """This rank's items. Raises OSError, SafetensorError, ValueError for damaged ones."""
        for name in sorted({self._slices[item.storage_index].file for item in plan.items}):
            with (self._path / name).open("rb") as file:
                for item in plan.items:
                    place = self._slices[item.storage_index]
                    if place.file == name:
                        file.seek(place.offset)
                        _take(item, file.read(place.length), planner=planner)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _take(item: ReadItem, block: bytes, *, planner: LoadPlanner) -> None:
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(block))
        return
    written = narrow_tensor_by_index(read_block(block)[BLOCK], item.storage_offsets, item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.size() != written.size():
        raise ValueError(f"{item.storage_index.fqn}: {tuple(written.size())} is not {tuple(target.size())}")
    target.copy_(written)
    planner.commit_tensor(item, target)


def _block_of(value: Tensor | io.BytesIO) -> bytes:
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    return write_block({BLOCK: value.detach().cpu().contiguous()})


def _entry(about: TensorStorageMetadata | BytesStorageMetadata) -> dict[str, Any] | None:
    """None for JSON."""
    if isinstance(about, BytesStorageMetadata):
        return None
    chunks = [[list(chunk.offsets), list(chunk.sizes)] for chunk in about.chunks]
    dtype = str(about.properties.dtype).removeprefix("torch.")
    return {"dtype": dtype, "size": list(about.size), "chunks": chunks}


def _about(entry: Mapping[str, Any] | None) -> TensorStorageMetadata | BytesStorageMetadata:
    if entry is None:
        return BytesStorageMetadata()
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is no number format")
    chunks = [
        ChunkStorageMetadata(offsets=_size(offsets), sizes=_size(sizes)) for offsets, sizes in entry["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(entry["size"]), chunks)


def _slice(row: Sequence[Any]) -> tuple[MetadataIndex, Slice]:
    name, at, file, offset, length = row
    if Path(file).name != file:
        raise ValueError(f"{file!r} is no file of this folder")
    place = Slice(file=file, offset=int(offset), length=int(length))
    return MetadataIndex(name, None if at is None else _size(at)), place


def _size(numbers: Sequence[Any]) -> torch.Size:
    return torch.Size([int(number) for number in numbers])


def _packed(value: Any) -> Any:
    if isinstance(value, tuple):
        return {TUPLE: [_packed(item) for item in value]}
    if isinstance(value, Mapping):
        return {key: _packed(item) for key, item in value.items()}
    return [_packed(item) for item in value] if isinstance(value, list) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TUPLE}:
            return tuple(_unpacked(item) for item in value[TUPLE])
        return {key: _unpacked(item) for key, item in value.items()}
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _done(result: Any) -> Future[Any]:
    future = cast("Future[Any]", Future())
    future.set_result(result)
    return future
