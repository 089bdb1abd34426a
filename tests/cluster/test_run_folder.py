"""The run folder knows fresh, stopped and finished, and never takes half a file for a whole one."""

from pathlib import Path

import pytest

from cluster.config import RunConfig, load
from cluster.recipe import BadInput
from cluster.results import evaluation_rows, write_rows
from cluster.run_folder import RunFolder, write_whole
from cluster.scores import Outcome


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(path / "run")
    folder.create(RunConfig())
    return folder


def write_model(path: Path) -> None:
    (path / "weights").write_text("1")


def test_a_run_is_fresh_then_stopped_then_finished(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "run").state(num_steps=2) == "fresh"
    folder = folder_at(tmp_path)
    assert folder.state(num_steps=2) == "stopped"
    folder.save_checkpoint(2, write=write_model, keep=2)
    outcome = Outcome(gym="function", task_id="task", score=1.0, num_turns=3)
    write_rows(folder.evaluation, evaluation_rows([outcome], stage="grpo", seed=0))
    assert folder.state(num_steps=2) == "stopped"
    folder.model.mkdir()
    (folder.model / "config.json").touch()
    assert folder.state(num_steps=2) == "finished"
    assert folder.state(num_steps=3) == "stopped"


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    assert folder.latest_step is None
    folder.save_checkpoint(10, write=write_model, keep=2)

    def write_half(path: Path) -> None:
        write_model(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.save_checkpoint(20, write=write_half, keep=2)
    assert folder.latest_step == 10
    folder.save_checkpoint(30, write=write_model, keep=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00010", "step-00030"]


def test_only_the_newest_checkpoints_are_kept_and_one_can_be_written_again(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for step in (0, 10, 20, 20):
        folder.save_checkpoint(step, write=write_model, keep=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00010", "step-00020"]
    assert (folder.checkpoint(20) / "weights").read_text() == "1"


def test_the_resolved_recipe_lies_in_the_folder(tmp_path: Path) -> None:
    assert load(folder_at(tmp_path).config) == RunConfig()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked(), pytest.raises(BadInput, match="another process trains here"), second.locked():
        pass
    with second.locked():
        pass


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
