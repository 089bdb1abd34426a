"""The history makes new learners into what the old ones were, and forgets what a checkpoint holds."""

from pathlib import Path
from typing import Any

import pytest

from cluster.workers.learner_replay import LearnerCall, LearnerReplay, ReplayError, TrainingStage


class NamedLearner:
    """Remembers what it was asked, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def load(self, path: str) -> None:
        self.did = [f"load {path}"]


def do(name: str) -> Any:
    return lambda learner: learner.did.append(name)


def add(history: LearnerReplay, *names: str, stage: TrainingStage = "grpo") -> None:
    for name in names:
        history.add(LearnerCall(stage=stage, work=do(name)))


def replayed(history: LearnerReplay) -> list[str]:
    learner = NamedLearner()
    for work in history.replay():
        work(learner)
    return learner.did


def test_without_a_checkpoint_everything_is_done_again_in_order() -> None:
    history = LearnerReplay(most_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", "sft 10", stage="sft")
    add(history, "step 0", "step 1")
    assert replayed(history) == ["demonstrations", "sft 0", "sft 10", "step 0", "step 1"]


def test_a_checkpoint_takes_the_place_of_what_came_before_it_and_of_nothing_after() -> None:
    history = LearnerReplay(most_steps=10)
    add(history, "step 0", "step 1")
    moment = history.moment
    add(history, "step 2")  # while the checkpoint is written
    assert replayed(history) == ["step 0", "step 1", "step 2"]
    history.rebase(Path("c"), moment=moment)
    assert replayed(history) == ["load c", "step 2"]
    assert history.num_steps == 1


def test_demonstrations_are_kept_for_as_long_as_sft_steps_may_come() -> None:
    history = LearnerReplay(most_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", stage="sft")
    history.rebase(Path("c"), moment=history.moment)
    assert replayed(history) == ["load c", "demonstrations"]
    add(history, "sft 10", stage="sft")
    add(history, "step 0")
    assert replayed(history) == ["load c", "demonstrations", "sft 10", "step 0"]
    history.rebase(Path("d"), moment=history.moment - 1)
    assert replayed(history) == ["load d", "step 0"]


def test_demonstrations_are_forgotten_when_grpo_begins_after_a_checkpoint() -> None:
    history = LearnerReplay(most_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", stage="sft")
    history.rebase(Path("c"), moment=history.moment)
    add(history, "step 0")
    assert replayed(history) == ["load c", "step 0"]


def test_a_loaded_checkpoint_ends_what_was_before() -> None:
    history = LearnerReplay(most_steps=10)
    add(history, "step 0")
    history.restart(Path("c"))
    add(history, "step 7")
    assert replayed(history) == ["load c", "step 7"]


def test_more_steps_than_are_kept_are_not_passed_over_in_silence() -> None:
    history = LearnerReplay(most_steps=2)
    add(history, "step 0", "step 1")
    moment = history.moment
    assert replayed(history) == ["step 0", "step 1"]
    add(history, "step 2", "step 3")
    with pytest.raises(ReplayError, match="more than 2 steps"):
        history.replay()
    history.rebase(Path("c"), moment=moment)
    assert replayed(history) == ["load c", "step 2", "step 3"]
