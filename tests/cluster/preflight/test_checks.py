"""Preflight checks: a run that cannot work on this machine is refused before anything starts."""

import json
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config.gyms import GymsConfig
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.preflight import checks
from cluster.preflight.chat_template import check_template
from cluster.preflight.checks import check, check_address, check_same_run, check_writable
from cluster.preflight.policy import check_hub, check_model, check_policy, is_hub_name
from cluster.ray_cluster import placement
from cluster.ray_cluster.placement import Machine, gpu_share, planned_processes
from cluster.run_folder.paths import RunFolder
from simulators.gym import no_gold_actions
from simulators.gyms import GYMS
from tests.actors.test_chat_form import CHATML, HELD, REFUSED

SPECIALS = {
    str(number): {"content": token, "special": True}
    for number, token in enumerate(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "<|assistant|>")
    )
}


def model_folder(path: Path, *, template: str | None) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    config = {"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": SPECIALS}
    config |= {"chat_template": template} if template else {}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_a_model_folder_needs_a_chat_template(tmp_path: Path) -> None:
    check_model(str(model_folder(tmp_path / "good", template=CHATML)), key="policy.path")
    bare = model_folder(tmp_path / "bare", template=None)
    with pytest.raises(BadInput, match="no chat template: add"):
        check_model(str(bare), key="policy.path")
    (bare / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))  # for processors alone
    with pytest.raises(BadInput, match="no chat template: add"):
        check_model(str(bare), key="policy.path")
    (bare / "chat_template.jinja").write_text(CHATML)
    check_model(str(bare), key="policy.path")


@pytest.mark.parametrize("name", HELD)
def test_a_templates_form_and_stop_are_read_from_the_files(tmp_path: Path, name: str) -> None:
    template, form, stop = HELD[name]
    assert check_template(model_folder(tmp_path / "model", template=template), key="policy.path") == (
        form,
        stop,
    )


def test_a_tokenizer_without_an_end_of_sequence_token_ends_where_the_template_does(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", template=CHATML)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": SPECIALS, "chat_template": CHATML})
    )
    _, stop = check_template(folder, key="policy.path")
    assert stop == "<|im_end|>"


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_hold_a_dialogue_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    template, reason = REFUSED[name]
    with pytest.raises(BadInput) as refused:
        check_model(str(model_folder(tmp_path / "model", template=template)), key="policy.path")
    assert str(refused.value).startswith("policy.path=")
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_a_missing_or_empty_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        check_model(str(tmp_path / "none"), key="policy.path")
    with pytest.raises(BadInput, match=r"no config\.json"):
        check_model(str(tmp_path), key="policy.path")


def test_a_hub_name_is_not_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("Qwen/Qwen3-0.6B")
    assert not any(map(is_hub_name, ("./a", "/a/b", "../a/b", "a/b/c", "qwen")))
    (tmp_path / "models").mkdir()
    assert not is_hub_name("models/missing")


def test_an_unknown_policy_names_the_nearest() -> None:
    check_policy("random")
    with pytest.raises(BadInput, match="did you mean expert"):
        check_policy("exprt")


def test_a_ray_address_without_a_listener_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
        check_address(f"ray://127.0.0.1:{port}")
    with pytest.raises(BadInput, match="no answer within 1 s"):
        check_address(f"127.0.0.1:{port}")


def test_auto_finds_the_cluster_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(BadInput, match="no cluster on this machine"):
        check_address("auto")
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}")
        check_address("auto")
    with pytest.raises(BadInput, match="no answer"):
        check_address("auto")


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:port", "host:99999"])
def test_a_ray_address_has_host_and_port(address: str) -> None:
    with pytest.raises(BadInput, match="must be HOST:PORT"):
        check_address(address)


def on(monkeypatch: pytest.MonkeyPatch, *, num_cpus: int, num_gpus: int) -> None:
    monkeypatch.setattr(checks, "this_machine", lambda: Machine(num_cpus=num_cpus, num_gpus=num_gpus))
    for module in (checks, placement):
        monkeypatch.setattr(module, "has_cuda", lambda: num_gpus > 0)


def test_more_learners_than_cores_or_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    three = load(None, {"learner.num_learners": "3"})
    on(monkeypatch, num_cpus=3, num_gpus=0)
    check(three)
    on(monkeypatch, num_cpus=2, num_gpus=0)
    with pytest.raises(BadInput, match=r"num_learners=3: .* 2: give at most 2"):
        check(three)
    with_gpus = load(None, {"learner.num_learners": "3", "learner.num_gpus_per_learner": "1"})
    on(monkeypatch, num_cpus=64, num_gpus=4)
    check(with_gpus)
    on(monkeypatch, num_cpus=64, num_gpus=1)
    with pytest.raises(BadInput, match="need 4 GPUs and this machine has 1"):
        check(with_gpus)
    on(monkeypatch, num_cpus=64, num_gpus=0)
    with pytest.raises(
        BadInput, match=r"num_gpus_per_learner=1: needs GPUs, .*: give 0, or set up EXTRA=gpu"
    ):
        check(with_gpus)


