"""The replay brings new learners to the state of the old ones, and drops what a checkpoint holds."""

from pathlib import Path
from typing import Any

import pytest

from cluster.workers.learner_replay import LearnerCall, LearnerReplay, ReplayError, TrainingStage


class NamedLearner:
    """Records its calls in order."""

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


def test_without_a_checkpoint_all_calls_are_replayed_in_order() -> None:
    history = LearnerReplay(max_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", "sft 10", stage="sft")
    add(history, "step 0", "step 1")
    assert replayed(history) == ["demonstrations", "sft 0", "sft 10", "step 0", "step 1"]


def test_a_checkpoint_replaces_the_calls_before_it_and_none_after() -> None:
    history = LearnerReplay(max_steps=10)
    add(history, "step 0", "step 1")
    moment = history.moment
    add(history, "step 2")  # while the checkpoint is written
    assert replayed(history) == ["step 0", "step 1", "step 2"]
    history.rebase(Path("c"), moment=moment)
    assert replayed(history) == ["load c", "step 2"]
    assert history.num_steps == 1


def test_demonstrations_are_kept_while_sft_steps_may_follow() -> None:
    history = LearnerReplay(max_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", stage="sft")
    history.rebase(Path("c"), moment=history.moment)
    assert replayed(history) == ["load c", "demonstrations"]
    add(history, "sft 10", stage="sft")
    add(history, "step 0")
    assert replayed(history) == ["load c", "demonstrations", "sft 10", "step 0"]
    history.rebase(Path("d"), moment=history.moment - 1)
    assert replayed(history) == ["load d", "step 0"]


def test_demonstrations_are_dropped_when_grpo_begins_after_a_checkpoint() -> None:
    history = LearnerReplay(max_steps=10)
    history.set_demonstrations(do("demonstrations"))
    add(history, "sft 0", stage="sft")
    history.rebase(Path("c"), moment=history.moment)
    add(history, "step 0")
    assert replayed(history) == ["load c", "step 0"]


def test_loading_a_checkpoint_drops_all_earlier_calls() -> None:
    history = LearnerReplay(max_steps=10)
    add(history, "step 0")
    history.restart(Path("c"))
    add(history, "step 7")
    assert replayed(history) == ["load c", "step 7"]


def test_a_replay_with_missing_steps_is_an_error() -> None:
    history = LearnerReplay(max_steps=2)
    add(history, "step 0", "step 1")
    moment = history.moment
    assert replayed(history) == ["step 0", "step 1"]
    add(history, "step 2", "step 3")
    with pytest.raises(ReplayError, match="more than 2 steps"):
        history.replay()
    history.rebase(Path("c"), moment=moment)
    assert replayed(history) == ["load c", "step 2", "step 3"]
