"""A checkpoint gets its name once it is complete; one that fails leaves the others as they are."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.driver.checkpoints import RECIPE, Checkpoints, DriverState
from cluster.run_folder.paths import RunFolder
from cluster.workers.learner_pool import LearnerPool, SaveError
from cluster.workers.learner_rpc import LearnerError


class SlowLearners:
    """Finish writing after `num_polls` polls, or never."""

    def __init__(self, *, num_polls: int = 1, error: Exception | None = None):
        self.num_polls = num_polls
        self.error = error
        self.save_error: OSError | None = None
        self.bases: list[tuple[Path, int]] = []
        self.num_steps_to_replay = 0

    def save(self, folder: Path) -> int:
        if self.save_error is not None:
            raise self.save_error
        folder.mkdir()
        (folder / "weights").write_text("1")
        return 7

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
    return folder, Checkpoints(folder, recipe="seed = 1", keep=2, learners=cast(LearnerPool, learners))


def state_at(step: int) -> DriverState:
    return DriverState(
        policy_version=step,
        num_sft_steps=50,
        cold_started=True,
        iteration=3,
        buffer={"open_orders": [{"seed": 1}], "journal": {"first": 0}},
    )


def test_a_checkpoint_gets_its_name_when_every_learner_is_done(tmp_path: Path) -> None:
    learners = SlowLearners(num_polls=2)
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(state_at(10))
    checkpoints.complete(wait=False)
    assert folder.latest_step is None and learners.bases == []
    checkpoints.complete(wait=False)
    assert folder.latest_step == 10
    assert learners.bases == [(folder.checkpoint(10) / "learner", 7)]
    checkpoints.complete(wait=True)
    assert len(learners.bases) == 1


def test_a_checkpoint_begins_after_the_one_before_is_complete(tmp_path: Path) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(state_at(10))
    checkpoints.begin(state_at(20))
    assert folder.latest_step == 10
    checkpoints.complete(wait=True)
    assert folder.latest_step == 20


@pytest.mark.parametrize("where", ["driver", "learner"])
def test_a_full_disk_is_reported_and_counted_and_the_checkpoint_before_stays(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    learners = SlowLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(state_at(10))
    checkpoints.complete(wait=True)

    learners.save_error = OSError(28, "No space left on device") if where == "driver" else None
    checkpoints.begin(state_at(20))
    learners.save_error = None
    if where == "learner":
        learners.error = SaveError("learner 1: [Errno 28] No space left on device")
    checkpoints.complete(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (10, 1)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00010"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "step 20 was not written" in line and "No space left" in line and "step 10 stays" in line
    learners.error = None
    checkpoints.begin(state_at(30))
    checkpoints.complete(wait=True)
    assert folder.latest_step == 30


def test_a_checkpoint_with_a_score_is_kept_as_the_best_once_it_is_complete(tmp_path: Path) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(state_at(10), score=0.5)
    assert folder.best is None
    checkpoints.complete(wait=True)
    assert folder.best is not None
    assert (folder.best.step, folder.best.score) == (10, 0.5)


@pytest.mark.parametrize("refused", ["keep_best", "keep_newest"])
def test_a_disk_error_after_the_naming_leaves_a_good_checkpoint(
    tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learners = SlowLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)

    def refuse(*args: object, **settings: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder, refused, refuse)
    checkpoints.begin(state_at(10), score=0.5)
    checkpoints.complete(wait=True)
    assert (folder.latest_step, checkpoints.num_failed) == (10, 0)
    assert learners.bases == [(folder.checkpoint(10) / "learner", 7)], "new learners start from it"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint of step 10 is written, but ") and line.endswith(
        "Read-only file system"
    )


def test_an_ending_run_names_a_complete_checkpoint_and_waits_for_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners())
    checkpoints.begin(state_at(10))
    checkpoints.close()
    assert folder.latest_step == 10
    learners: Any = SlowLearners(error=LearnerError("learner 0 failed"))
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(state_at(20))
    checkpoints.close()
    assert folder.latest_step == 10
    assert "is incomplete: learner 0 failed" in capsys.readouterr().err
    folder, checkpoints = checkpoints_at(tmp_path, SlowLearners(num_polls=99))
    checkpoints.begin(state_at(20))
    checkpoints.close()
    assert folder.latest_step == 10
    assert "is incomplete: the learners have not finished writing it" in capsys.readouterr().err


def test_the_drivers_part_of_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    _, checkpoints = checkpoints_at(tmp_path, SlowLearners())
    checkpoints.save(tmp_path / "checkpoint", state_at(12))
    assert checkpoints.read(tmp_path / "checkpoint") == state_at(12)
    assert (tmp_path / "checkpoint" / RECIPE).read_text() == "seed = 1"
    assert set(json.loads((tmp_path / "checkpoint" / "driver.json").read_text())) == {
        *("policy_version", "num_sft_steps", "cold_started", "iteration", "buffer")
    }


def test_saving_raises_oserror_if_a_learner_cannot_write(tmp_path: Path) -> None:
    _, checkpoints = checkpoints_at(tmp_path, SlowLearners(error=SaveError("learner 1: no space")))
    with pytest.raises(OSError, match="learner 1: no space"):
        checkpoints.save(tmp_path / "checkpoint", state_at(12))


def test_a_checkpoint_is_overdue_after_two_intervals_without_one(tmp_path: Path) -> None:
    learners = SlowLearners()
    folder, checkpoints = checkpoints_at(tmp_path, learners)
    checkpoints.begin(state_at(10))
    assert [checkpoints.is_overdue(every_steps=5) for learners.num_steps_to_replay in (9, 10)] == [
        False,
        True,
    ]
    assert folder.latest_step == 10, "and the pending one was named"
