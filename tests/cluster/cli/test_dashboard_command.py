"""`userrl dashboard` saves a view in the W&B project, of a recipe or of a run."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.tracking.wandb.history import SECTIONS
from tests.cluster.sample_run_folders import make_run
from tests.cluster.tracking.wandb.fake_wandb_service import WandbService, wandb_service

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def service() -> Iterator[WandbService]:
    with wandb_service() as service:
        yield service


def userrl_dashboard(
    *words: str, folder: Path, service: WandbService, key: str = "0" * 40
) -> subprocess.CompletedProcess[str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    url = f"http://127.0.0.1:{service.port}"
    ours = {"WANDB_BASE_URL": url, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", "dashboard", *words],
        cwd=folder,
        env=others | ours | ({"WANDB_API_KEY": key} if key else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_recipes_project_gets_a_view_with_its_sections(service: WandbService, tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes" / "cpu-quickstart.toml")
    done = userrl_dashboard(recipe, folder=tmp_path, service=service)
    assert done.returncode == 0, done.stderr
    view = service.views[-1]
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("tester", "userrl", "UserRL")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == list(SECTIONS)
    assert done.stdout.startswith("http") and done.stdout.count("\n") == 1, "the address alone"


def test_a_runs_project_is_the_teams_that_is_named(service: WandbService, tmp_path: Path) -> None:
    run = make_run(tmp_path / "quickstart", num_steps=1, overrides={"tracking.project": "talks"})
    done = userrl_dashboard(str(run.path), "--entity", "my-team", folder=tmp_path, service=service)
    assert done.returncode == 0, done.stderr
    assert (service.views[-1]["entityName"], service.views[-1]["projectName"]) == ("my-team", "talks")


@pytest.mark.parametrize("words", [(), ("--entity", "my-team")])
def test_without_a_key_it_is_refused_in_one_line(
    words: tuple[str, ...], service: WandbService, tmp_path: Path
) -> None:
    before = len(service.views)
    recipe = str(ROOT / "recipes" / "cpu-quickstart.toml")
    done = userrl_dashboard(recipe, *words, folder=tmp_path, service=service, key="")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == "WANDB_API_KEY is not set: set it, or run `wandb login`\n"
    assert len(service.views) == before
