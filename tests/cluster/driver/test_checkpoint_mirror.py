"""Checkpoints are copied to another file system completely or not at all, whatever the file system."""

import threading
from pathlib import Path

import fsspec
import pytest

from cluster.config.recipe import BadInput
from cluster.driver.checkpoint_mirror import MANIFEST, CheckpointMirror, open_location
from cluster.run_folder.paths import RunFolder


def make_checkpoint(folder: RunFolder, step: int) -> Path:
    partial = folder.begin_checkpoint(step)
    (partial / "learner").mkdir()
    (partial / "learner" / "index.json").write_bytes(b"meta")
    (partial / "learner" / "rank-0.bin").write_bytes(bytes([step]) * 1000)
    (partial / "driver.json").write_text("{}")
    return folder.complete_checkpoint(step)


def content(path: Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def uris(tmp_path: Path) -> dict[str, str]:
    """One of pyarrow's own file systems, and one that only fsspec knows."""
    return {"pyarrow": f"file://{tmp_path}/mirror", "fsspec": f"memory://{tmp_path.name}"}


@pytest.mark.parametrize("kind", ["pyarrow", "fsspec"])
def test_a_new_machine_gets_the_newest_complete_checkpoint(tmp_path: Path, kind: str) -> None:
    mirror, first = CheckpointMirror(uris(tmp_path)[kind], run="a"), RunFolder(tmp_path / "first")
    for step in (10, 20, 30):
        mirror.copy(make_checkpoint(first, step), keep=2)
        mirror.finish()
    assert mirror.steps() == [20, 30] and mirror.num_failed == 0
    second = RunFolder(tmp_path / "second")
    assert CheckpointMirror(uris(tmp_path)[kind], run="a").fetch(second) == 30
    assert content(second.checkpoint(30)) == content(first.checkpoint(30))
    assert CheckpointMirror(uris(tmp_path)[kind], run="b").fetch(RunFolder(tmp_path / "third")) is None


@pytest.mark.parametrize("kind", ["pyarrow", "fsspec"])
def test_a_checkpoint_without_its_manifest_or_of_other_sizes_is_invalid(tmp_path: Path, kind: str) -> None:
    uri, folder = uris(tmp_path)[kind], RunFolder(tmp_path / "run")
    mirror = CheckpointMirror(uri, run="a")
    for step in (1, 2, 3):
        mirror.copy(make_checkpoint(folder, step), keep=9)
        mirror.finish()
    files, root = fsspec.core.url_to_fs(uri)
    files.rm(f"{root}/a/step-00003{MANIFEST}")
    files.pipe_file(f"{root}/a/step-00002/learner/rank-0.bin", b"half")
    assert mirror.steps() == [1, 2]
    assert mirror.fetch(RunFolder(tmp_path / "new")) == 1


def test_a_file_system_that_fails_is_reported_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror").write_text("a file where a folder should be")
    mirror = CheckpointMirror(f"file://{tmp_path}/mirror", run="a")
    mirror.copy(make_checkpoint(RunFolder(tmp_path / "run"), 1), keep=2)
    mirror.finish()
    assert mirror.num_failed == 1
    assert "step-00001 was not copied" in capsys.readouterr().err


class HangingMirror(CheckpointMirror):
    """Its file system hangs until `released` is set."""

    released = threading.Event()

    def _copy_files(self, checkpoint: Path) -> None:
        self.released.wait()
        super()._copy_files(checkpoint)


def test_a_file_system_that_hangs_does_not_delay_the_end_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = HangingMirror(f"file://{tmp_path}/mirror", run="a")
    mirror.copy(make_checkpoint(RunFolder(tmp_path / "run"), 1), keep=2)
    mirror.finish(timeout_s=0.05)
    assert mirror.num_failed == 1 and mirror.steps() == []
    assert "the last checkpoint was not copied within 0.05 s" in capsys.readouterr().err
    mirror.released.set()
    mirror.finish()
    assert mirror.steps() == [1]


def test_an_unknown_file_system_is_refused_in_one_line() -> None:
    with pytest.raises(BadInput, match="no file system knows it") as error:
        open_location("nowhere://bucket")
    assert "\n" not in str(error.value)
