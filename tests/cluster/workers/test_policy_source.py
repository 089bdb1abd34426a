"""The folder of the KL reference, and the checks of one that the recipe names."""

from pathlib import Path

import pytest

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.preflight.checks import check
from cluster.run_folder.paths import RunFolder
from cluster.workers.policy_source import reference_folder


def config_of(**kl: object) -> RunConfig:
    return RunConfig.model_validate({"learner": {"kl": {"type": "k2", **kl}}})


def test_the_reference_is_in_the_run_folder_unless_the_recipe_names_one(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    assert reference_folder(config_of(), folder) == str(tmp_path / "run" / "reference")
    named = tmp_path / "named"
    named.mkdir()
    assert reference_folder(config_of(reference=str(named)), folder) == str(named)


def test_a_named_reference_is_checked_before_anything_starts(tmp_path: Path):
    with pytest.raises(BadInput, match=r"learner\.kl\.reference=.*no such folder"):
        check(config_of(reference=str(tmp_path / "none")))
    with pytest.raises(BadInput, match=r"learner\.kl\.reference=.*no config\.json"):
        check(config_of(reference=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"learner\.kl\.reference=.*no weights there"):
        check(config_of(reference=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    check(config_of(reference=str(tmp_path)))  # it samples nothing: no chat template is needed
