"""`userrl chaos` on a real job: its own cluster, in a process of its own, with nothing beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.driver.test_algorithm import tiny_config

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


def test_chaos_on_a_real_job_loses_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    run = tiny_config(tmp_path / "runs", name="tiny", max_off_policy_steps=1).resolved()
    recipe.write_text(
        run.model_copy(update={"grpo": run.grpo.model_copy(update={"num_steps": 12})}).to_toml()
    )
    faults = ["--kills", "3", "--seed", "8"]
    command = [sys.executable, "-m", "cluster.cli", "chaos", str(recipe), *faults, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {
        *("kills", "by_kind", "lost", "duplicated", "stale", "recovery_s", "completed"),
    }
    assert result["by_kind"] == {"replica": 1, "learner": 1, "buffer": 1}  # those of this seed
    assert result["completed"] and (result["lost"], result["duplicated"], result["stale"]) == (0, 0, 0)
    assert set(result["recovery_s"]) == {"p50", "max"}
