"""Refusal of checkpoints with other settings, of later formats, and of damaged ones, in one line each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from learners.advantages.config import TurnGaeConfig
from learners.config import LearnerConfig
from learners.losses.entropy import EntropyControl
from learners.model.checkpoint import Progress, is_checkpoint, load_checkpoint, withdraw
from learners.model.policy import Policy, load_policy
from learners.training.optimizer_step import make_optimizer
from tests.learners.tiny_parts import save_checkpoint, tiny_model, tiny_policy

CONFIG = LearnerConfig(advantage=TurnGaeConfig())
PROGRESS = Progress(stage="grpo", entropy=EntropyControl(coefficient=0.5, last_entropy=1.5))
FULL: dict[str, Any] = {}
CRITIC = {"has_critic": True}
RANK_4 = {"lora_rank": 4, "lora_alpha": 8}
RANK_8 = {"lora_rank": 8, "lora_alpha": 16}


@pytest.fixture
def policy_of(tmp_path: Path) -> Callable[..., Policy]:
    tiny_model().save_pretrained(tmp_path / "model")

    def make(**settings: Any) -> Policy:
        return load_policy(
            str(tmp_path / "model"),
            temperature=1.0,
            dtype=torch.float32,
            recompute_activations=False,
            **settings,
        )

    return make


def written(path: Path, policy: Policy) -> Path:
    save_checkpoint(path, policy, make_optimizer(policy, config=CONFIG), PROGRESS)
    return path


def load(path: Path, policy: Policy) -> Progress:
    return load_checkpoint(path, policy, make_optimizer(policy, config=CONFIG))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (
            RANK_4,
            RANK_8,
            r"written with lora_rank=4 and no critic, and this run has lora_rank=8 and no critic",
        ),
        (FULL, RANK_4, r"written with lora_rank=0 and no critic, and this run has lora_rank=4 and no critic"),
        (RANK_4, FULL, r"written with lora_rank=4 and no critic, and this run has lora_rank=0 and no critic"),
        (FULL, CRITIC, r"written with lora_rank=0 and no critic, and this run has lora_rank=0 and a critic"),
        (CRITIC, FULL, r"written with lora_rank=0 and a critic, and this run has lora_rank=0 and no critic"),
        (RANK_4, RANK_4 | {"lora_alpha": 16}, r"with lora_alpha / lora_rank = 2, and this run has 4"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_in_one_line(
    policy_of: Callable[..., Policy], tmp_path: Path, before: dict[str, Any], now: dict[str, Any], says: str
) -> None:
    path = written(tmp_path / "c", policy_of(**before))
    with pytest.raises(ValueError, match=rf"^{path}: .*{says}: give the settings of the run .*$") as refusal:
        load(path, policy_of(**now))
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_another_model_is_refused_with_a_weight_that_differs(tmp_path: Path) -> None:
    path = written(tmp_path / "c", tiny_policy())
    other = tiny_policy()
    other.model.resize_token_embeddings(60)
    with pytest.raises(
        ValueError, match=r"written with \S+ \(50, 32\), and this run has \S+ \(60, 32\): give"
    ):
        load(path, other)


def test_a_checkpoint_of_pickles_is_refused_unread(tmp_path: Path) -> None:
    policy = tiny_policy()
    model, optim = get_state_dict(policy, make_optimizer(policy, config=CONFIG))
    save({"model": model, "optimizer": optim, "stage": "grpo"}, checkpoint_id=tmp_path / "c", no_dist=True)
    with pytest.raises(FileNotFoundError, match=r"c: no finished checkpoint there \(no index.json\)"):
        load(tmp_path / "c", tiny_policy())


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("learners.model.checkpoint.FORMAT", 3)
        path = written(tmp_path / "c", tiny_policy())
    with pytest.raises(
        ValueError, match=r"format=3 of a later version, and this one reads up to 2: resume with"
    ):
        load(path, tiny_policy())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [Path.unlink, cut, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["index.json", "rank-0.bin"])
def test_a_damaged_checkpoint_is_refused_in_one_line(
    tmp_path: Path, file: str, harm: Callable[[Path], object]
) -> None:
    path = written(tmp_path / "c", tiny_policy())
    harm(path / file)
    with pytest.raises(OSError, match=rf"^{path}: .*: (resume from another one|give a folder that has one)$"):
        load(path, tiny_policy())


def test_a_withdrawn_checkpoint_is_unfinished_and_can_be_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "c", tiny_policy())
    withdraw(path)
    withdraw(tmp_path / "never")
    assert not is_checkpoint(path)
    written(path, tiny_policy())
    assert load(path, tiny_policy()) == PROGRESS
