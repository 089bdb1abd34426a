"""The run folder: its states, and atomic files and checkpoints."""

import json
from pathlib import Path

import pytest

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.evaluation.metrics import DialogueOutcome
from cluster.evaluation.results import evaluation_rows, write_rows
from cluster.run_folder.atomic_files import replace_folder, write_whole
from cluster.run_folder.paths import STATE_FILE, RunFolder


def folder_at(path: Path) -> RunFolder:
    folder = RunFolder(path / "run")
    folder.create(RunConfig())
    return folder


def save(folder: RunFolder, step: int, *, keep: int = 2) -> None:
    partial = folder.begin_checkpoint(step)
    for name in ("weights", STATE_FILE):
        (partial / name).write_text(str(step))
    folder.complete_checkpoint(step)
    folder.keep_newest(keep, and_step=step)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_a_run_is_fresh_then_stopped_then_finished(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "run").state(num_steps=2) == "fresh"
    folder = folder_at(tmp_path)
    assert folder.state(num_steps=2) == "stopped"
    save(folder, 2)
    outcome = DialogueOutcome(gym="function", task_id="task", score=1.0, num_turns=3)
    write_rows(folder.evaluation, evaluation_rows([outcome], stage="grpo", seed=0))
    assert folder.state(num_steps=2) == "stopped"
    folder.model.mkdir()
    (folder.model / "config.json").touch()
    assert folder.state(num_steps=2) == "finished"
    assert folder.state(num_steps=3) == "stopped"
    folder.keep_best(2, score=0.5)
    assert folder.state(num_steps=2) == "stopped", "the best model is still to be written"
    folder.best_model.mkdir()
    (folder.best_model / "config.json").touch()
    assert folder.state(num_steps=2) == "finished"


def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    assert folder.latest_step is None
    save(folder, 10)
    (folder.begin_checkpoint(20) / "weights").write_text("half of it")
    assert folder.latest_step == 10
    save(folder, 30)
    assert names(folder) == ["step-00010", "step-00030"]


def test_only_the_newest_checkpoints_are_kept_and_one_can_be_rewritten(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for step in (0, 10, 20, 20):
        save(folder, step)
    assert names(folder) == ["step-00010", "step-00020"]
    assert (folder.checkpoint(20) / "weights").read_text() == "20"


def test_the_last_written_checkpoint_is_kept_even_if_it_is_of_an_earlier_step(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for step in (20, 30, 11):
        save(folder, step)
    assert names(folder) == ["step-00011", "step-00020", "step-00030"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_crash_while_a_checkpoint_is_rewritten_leaves_the_old_one(
    tmp_path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_at(tmp_path)
    save(folder, 0)
    (folder.begin_checkpoint(0) / "weights").write_text("again")
    rename, done = Path.rename, []

    def rename_then_crash(path: Path, target: Path) -> Path:
        result = rename(path, target)
        done.append(target)
        if len(done) == renames:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename_then_crash)
        folder.complete_checkpoint(0)
    folder.clear_partial()
    assert folder.latest_step == 0
    assert (folder.checkpoint(0) / "weights").read_text() == ("0" if renames == 1 else "again")
    save(folder, 0)
    assert names(folder) == ["step-00000"]


def test_a_half_deleted_checkpoint_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(tmp_path)
    save(folder, 10)

    def crash(path: Path, **_: object) -> None:
        (path / "weights").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cluster.run_folder.paths.shutil.rmtree", crash)
        (folder.checkpoints / "step-00020").mkdir()
        folder.keep_newest(1, and_step=20)
    assert names(folder) == ["partial-step-00010", "step-00020"]
    folder.clear_partial()
    assert names(folder) == ["step-00020"]


def test_the_best_checkpoint_outlives_the_newest_and_costs_no_second_copy(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    assert folder.best is None
    save(folder, 10, keep=1)
    folder.keep_best(10, score=0.5)
    assert folder.is_best(10)
    files = [folder.best.path / "weights", folder.checkpoint(10) / "weights"] if folder.best else []
    assert len({path.stat().st_ino for path in files}) == 1
    save(folder, 20, keep=1)
    assert names(folder) == ["best-00010", "step-00020"]
    best = RunFolder(folder.path).best  # as a resumed run sees it
    assert best is not None
    assert (best.step, best.score, best.split) == (10, 0.5, "validation")
    assert (best.path / "weights").read_text() == "10"
    assert not folder.is_best(20)
    folder.keep_best(20, score=0.75)
    assert names(folder) == ["best-00020", "step-00020"]


def test_a_second_best_that_a_crash_left_behind_does_not_count(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    for step, score in ((10, 0.5), (20, 0.75)):
        save(folder, step)
        folder.keep_best(step, score=score)
        (folder.checkpoints / f"best-{step:05d}").rename(folder.path / f"{step}")
    for step in (10, 20):
        (folder.path / f"{step}").rename(folder.checkpoints / f"best-{step:05d}")
    assert folder.best is not None and folder.best.step == 20


def test_a_complete_folder_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        partial = tmp_path / "partial"
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "file").write_text(text)
        replace_folder(tmp_path / "final", partial)
        assert (tmp_path / "final" / "inner" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_resolved_recipe_is_in_the_folder(tmp_path: Path) -> None:
    assert load(folder_at(tmp_path).config) == RunConfig()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.locked(), pytest.raises(BadInput, match="another process trains here"), second.locked():
        pass
    with second.locked():
        pass


def test_a_file_is_written_completely_or_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"


def test_the_resume_point_changes_whenever_the_run_progresses(tmp_path: Path) -> None:
    folder, places = RunFolder(tmp_path), list[str]()
    places.append(folder.resume_point)
    folder.demonstrations.mkdir()
    for name in ("000000-01", "000256-01", "000256-02"):  # the last is what failed, once more
        (folder.demonstrations / f"{name}.parquet").touch()
        places.append(folder.resume_point)
    for step, num_sft_steps, cold_started in (
        (0, 50, False),
        (0, 100, False),
        (0, 120, True),
        (10, 120, True),
    ):
        state = {"num_sft_steps": num_sft_steps, "cold_started": cold_started}
        (folder.begin_checkpoint(step) / STATE_FILE).write_text(json.dumps(state))
        folder.complete_checkpoint(step)
        places.append(folder.resume_point)
    assert places == [
        "its beginning",
        "demonstrations, file 1",
        "demonstrations, file 2",
        "demonstrations, file 2",
        "SFT step 50",
        "SFT step 100",
        "step 0",
        "step 10",
    ]
