"""Atomic writes of files and folders: a reader, or a restart after a crash, finds the old or the new content,
never a part."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

OLD = "-old"
"""Suffix of a folder that `replace_folder` is about to delete."""


def write_whole(path: Path, text: str) -> None:
    """Writes a file atomically and durably."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_folder(final: Path, write: Callable[[Path], None]) -> Path:
    """Calls `write` with a temporary folder, then gives that folder its final name."""
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    replace_folder(final, partial)
    return final


def replace_folder(final: Path, partial: Path) -> None:
    """Renames a complete folder to `final`, replacing what is there. After a crash either one has the name,
    or the old one has it with `OLD` appended."""
    old = final.with_name(f"{final.name}{OLD}")
    for path in (*partial.rglob("*"), partial):
        _fsync(path)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    partial.rename(final)
    _fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def without_old(path: Path) -> Path:
    """The final name of a folder that may have `OLD` appended."""
    return path.with_name(path.name.removesuffix(OLD))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
