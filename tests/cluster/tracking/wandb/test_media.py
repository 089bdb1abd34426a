"""Media of a step for W&B, whose file is written after its metrics, and may be late or missing."""

import threading
import time
from pathlib import Path

import pytest

from cluster.tracking.wandb import media
from cluster.tracking.wandb.history import step_entry
from cluster.tracking.wandb.media import MediaBuilder
from tests.cluster.sample_run_folders import make_run


@pytest.mark.medium
def test_a_late_file_costs_the_media_of_its_step_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "ARCHIVE_TIMEOUT_S", 1.0)
    folder = make_run(tmp_path / "run", num_steps=2)
    file = folder.trajectories / "step-00002.parquet"
    unfinished = file.rename(file.with_suffix(".partial"))
    media_of_run = MediaBuilder(folder, most_dialogues=8)
    with pytest.raises(FileNotFoundError, match=r"step-00002\.parquet was not written in time"):
        media_of_run.build(step_entry(2, metrics={}))
    threading.Timer(0.1, unfinished.rename, [file.with_name("step-00003.parquet")]).start()
    assert "rollout/dialogues" in media_of_run.build(step_entry(3, metrics={})), "behind its numbers, as ever"


def test_a_file_that_later_ones_have_overtaken_is_not_waited_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", num_steps=6)
    (folder.trajectories / "step-00002.parquet").unlink()
    media_of_run = MediaBuilder(folder, most_dialogues=8)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        media_of_run.build(step_entry(2, metrics={}))
    assert time.monotonic() - began < 0.5 * media.ARCHIVE_TIMEOUT_S
    assert "rollout/dialogues" in media_of_run.build(step_entry(3, metrics={}))
