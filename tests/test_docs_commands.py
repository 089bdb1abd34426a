"""Law of commands: every shell command of README, CONTRIBUTING and docs is run here or by a named test.

A command without either fails, and so does an entry whose test does not exist or that no page needs.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.sample_run_folders import make_run
from tests.docs_pages import PAGES, ROOT, shell_commands

COMMANDS = sorted({command for _, command in shell_commands()})
TARGET = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)
HERE = (
    r"cp tests/simulators/template_gym\.py my_gym\.py",
    r"userrl check .*",
    r"userrl report (?!.*--serve).*",
    r"userrl status .*",
    r"userrl play (?!.*--policy ).*",
    r"python -m bench\.cost_model .*",
    r"GYM_MODULES=my_gym \.venv/bin/pytest tests/simulators/test_gyms\.py .*",
)
"""Commands that take seconds: run below as written, in this order, in a folder laid out like the project."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunBy:
    """Commands that another test runs."""

    pattern: str
    test: str
    """file::function, below tests/."""
    why: str
    """Why it is not run here."""


MAIN_JOB = "cluster/driver/test_train.py::test_the_job_stops_on_ctrl_c_and_goes_on_where_it_was"
OWN_GYM = "cluster/cli/test_own_gym_commands.py::test_a_gym_of_ones_own_is_trained"
JOBS = "cluster/jobs/test_submit.py::test_a_job_is_followed_stopped_cleanly_and_goes_on_when_it_is_sent_again"
MANIFESTS = "cluster/ray_cluster/test_manifests.py::test_every_document_is_valid_for_kubernetes"
BENCH = "bench/test_result_rows.py::test_every_part_that_the_command_knows_is_a_module_that_measures"
ELSEWHERE = tuple(
    RunBy(pattern=pattern, test=test, why=why)
    for pattern, test, why in (
        (r"make train( .*)?", MAIN_JOB, "set-up and a quarter of an hour; there with a small recipe"),
        (
            r"make (setup|test|test-fast|soak|lint)",
            "test_docs_commands.py::test_a_make_command_has_its_target",
            "minutes, soaks hours; this file is a part of it",
        ),
        (
            r"\.venv/bin/python -m examples\.one_process_grpo",
            "test_examples.py::test_grpo_in_one_process_learns_tool_calls_and_steps_on_its_own_dialogues",
            "minutes; there with two steps",
        ),
        (r"make bench.*", BENCH, "minutes on a quiet machine"),
        (r"userrl train .*--gyms\.modules .*|userrl train my_gym.*", OWN_GYM, "Ray, Serve and vLLM"),
        (r"userrl train .*", MAIN_JOB, "Ray, Serve and vLLM"),
        (
            r"userrl evaluate .*--policy http.*",
            "cluster/evaluation/test_request.py::test_several_models_want_a_name",
            "an endpoint; there one on loopback",
        ),
        (
            r"userrl evaluate .*",
            "cluster/driver/test_evaluate.py::test_an_evaluation_resumes_and_a_finished_one_plays_nothing",
            "Ray and Serve",
        ),
        (
            r"userrl report .*--serve.*",
            "cluster/report/test_page.py::test_a_served_page_follows_its_run_and_answers_this_machine_alone",
            "serves until Ctrl-C",
        ),
        (
            r"userrl serve",
            "simulators/serving/test_app.py::test_http_answers_and_refuses_in_json",
            "Ray Serve",
        ),
        (
            r"userrl serve .*--simulator\.host .*|export USERRL_SIMULATOR_KEY=.*",
            "simulators/serving/test_app.py::test_requests_without_the_key_are_refused",
            "Ray Serve; there on loopback, with a key as beyond it",
        ),
        (
            r"userrl play .*--policy http.*",
            "cluster/play/test_policy.py::test_a_person_plays_the_user_of_an_endpoints_model",
            "an endpoint; there one on loopback",
        ),
        (
            r"userrl play .*--policy runs/.*/checkpoints/.*|userrl play .*--policy runs/mine",
            "cluster/play/test_policy.py::test_a_checkpoint_of_a_run_plays_with_its_own_weights_and_lengths",
            "a checkpoint",
        ),
        (
            r"userrl play .*--policy (runs/quickstart|Qwen/.*)",
            "cluster/play/test_policy.py"
            "::test_a_finished_runs_model_plays_and_the_command_line_comes_before_the_runs_settings",
            "a run's model, a download; there one as small as the quick start's, from a folder",
        ),
        (
            r"userrl dashboard recipes/.*",
            "cluster/cli/test_dashboard_command.py::test_a_recipes_project_gets_a_view_with_its_sections",
            "W&B; there a service on loopback",
        ),
        (
            r"userrl dashboard runs/.*",
            "cluster/cli/test_dashboard_command.py::test_a_runs_project_is_the_teams_that_is_named",
            "W&B; there a service on loopback",
        ),
        (
            r"cat runs/\w+/prometheus\.json",
            "cluster/tracking/test_prometheus.py::test_a_file_has_the_addresses_to_scrape_while_the_run_is_active",
            "a run that goes on",
        ),
        (
            r"curl -s http://127\.0\.0\.1:\d+/metrics .*",
            "cluster/tracking/test_prometheus.py::test_a_real_ray_serves_the_metrics_of_a_step_on_loopback",
            "Ray",
        ),
        (
            r"userrl scale .*",
            "cluster/driver/test_run_survives_faults.py::test_sizes_change_while_the_run_goes_on_and_the_ledger_closes",
            "a run that goes on",
        ),
        (
            r"userrl chaos .*",
            "cluster/chaos/test_chaos_run.py::test_chaos_on_a_real_job_loses_nothing",
            "a cluster",
        ),
        (r"userrl (submit|jobs|logs|stop)\b.*", JOBS, "a cluster with its dashboard"),
        (
            r"RAY_API_SERVER_ADDRESS=.* ray job submit .*",
            "cluster/jobs/test_submit.py::test_rays_own_command_runs_the_same_command_line_from_a_working_dir",
            "a cluster with its dashboard",
        ),
        (r"(docker build|kubectl) .*|export RAY_AUTH_TOKEN=.*kubectl .*", MANIFESTS, "Kubernetes"),
        (
            r"GYM_ACTIONS=\S+ \.venv/bin/pytest tests/simulators/test_gyms\.py.*",
            "simulators/test_gyms.py::test_no_text_breaks_a_gym_and_its_pay_is_within_bounds",
            "minutes; there with fewer actions",
        ),
    )
)


