"""Checkpoint storage for torch.distributed.checkpoint without pickles: tensors as safetensors, everything
else as JSON.

By default `torch.distributed.checkpoint` pickles its index and each value that is no tensor, and reading a
pickle runs the code in it. This module replaces its planners and storage: one file per rank, a sequence of
safetensors blocks, and an index that is written last.
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
"""Written last: a folder without it is unfinished."""
BLOCK = "tensor"
"""Name of the only tensor in each block."""
TUPLE = "tuple"
"""The only key of the JSON object that represents a tuple."""


class JsonSavePlanner(DefaultSavePlanner):
    """Encodes values that are no tensors as JSON."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        """Replaces the default, which pickles."""
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(json.dumps(_to_json(object)).encode())
        return object


class JsonLoadPlanner(DefaultLoadPlanner):
    """Decodes values that are no tensors from JSON."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Sets the value in the state dict."""
        path = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, path, _from_json(json.loads(value.read())))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Place of one item in a rank's file, in bytes."""

    file: str
    offset: int
    length: int


class CheckpointFolderWriter(StorageWriter):
    """Writes one checkpoint folder."""

    def __init__(self, path: Path):
        self._path = path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        self._path.mkdir(parents=True, exist_ok=True)
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Names each rank's file."""
        return [dataclasses.replace(plan, storage_data=f"rank-{i}.bin") for i, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's items in order; they are synced to disk when this returns."""
        name: str = plan.storage_data
        results: list[WriteResult] = []
        with (self._path / name).open("wb") as file:
            for item in plan.items:
                block, offset = _encode(planner.resolve_data(item)), file.tell()
                file.write(block)
                place = Slice(file=name, offset=offset, length=len(block))
                results.append(WriteResult(index=item.index, size_in_bytes=len(block), storage_data=place))
            file.flush()
            os.fsync(file.fileno())
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index, which makes the folder a checkpoint."""
        index = {
            "entries": {name: _to_entry(entry) for name, entry in metadata.state_dict_metadata.items()},
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
    """Reads one checkpoint folder."""

    def __init__(self, path: Path):
        self._path = path
        self._slices: Mapping[MetadataIndex, Slice] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._slices = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads the index. Raises OSError; ValueError, TypeError or KeyError for a damaged one."""
        index = json.loads((self._path / INDEX).read_text(encoding="utf-8"))
        return Metadata(
            state_dict_metadata={name: _from_entry(entry) for name, entry in index["entries"].items()},
            storage_data=dict(map(_read_slice, index["slices"])),
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
        """Reads this rank's items. Raises OSError; SafetensorError or ValueError for damaged ones."""
        for name in sorted({self._slices[item.storage_index].file for item in plan.items}):
            with (self._path / name).open("rb") as file:
                for item in plan.items:
                    place = self._slices[item.storage_index]
                    if place.file == name:
                        file.seek(place.offset)
                        _load_item(item, file.read(place.length), planner=planner)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _load_item(item: ReadItem, block: bytes, *, planner: LoadPlanner) -> None:
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, io.BytesIO(block))
        return
    written = narrow_tensor_by_index(read_block(block)[BLOCK], item.storage_offsets, item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.size() != written.size():
        raise ValueError(f"{item.storage_index.fqn}: {tuple(written.size())} is not {tuple(target.size())}")
    target.copy_(written)
    planner.commit_tensor(item, target)


def _encode(value: Tensor | io.BytesIO) -> bytes:
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    return write_block({BLOCK: value.detach().cpu().contiguous()})


def _to_entry(metadata: TensorStorageMetadata | BytesStorageMetadata) -> dict[str, Any] | None:
    """The index entry of a tensor; None for a JSON value."""
    if isinstance(metadata, BytesStorageMetadata):
        return None
    chunks = [[list(chunk.offsets), list(chunk.sizes)] for chunk in metadata.chunks]
    dtype = str(metadata.properties.dtype).removeprefix("torch.")
    return {"dtype": dtype, "size": list(metadata.size), "chunks": chunks}


def _from_entry(entry: Mapping[str, Any] | None) -> TensorStorageMetadata | BytesStorageMetadata:
    if entry is None:
        return BytesStorageMetadata()
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is not a number format")
    chunks = [
        ChunkStorageMetadata(offsets=_size(offsets), sizes=_size(sizes)) for offsets, sizes in entry["chunks"]
    ]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(entry["size"]), chunks)


def _read_slice(row: Sequence[Any]) -> tuple[MetadataIndex, Slice]:
    name, at, file, offset, length = row
    if Path(file).name != file:
        raise ValueError(f"{file!r} is not a file of this folder")
    place = Slice(file=file, offset=int(offset), length=int(length))
    return MetadataIndex(name, None if at is None else _size(at)), place


def _size(numbers: Sequence[Any]) -> torch.Size:
    return torch.Size([int(number) for number in numbers])


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return {TUPLE: [_to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TUPLE}:
            return tuple(_from_json(item) for item in value[TUPLE])
        return {key: _from_json(item) for key, item in value.items()}
    return [_from_json(item) for item in value] if isinstance(value, list) else value


def _done(result: Any) -> Future[Any]:
    future = cast("Future[Any]", Future())
    future.set_result(result)
    return future
