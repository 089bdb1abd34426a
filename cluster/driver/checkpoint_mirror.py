"""Copies of checkpoints on another file system, for runs whose machine is lost.

A checkpoint is copied in parallel with training once it has its name, and is valid there once its manifest is
written, last. Any file system of pyarrow or fsspec will do: no renames, locks or ordered listings are needed.
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
from cluster.console.log import warn
from cluster.run_folder.paths import RunFolder

MANIFEST = ".whole.json"
"""Suffix of the manifest: the files of a checkpoint with their sizes in bytes."""
FINISH_TIMEOUT_S = 600.0
"""Longest wait of a run that ends for its last copy."""


class CheckpointMirror:
    """One run's checkpoints at one location. Copies are made one at a time; of several that wait only the
    newest is copied."""

    def __init__(self, uri: str, *, run: str):
        """Raises `BadInput` for a URI that no file system knows."""
        self.num_failed = 0
        """Checkpoints that could not be copied."""
        self._files, root = open_location(uri)
        self._root = f"{root.rstrip('/')}/{run}"
        self._uri = uri
        self._newest: Path | None = None
        self._copying: Future[None] | None = None
        self._waiting: SimpleQueue[tuple[Path, int, Future[None]]] = SimpleQueue()
        # A daemon: a file system that hangs does not keep the process alive.
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def copy(self, checkpoint: Path, *, keep: int) -> None:
        """Begins to copy a complete checkpoint, after which only the newest `keep` stay. Returns at once."""
        self._newest, self._copying = checkpoint, Future()
        self._waiting.put((checkpoint, keep, self._copying))

    def finish(self, *, timeout_s: float = FINISH_TIMEOUT_S) -> None:
        """Waits for the last copy. One that takes longer is reported and counted as failed."""
        if self._copying is None:
            return
        done, _ = wait([self._copying], timeout=timeout_s)
        if done:
            self._copying.result()
        else:
            self.num_failed += 1
            warn(
                f"{self._uri}: the last checkpoint was not copied within {timeout_s:g} s: "
                "it is in the run folder only"
            )

    def steps(self) -> list[int]:
        """Steps of valid checkpoints, ascending. Raises OSError."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        names = [info.base_name for info in self._files.get_file_info(selector)]
        steps = [
            name.removesuffix(MANIFEST).removeprefix("step-") for name in names if name.endswith(MANIFEST)
        ]
        return sorted(int(step) for step in steps if step.isdecimal())

    def fetch(self, folder: RunFolder) -> int | None:
        """Brings the newest valid checkpoint into a run folder that has none: returns its step, None if there
        is none here either. Raises OSError."""
        for step in reversed(self.steps()):
            name = f"step-{step:05d}"
            partial = folder.begin_checkpoint(step)
            sizes: dict[str, int] = json.loads(self._read(f"{self._root}/{name}{MANIFEST}"))
            for relative, size in sizes.items():
                target = partial / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._read(f"{self._root}/{name}/{relative}"))
                if target.stat().st_size != size:
                    break
            else:
                folder.complete_checkpoint(step)
                return step
            warn(f"{self._uri}: {name} does not match its manifest: an earlier one is taken")
        return None

    def _work(self) -> None:
        """The thread: one copy after the other."""
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
            self._copy_files(checkpoint)
            for step in self.steps()[:-keep]:
                self._delete(f"step-{step:05d}")
        except (OSError, pa.ArrowException) as error:
            self.num_failed += 1
            warn(f"{self._uri}: {checkpoint.name} was not copied: {error}; training continues")

    def _copy_files(self, checkpoint: Path) -> None:
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
        with self._files.open_output_stream(f"{self._root}/{checkpoint.name}{MANIFEST}") as manifest:
            manifest.write(json.dumps(sizes).encode())

    def _delete(self, name: str) -> None:
        """Deletes the manifest first: a half-deleted checkpoint must not count as valid."""
        self._files.delete_file(f"{self._root}/{name}{MANIFEST}")
        self._files.delete_dir(f"{self._root}/{name}")

    def _read(self, path: str) -> bytes:
        with self._files.open_input_stream(path) as stream:
            return stream.read()


def mirror_of(config: RunConfig) -> CheckpointMirror | None:
    """The run's mirror; None if its recipe names none. Raises `BadInput`."""
    uri = config.checkpoint.mirror
    return CheckpointMirror(uri, run=config.run.name) if uri else None


def open_location(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, pyarrow's own or fsspec's, and the path on it. Raises `BadInput`."""
    with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return fs.FileSystem.from_uri(uri)
    try:
        files, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise BadInput(
            f"checkpoint.mirror={uri!r}: no file system knows it ({' '.join(str(error).split())}): "
            "give one such as s3://bucket/folder or file:///mnt/folder"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(files)), path
