"""The fingerprint of an evaluation covers the code that dialogues depend on, and nothing else."""

from pathlib import Path

from cluster.config.run_config import RunConfig
from cluster.evaluation.fingerprint import CODE, settings_of
from cluster.evaluation.request import EvaluationRequest
from tests.docs_pages import ROOT

GYM = """\
from dataclasses import replace

from simulators.gyms.function import GYM as FUNCTION

GYM = replace(FUNCTION, name="own")
"""
REQUEST = EvaluationRequest(
    policy="expert",
    endpoint=None,
    simulators=("rules",),
    split="test",
    num_trials=1,
    success_score=1.0,
    output=None,
    as_json=False,
)


def test_the_code_is_that_of_environments_and_acting() -> None:
    assert CODE == [ROOT / "simulators", ROOT / "actors"]


def test_a_changed_gym_of_ones_own_changes_it_and_another_file_does_not(folder_of_ones_own: Path) -> None:
    gym = folder_of_ones_own / "own_gym_of_fingerprint.py"
    gym.write_text(GYM)
    config = RunConfig.model_validate(
        {"gyms": {"modules": ["own_gym_of_fingerprint"], "weights": {"own": 1.0}}}
    )

    def code() -> object:
        return settings_of(config, REQUEST, policy_folder="")["code"]

    before = code()
    (folder_of_ones_own / "other.py").write_text("x = 1\n")
    assert code() == before
    gym.write_text(GYM + "# changed\n")
    assert code() != before
