"""Code snapshot: the five rooms as one ZIP archive, the same bytes for the same code.

Sent along with jobs, and kept by W&B for each run."""

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOMS = ("simulators", "actors", "rewards", "learners", "cluster")
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every file's time: the same content is the same archive, which Ray then does not send again."""


def write_rooms(target: Path) -> None:
    """Writes the five rooms, and nothing else, as the same bytes for the same code."""
    root = Path(__file__).resolve().parent.parent.parent
    write_archive(
        target,
        {path.relative_to(root).as_posix(): path for room in ROOMS for path in files_below(root / room)},
    )


def write_archive(target: Path, files: Mapping[str, Path]) -> None:
    """Writes `files`, by their names in the archive."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as package:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            package.writestr(entry, path.read_bytes())


def files_below(place: Path) -> Iterator[Path]:
    """All files of a folder and its folders but Python's caches, or the one file that `place` is."""
    if place.is_file():
        yield place
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (Path(folder, name) for name in names)