def test_engine_and_learner_share_one_gpu_only_with_memory_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, num_cpus=8, num_gpus=1)
    with pytest.raises(BadInput, match=r"share a GPU on this machine: give at most 0\.5"):
        check(load(None, {"learner.num_gpus_per_learner": "1", "engine.gpu_memory_utilization": "0.8"}))
    shared = load(None, {"learner.num_gpus_per_learner": "1", "engine.gpu_memory_utilization": "0.4"})
    check(shared)
    assert gpu_share(shared, num_gpus=1) == 0.5
    assert gpu_share(shared, num_gpus=2) == 1.0
    assert sum(p.count * p.num_gpus for p in planned_processes(shared, gpu_share=0.5)) == 1.0


def test_gpus_count_only_if_torch_can_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(placement, "version", lambda package: "2.13.0+cpu")
    assert placement.this_machine().num_gpus == 0
    monkeypatch.setattr(placement, "version", lambda package: "2.13.0")
    assert placement.this_machine().num_gpus == 2


def test_a_run_folder_that_is_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is a file, not a folder"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "runs" / "deep" / "run")
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_folder_holds_one_run(tmp_path: Path) -> None:
    here = {"run.folder": str(tmp_path), "run.name": "x"}
    RunFolder.of(load(None, here)).create(load(None, here))
    check_same_run(load(None, here))
    check_same_run(load(None, {**here, "grpo.num_steps": "99", "tracking.mode": "disabled"}))
    no_result = {"micro_batch_tokens": "16384", "recompute_activations": "true", "max_logprob_gap": "0.1"}
    check_same_run(load(None, here | {f"learner.{key}": value for key, value in no_result.items()}))
    with pytest.raises(BadInput, match=r"rollout.group_size=4: .* has a run with 8: give --run NAME"):
        check_same_run(load(None, {**here, "rollout.group_size": "4"}))


def test_default_config_fits_a_machine_with_two_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on(monkeypatch, num_cpus=2, num_gpus=0)
    monkeypatch.chdir(tmp_path)
    check(RunConfig())


def test_an_accepted_config_never_reserves_more_cpus_than_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, num_cpus=2, num_gpus=0)
    full = {"learner.num_learners": "2", "engine.num_engines": "2", "rollout.num_actors": "2"}
    check(load(None, full))
    with pytest.raises(
        BadInput, match=r"num_replicas=9: all processes reserve 2\.1 CPUs and this machine has 2"
    ):
        check(load(None, {**full, "simulator.num_replicas": "9"}))


@pytest.mark.medium
def test_an_unavailable_hub_name_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # It accepts and never answers.
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(
            BadInput, match=r"policy\.path='models/none': no such folder, and not available from the hub"
        ):
            check_hub("models/none", key="policy.path")
        assert time.monotonic() - start < 2.5
        (tmp_path / "models--models--none").mkdir()
        check_hub("models/none", key="policy.path")


def judged(url: str, **changes: str) -> RunConfig:
    judge = {"base_url": url, "model": "m", "api_key_env": "", "rubric": "Rate it.", **changes}
    return RunConfig.model_validate({"reward": {"weights": {"judge": 1.0}, "judge": judge}})


def test_a_judge_without_its_key_or_without_an_endpoint_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(BadInput, match=r"reward\.judge: api_key_env='JUDGE_KEY' is not set"):
        check(judged("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY"))
    with pytest.raises(BadInput, match=r"reward\.judge\.base_url=http://127\.0\.0\.1:1/v1: no answer"):
        check(judged("http://127.0.0.1:1/v1"))


def test_shaping_is_refused_if_the_advantage_ignores_it_or_it_would_change_the_best_policy() -> None:
    def shaped(**learner: object) -> RunConfig:
        return RunConfig.model_validate({"reward": {"weights": {"potential": 1.0}}, "learner": learner})

    for advantage in ("turn_mean", "turn_loo", "turn_gae"):
        assert shaped(advantage={"type": advantage, "gamma": 0.5})
    for advantage in ("grpo", "rloo", "mt_grpo", "gigpo", "igpo", "userrl_compat", "userrl_printed"):
        with pytest.raises(ValueError, match=f"has advantage={advantage}, .*: use one of turn_mean"):
            shaped(advantage=advantage)
    with pytest.raises(ValueError, match="tau has advantage=rloo"):
        shaped(advantage="turn_loo", by_gym={"tau": "rloo"})


def test_gold_answers_are_refused_if_no_trained_gym_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.model_validate(
        {"learner": {"information_gain": "gold_answer"}, "gyms": {"weights": {"search": 1, "tau": 1}}}
    )
    checks.check_gyms(config)
    ignorant = {name: replace(gym, gold_actions=no_gold_actions) for name, gym in GYMS.items()}
    monkeypatch.setattr(GymsConfig, "open", lambda self: {**ignorant, "tau": GYMS["tau"]})
    checks.check_gyms(config)
    monkeypatch.setattr(GymsConfig, "open", lambda self: {**ignorant, "turtle": GYMS["turtle"]})
    with pytest.raises(BadInput, match=r"\(search, tau\) have no gold answers: use masked_feedback"):
        checks.check_gyms(config)
