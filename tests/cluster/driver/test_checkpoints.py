"""Checkpoints are named when they are whole; one that fails costs nothing but itself."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.driver.checkpoints import Checkpoints, DriverState
from cluster.run_folder.paths import RunFolder
from cluster.workers.learner_pool import LearnerPool, SaveError
from cluster.workers.learner_rpc import LearnerError


class SlowLearners:
    """Written after `num_polls` questions, or never."""

    def __init__(self, *, num_polls: int = 1, error: Exception | None = None):
        self.num_polls = num_polls
        self.error = error
        self.bases: list[tuple[Path, int]] = []
        self.num_steps_to_replay = 0

    def saved(self, *, wait: bool) -> bool:
        if self.error is not None:
            raise self.error
        self.num_polls = 0 if wait else self.num_polls - 1
        return self.num_polls <= 0

    def rebase(self, checkpoint: Path, *, moment: int) -> None:
        assert checkpoint.parent.is_dir()
        self.bases.append((checkpoint, moment))


def checkpoints_at(path: Path, learners: SlowLearners) -> tuple[RunFolder, Checkpoints]:
    folder = RunFolder(path)
    return folder, Checkpoints(folder, keep=2, learners=cast(LearnerPool, learners))


def write(path: Path) -> int:
    (path / "weights").write_text("1")
    return 7


def test_a_checkpoint_gets_its_name_when_every_learner_is_done(tmp_path: Path) -> None:
    learners = SlowLearners(num_polls=2)
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(10, write=write)
    checkpoints.settle(wait=False)
    assert folder.latest_step is None and learners.bases == []
    checkpoints.settle(wait=False)
    assert folder.latest_step == 10
    assert learners.bases == [(folder.checkpoint(10) / "learner", 7)]
    checkpoints.settle(wait=True)
    assert len(learners.bases) == 1


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(10, write=write)
    checkpoints.begin(20, write=write)
    assert folder.latest_step == 10
    checkpoints.settle(wait=True)
    assert folder.latest_step == 20


@pytest.mark.parametrize("where", ["driver", "learner"])
def test_a_full_disk_is_said_and_counted_and_the_checkpoint_before_stays(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    learners = SlowLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(10, write=write)
    checkpoints.settle(wait=True)

    def write_on_full_disk(path: Path) -> int:
        write(path)
        raise OSError(28, "No space left on device")

    if where == "driver":
        checkpoints.begin(20, write=write_on_full_disk)
    else:
        checkpoints.begin(20, write=write)
        learners.error = SaveError("learner 1: [Errno 28] No space left on device")
    checkpoints.settle(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (10, 1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00010"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "step 20 was not written" in line and "No space left" in line and "step 10 stays" in line
    learners.error = None
    checkpoints.begin(30, write=write)
    checkpoints.settle(wait=True)
    assert folder.latest_step == 30


def test_a_score_makes_it_the_best_once_it_is_whole(tmp_path: Path) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(10, write=write, score=0.5)
    assert folder.best is None
    checkpoints.settle(wait=True)
    assert folder.best is not None
    assert (folder.best.step, folder.best.score) == (10, 0.5)


@pytest.mark.parametrize("refused", ["keep_best", "keep_newest"])
def test_a_disk_that_refuses_what_comes_after_the_name_leaves_a_good_checkpoint(
    tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learners = SlowLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)

    def refuse(*args: object, **settings: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder, refused, refuse)
    checkpoints.begin(10, write=write, score=0.5)
    checkpoints.settle(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (10, 0)
    assert learners.bases == [(folder.checkpoint(10) / "learner", 7)], "new learners start from it"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint of step 10 is written, but ") and line.endswith(
        "Read-only file system"
    )


def test_an_ending_run_names_what_is_written_and_waits_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners())
    checkpoints.begin(10, write=write)
    checkpoints.close()
    assert folder.latest_step == 10
    learners: Any = SlowLearners(error=LearnerError("learner 0 failed"))
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(20, write=write)
    checkpoints.close()
    assert folder.latest_step == 10
    assert "not named: learner 0 failed" in capsys.readouterr().err
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(20, write=write)
    checkpoints.close()
    assert folder.latest_step == 10
    assert "not named: the learners have not said that it is whole" in capsys.readouterr().err


STATE = DriverState(
    policy_version=12, num_sft_steps=50, cold_started=True, iteration=3, buffer={"open_orders": [{"seed": 1}]}
)


class SavingLearners(SlowLearners):
    def save(self, folder: Path) -> int:
        folder.mkdir()
        (folder / "weights").write_text("1")
        return 7


def test_the_drivers_part_of_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    _, checkpoints = checkpoints_at(tmp_path, SavingLearners())
    assert checkpoints.write(tmp_path, STATE) == 7
    assert checkpoints.read(tmp_path) == STATE
    assert set(json.loads((tmp_path / "driver.json").read_text())) == {
        *("policy_version", "num_sft_steps", "cold_started", "iteration", "buffer")
    }


def test_a_checkpoint_that_a_learner_cannot_write_is_an_error_of_the_disk(tmp_path: Path) -> None:
    _, checkpoints = checkpoints_at(tmp_path, SavingLearners(error=SaveError("learner 1: no space")))
    with pytest.raises(OSError, match="learner 1: no space"):
        checkpoints.write_whole(tmp_path, STATE)


def test_who_only_trains_gets_checkpoints_all_the_same(tmp_path: Path) -> None:
    learners = SavingLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(10, write=write)
    assert [checkpoints.keep_up(every_steps=5) for learners.num_steps_to_replay in (9, 10)] == [False, True]
    assert folder.latest_step == 10, "and what was begun has its name"
