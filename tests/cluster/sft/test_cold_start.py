"""The cold start on its real parts: what experts, an earlier run and a file show is imitated together."""

from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load

from actors.renderer import Renderer
from cluster.config.recipe import BadInput
from cluster.driver.algorithm import GRPO
from cluster.sft.demonstrations import gather_demonstrations
from cluster.workers.learner_rpc import LearnerError
from learners.config import TinyPolicyConfig
from learners.model.tiny_policy import make_tokenizer
from tests.cluster.driver.test_algorithm import tiny_config
from tests.learners.demonstration_dialogues import as_row, play, write_archive, write_json
from tests.learners.sft.test_best_trajectories import DONE, group
from tests.learners.sft.test_sharegpt import own_table, turns

pytestmark = pytest.mark.slow

REFUSED = {
    "unread": (turns(("human", "a")), "no turn of the policy"),
    "unrendered": (
        turns(("human", "<|im_start|>"), ("gpt", "b")),
        "before the policy's turn 1: its text contains",
    ),
}
"""Rows that the task which reads refuses, and the one which renders."""


def test_a_cold_start_that_was_killed_goes_on_exactly_from_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.sft.cold_start.STEPS_PER_CHECKPOINT", 10)
    config = tiny_config(tmp_path, name="killed").training(sft={"num_demonstrations": 240, "num_epochs": 2.0})
    algorithm = config.build_algo()
    assert isinstance(algorithm, GRPO)

    def kill(step: int, metrics: object) -> None:
        if step == 30:
            raise InterruptedError

    def weights() -> dict[str, torch.Tensor]:
        return load(bytes(ray.get(algorithm.parts.learners.weights(dtype="float32")[0])))

    try:
        with pytest.raises(InterruptedError):
            algorithm.cold_start(kill)
        killed_at = weights()
        algorithm.finish_checkpoint()
        checkpoint = algorithm.folder.checkpoint(0)
        assert not algorithm.folder.cold_started
        algorithm.restore_from_path(checkpoint)
        assert algorithm.num_sft_steps == 20
        assert any(not tensor.equal(killed_at[name]) for name, tensor in weights().items())
        with pytest.raises(InterruptedError):
            algorithm.cold_start(kill)
        assert "240 demonstrations are in" in capsys.readouterr().err
        for name, tensor in weights().items():
            torch.testing.assert_close(tensor, killed_at[name], atol=1e-6, rtol=1e-5, msg=name)

        path = Path(algorithm.save_to_path(str(tmp_path / "own")))
        monkeypatch.setattr(algorithm.parts.learners, "save", fail)
        with pytest.raises(InterruptedError):  # while it is overwritten
            algorithm.save_to_path(str(path))
        with pytest.raises(LearnerError, match="no finished checkpoint there"):
            algorithm.restore_from_path(path)
    finally:
        algorithm.stop()


def fail(folder: Path) -> int:
    raise InterruptedError


@pytest.mark.soak
def test_experts_runs_and_files_are_joined_in_a_real_cold_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    renderer = Renderer(make_tokenizer(vocab_size=TinyPolicyConfig().vocab_size))
    played = [play("expert", gym="travel", index=index, renderer=renderer) for index in range(12)]
    write_archive(tmp_path / "earlier", 1, [own_table(trajectory) for trajectory in played[:8]])
    write_archive(tmp_path / "earlier", 2, [group(99, ([1.0], DONE), gym="function")])  # not trained on here
    too_long = turns(("human", "word " * 2000), ("gpt", "no"))
    rows = [as_row(trajectory) for trajectory in played[8:]] * 200
    file = write_json(tmp_path / "shared.json", [*rows, too_long])

    sources = {"runs": [str(tmp_path / "earlier")], "best_per_gym": 5, "files": [str(file)]}
    config = tiny_config(tmp_path, name="joined")
    config.training(sft={"num_demonstrations": 20, "num_epochs": 0.5, "batch_size": 64, **sources})
    algorithm = config.build_algo()
    assert isinstance(algorithm, GRPO)
    logged: list[dict[str, float]] = []
    try:
        algorithm.cold_start(lambda step, metrics: logged.append(dict(metrics)))
        num_steps = algorithm.num_sft_steps
        broken = algorithm.run.model_copy(
            update={"engine": algorithm.run.engine.model_copy(update={"max_model_len": 30})}
        )
        folder = algorithm.parts.services.rollout_setup.policy_folder
        with pytest.raises(BadInput, match=r"^sft\.runs: nothing in .* can be imitated"):
            gather_demonstrations(broken, player=algorithm.parts.player, policy_folder=folder)
        for name, (bad, reason) in REFUSED.items():
            path = write_json(tmp_path / f"{name}.json", [*rows[:600], bad])
            sft = algorithm.run.sft.model_copy(update={"runs": (), "files": (path,)})
            broken = algorithm.run.model_copy(update={"sft": sft})
            with pytest.raises(BadInput, match=rf"^sft\.files: {path}: row 601: {reason}"):
                gather_demonstrations(broken, player=algorithm.parts.player, policy_folder=folder)
    finally:
        algorithm.stop()
    counts = {key: value for key, value in logged[-1].items() if key.startswith("sft/num_samples/")}
    assert counts == {
        "sft/num_samples/experts": 20.0,
        "sft/num_samples/runs": 5.0,
        "sft/num_samples/files": 800.0,
    }
    assert num_steps == 7  # half of 825 samples, 64 a step
    assert logged[-1]["learner/loss"] < logged[0]["learner/loss"] or len(logged) == 1
    said = capsys.readouterr().err
    assert "best of 1 run(s): telepathy 0, travel 5" in said
    assert "dialogues of 1 file(s): 800 | 1 left out, longer than engine.max_model_len=768" in said
    assert "samples to imitate: experts 20, runs 5, files 800" in said
