"""Unusable sources of demonstrations are refused before anything starts."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.preflight.demonstrations import check_demonstrations
from cluster.run_folder.paths import STATE_FILE, RunFolder
from tests.learners.demonstration_dialogues import write_archive, write_json
from tests.learners.sft.test_best_trajectories import DONE, group
from tests.learners.sft.test_sharegpt import ROW, turns


def config_with(**sft: Any) -> RunConfig:
    return RunConfig.model_validate({"sft": sft})


def test_by_default_only_experts_are_imitated():
    assert RunConfig().sft.has_sources
    assert (RunConfig().sft.runs, RunConfig().sft.files) == ((), ())
    assert not config_with(num_demonstrations=0).sft.has_sources
    assert config_with(num_demonstrations=0, runs=["a"]).sft.has_sources


def test_paths_are_absolute_and_unique_and_survive_the_run_folder(tmp_path: Path):
    config = load(None, {"sft.files": '["a.json", "~/b.json"]', "sft.runs": '["runs/x"]'})
    assert config.sft.files == (Path.cwd() / "a.json", Path.home() / "b.json")
    assert config.sft.runs == (Path.cwd() / "runs" / "x",)
    saved = tmp_path / "config.toml"
    saved.write_text(config.to_toml())
    assert load(saved) == config
    assert load(None, {"sft.files": "a.json"}).sft.files == (Path.cwd() / "a.json",)
    with pytest.raises(BadInput, match=r"sft\.files: .*a\.json is given twice: leave one out"):
        load(None, {"sft.files": '["a.json", "./a.json"]'})


def test_a_run_without_an_archive_or_of_another_tokenizer_is_refused(tmp_path: Path):
    run = tmp_path / "a"
    with pytest.raises(BadInput, match=r"sft\.runs: .*/a: no trajectories/step-\*\.parquet there: give"):
        check_demonstrations(config_with(runs=[run]))
    write_archive(run, 1, [group(0, ([1.0], DONE))])
    check_demonstrations(config_with(runs=[run]))
    theirs = RunConfig.model_validate({"policy": {"tiny": {"vocab_size": 900}}})
    RunFolder(run).config.write_text(theirs.to_toml() + "\n[gone]\nkey = 1\n")
    with pytest.raises(BadInput, match=r"another tokenizer \(policy\.tiny\.vocab_size=900, not \d+\): give"):
        check_demonstrations(config_with(runs=[run]))
    # A given policy may be the very one that this run made.
    own = {"sft": {"runs": [run]}, "policy": {"path": str(run / "model")}}
    check_demonstrations(RunConfig.model_validate(own))


def test_a_bad_row_is_refused_with_its_key_file_row_and_rule(tmp_path: Path):
    good = write_json(tmp_path / "good.json", [ROW])
    bad = write_json(tmp_path / "bad.json", [ROW, turns(("human", "a"))])
    check_demonstrations(config_with(files=[good]))
    with pytest.raises(BadInput, match=r"^sft\.files: .*/bad\.json: row 2: no turn of the policy: give"):
        check_demonstrations(config_with(files=[good, bad]))


def test_a_run_after_its_cold_start_resumes_without_its_demonstrations(tmp_path: Path):
    place = {"run": {"folder": str(tmp_path)}, "sft": {"files": [tmp_path / "gone.json"]}}
    config = RunConfig.model_validate(place)
    folder = RunFolder.of(config)
    for step, cold_started in ((0, False), (0, True), (3, True)):
        state = folder.begin_checkpoint(step) / STATE_FILE
        state.write_text(json.dumps({"cold_started": cold_started}))
        folder.complete_checkpoint(step)
        if cold_started:
            check_demonstrations(config)
        else:
            with pytest.raises(BadInput, match="cannot be read"):
                check_demonstrations(config)


def test_thousands_of_rows_are_checked_quickly(tmp_path: Path):
    big = write_json(tmp_path / "big.json", [ROW] * 5000)
    started = time.perf_counter()
    check_demonstrations(config_with(files=[big]))
    assert time.perf_counter() - started < 3.0
