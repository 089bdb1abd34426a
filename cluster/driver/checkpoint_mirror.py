"""Checkpoints on another file system: what a machine that is lost cannot take with it.

A checkpoint is copied behind training once it has its name, and counts there once its mark is written, last.
Any file system of pyarrow or fsspec: no rename, no lock and no order of listings is asked of it.
"""

import json
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import fsspec
import pyarrow as pa
from pyarrow import fs

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.progress import warn
from cluster.run_folder.paths import RunFolder

MARK = ".whole.json"
"""Ends the name of the file that says which files, of how many bytes, a checkpoint has."""
FINISH_TIMEOUT_S = 600.0
"""Longest wait of a run that ends for its last copy."""


class CheckpointMirror:
    """One run's checkpoints at a place. One copy at a time; one that is named while an earlier one is
    copied waits, and where several wait only the newest is copied."""

    def __init__(self, uri: str, *, run: str):
        """Raises `BadInput` for a place that no file system knows."""
        self.num_failed = 0
        """Checkpoints that could not be copied."""
        self._files, root = open_place(uri)
        self._root = f"{root.rstrip('/')}/{run}"
        self._uri = uri
        self._newest: Path | None = None
        self._copying: Future[None] | None = None
        self._waiting: SimpleQueue[tuple[Path, int, Future[None]]] = SimpleQueue()
        # A daemon: a place that hangs does not keep the process.
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def copy(self, checkpoint: Path, *, keep: int) -> None:
        """Begins to copy a named checkpoint; then only the newest `keep` stay. Returns at once."""
        self._newest, self._copying = checkpoint, Future()
        self._waiting.put((checkpoint, keep, self._copying))

    def finish(self, *, timeout_s: float = FINISH_TIMEOUT_S) -> None:
        """Waits for what is being copied. What takes longer is said and counted, and not there."""
        if self._copying is None:
            return
        done, _ = wait([self._copying], timeout=timeout_s)
        if done:
            self._copying.result()
        else:
            self.num_failed += 1
            warn(f"{self._uri}: the last checkpoint was not copied within {timeout_s:g} s: it is here")

    def steps(self) -> list[int]:
        """Steps of whole checkpoints, ascending. Raises OSError."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        names = [info.base_name for info in self._files.get_file_info(selector)]
        marks = [name.removesuffix(MARK).removeprefix("step-") for name in names if name.endswith(MARK)]
        return sorted(int(step) for step in marks if step.isdecimal())

    def fetch(self, folder: RunFolder) -> int | None:
        """Brings the newest whole checkpoint into a run folder that has none; its step, None where there is
        none here either. Raises OSError."""
        for step in reversed(self.steps()):
            name = f"step-{step:05d}"
            partial = folder.begin_checkpoint(step)
            sizes: dict[str, int] = json.loads(self._read(f"{self._root}/{name}{MARK}"))
            for relative, size in sizes.items():
                target = partial / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._read(f"{self._root}/{name}/{relative}"))
                if target.stat().st_size != size:
                    break
            else:
                folder.complete_checkpoint(step)
                return step
            warn(f"{self._uri}: {name} is not what its mark says: an earlier one is taken")
        return None

    def _work(self) -> None:
        """One copy after the other, for ever."""
        while True:
            checkpoint, keep, copied = self._waiting.get()
            try:
                self._copy(checkpoint, keep)
            except Exception as error:  # `finish` raises it
                copied.set_exception(error)
            else:
                copied.set_result(None)

    def _copy(self, checkpoint: Path, keep: int) -> None:
        if checkpoint != self._newest:
            return
        try:
            self._copy_whole(checkpoint)
            for step in self.steps()[:-keep]:
                self._delete(f"step-{step:05d}")
        except (OSError, pa.ArrowException) as error:
            self.num_failed += 1
            warn(f"{self._uri}: {checkpoint.name} was not copied: {error}; training goes on")

    def _copy_whole(self, checkpoint: Path) -> None:
        paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
        sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in paths}
        for relative in sizes:
            target = f"{self._root}/{checkpoint.name}/{relative}"
            self._files.create_dir(target.rpartition("/")[0], recursive=True)
            fs.copy_files(
                str(checkpoint / relative),
                target,
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self._files,
            )
        with self._files.open_output_stream(f"{self._root}/{checkpoint.name}{MARK}") as mark:
            mark.write(json.dumps(sizes).encode())

    def _delete(self, name: str) -> None:
        """Takes the mark first: what is half deleted must not pass for whole."""
        self._files.delete_file(f"{self._root}/{name}{MARK}")
        self._files.delete_dir(f"{self._root}/{name}")

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as stream:
            return stream.read()


def mirror_of(config: RunConfig) -> CheckpointMirror | None:
    """The run's, where its recipe names one. Raises `BadInput`."""
    place = config.checkpoint.mirror
    return CheckpointMirror(place, run=config.run.name) if place else None


def open_place(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a place and the path there: pyarrow's own, or fsspec's. Raises `BadInput`."""
    with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return fs.FileSystem.from_uri(uri)
    try:
        files, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"checkpoint.mirror={uri!r}: no file system knows this place ({' '.join(str(error).split())}): "
            "give one such as s3://bucket/folder or file:///mnt/folder"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(files)), path
