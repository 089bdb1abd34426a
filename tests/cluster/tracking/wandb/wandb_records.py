"""Records of an offline W&B run, read with W&B's own reader."""

import json
from typing import Any

from cluster.run_folder.paths import RunFolder
from cluster.tracking.wandb.internals import parts_of, read_part


def records(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """Records of this kind in all files of the W&B run, in order."""
    parts = parts_of(folder.wandb, run_id=(folder.wandb / "run_id").read_text())
    return [record[kind] for part in parts for record in read_part(part) if record["type"] == kind]


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [history["item"] for history in records(folder, "history")]


def numbers(folder: RunFolder) -> list[int]:
    return [history["step"]["num"] for history in records(folder, "history")]


def table(folder: RunFolder, path: str) -> list[dict[str, Any]]:
    """The rows of a table by column."""
    (file,) = folder.wandb.glob(f"*run-*/files/{path}")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