def is_run_here(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in HERE)


def order(command: str) -> int:
    return next(at for at, pattern in enumerate(HERE) if re.fullmatch(pattern, command))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_run_here_or_by_a_test_that_is_named(command: str):
    by = [entry.test for entry in ELSEWHERE if re.fullmatch(entry.pattern, command)]
    assert is_run_here(command) or by, f"no test runs it: name one in {Path(__file__).name}: {command}"


@pytest.mark.parametrize("entry", ELSEWHERE, ids=lambda entry: entry.pattern)
def test_a_named_test_is_there_and_some_page_needs_it(entry: RunBy):
    file, _, function = entry.test.partition("::")
    assert function in functions(file)
    assert any(re.fullmatch(entry.pattern, command) for command in COMMANDS)


@pytest.mark.parametrize("pattern", HERE)
def test_what_is_run_here_is_on_some_page(pattern: str):
    assert any(re.fullmatch(pattern, command) for command in COMMANDS)


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_a_make_command_has_its_target():
    """In blocks and in running text; the Makefile shows what the targets do."""
    inline = [line for page in PAGES for line in re.findall(r"`(make [\w-]+[^`]*)`", page.read_text())]
    asked = {command.split()[1] for command in [*COMMANDS, *inline] if command.startswith("make ")}
    assert asked >= {"train", "test", "reference"}
    assert asked <= set(TARGET.findall((ROOT / "Makefile").read_text()))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's own in it, as links."""
    folder = tmp_path_factory.mktemp("project")
    rooms = ("actors", "bench", "cluster", "learners", "recipes", "rewards", "simulators", "tests")
    for name in (*rooms, "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in (("userrl", "-m cluster.cli"), ("pytest", "-m pytest -p no:xdist"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_the_commands_that_take_seconds_run_as_they_stand(project: Path):
    """In the order of HERE, with an empty standard input."""
    bash = shutil.which("bash")
    assert bash is not None
    env = os.environ | {"PATH": f"{project / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for command in sorted(filter(is_run_here, COMMANDS), key=order):
        if command.startswith(("userrl report", "userrl status")) and not (project / "runs").exists():
            for name in ("quickstart", "mine"):  # not before: check would take them for the recipe's own
                make_run(project / "runs" / name, num_steps=2)
        done = subprocess.run(
            [bash, "-c", command],
            cwd=project,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (project / "my_gym.py").exists() and (project / "runs" / "quickstart" / "report.html").exists()
