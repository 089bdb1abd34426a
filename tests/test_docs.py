"""Laws of the documentation: recipes load, commands parse, Python runs, links and named files exist."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cli.main import _parser, split_overrides
from cluster.config.recipe import known_keys, validate
from cluster.config.run_config import RunConfig
from simulators.config import GaugeLimits
from simulators.user import Failure
from tests.docs_pages import PAGES, ROOT, anchors, blocks, name_of, shell_commands
from tests.simulators import template_gym

DATA = ROOT.parent / "shared" / "data" / "userrl"
INLINE = re.compile(r"`(userrl [^`]+)`")
NEEDS_RAY = ("cluster", "ray")
FOLDERS = ("actors", "bench", "cluster", "examples", "learners", "rewards", "simulators", "tests")


def commands() -> Iterator[str]:
    """Every `userrl` command of the pages, in blocks and, if complete, in running text."""
    yield from (command for _, command in shell_commands() if command.startswith("userrl "))
    for page in PAGES:
        for line in INLINE.findall(page.read_text()):
            if len(line.split()) > 2 and not line.endswith("--help"):
                yield line


def runs_alone(text: str) -> bool:
    """Whether the code imports something, and nothing that starts Ray."""
    modules = [
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    return bool(modules) and not any(module in NEEDS_RAY for module in modules)


@pytest.mark.parametrize(("where", "text"), list(blocks("toml")))
def test_a_recipe_in_the_documentation_loads(where: str, text: str, folder_of_ones_own: Path):
    (folder_of_ones_own / "my_gym.py").write_text(Path(template_gym.__file__).read_text())
    assert validate(tomllib.loads(text), model=RunConfig) != RunConfig()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_command_in_the_documentation_parses(line: str):
    words, overrides = split_overrides(shlex.split(line, comments=True)[1:])
    assert callable(_parser().parse_args(words).command)
    known = known_keys(RunConfig)
    assert all(key in known or key.startswith("gyms.data.") for key in overrides)


@pytest.mark.medium
@pytest.mark.parametrize(("where", "text"), list(blocks("python")))
def test_python_in_the_documentation_runs(
    where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code = compile(text, where, "exec")
    if 'Path("userrl")' in text:  # the folder of the released data
        if not DATA.exists():
            pytest.skip("needs the released data")
        (tmp_path / "userrl").symlink_to(DATA)
    if runs_alone(text):
        exec(code, {"__name__": f"docs.{where}"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_recipes_of_a_page_are_there(page: Path):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [name for name in re.findall(r"recipes/[\w.-]+\.toml", text) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_into_a_page_leads_to_a_heading(page: Path):
    links = [
        link.split("#")
        for link in re.findall(r"\]\(([^)\s]*#[^)]+)\)", page.read_text())
        if "://" not in link
    ]
    lost = [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)]
    assert lost == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "comparison.md"], ids=name_of)
def test_a_file_that_a_page_names_exists(page: Path):
    """comparison.md apart: it names files of other systems."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_walk_of_a_trajectory_has_at_most_25_files():
    walk = (ROOT / "docs" / "code-map.md").read_text().partition("## One trajectory")[2].partition("## ")[0]
    rows = re.findall(r"^\|[^|]*\| `[\w/]+\.py` \|", walk, re.MULTILINE)
    assert 20 <= len(rows) <= 25


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in PAGES if page.parent == ROOT / "docs" and page.name != "README.md"]
    assert [page for page in pages if f"({page})" not in index] == []


def test_every_figure_of_ours_beside_other_systems_is_a_measured_row():
    text = (ROOT / "docs" / "comparison.md").read_text().partition("## Measured here")[2]
    quoted = re.findall(r"^\| .* [\d.,]+ .*\|$", text, re.MULTILINE)
    measured = (ROOT / "bench" / "RESULTS.md").read_text().splitlines()
    assert quoted and [row for row in quoted if row not in measured] == []


def test_every_failure_gauge_and_key_of_a_user_is_on_the_page_of_users():
    text = (ROOT / "docs" / "users.md").read_text()
    limits = {name: field.default for name, field in GaugeLimits.model_fields.items()}
    cases = limits.pop("min_cases")
    assert cases and all(
        re.search(rf"^\| `{name}` .*\| {limit:g} \|$", text, re.M) for name, limit in limits.items()
    )
    assert [failure for failure in Failure if f"| `{failure}` |" not in text] == []


def test_every_option_of_an_evaluation_is_on_its_page():
    text = (ROOT / "docs" / "evaluation.md").read_text()
    actions = _parser().parse_args(["evaluate", "--policy", "expert"])
    no_options = {"command", "defaults", "recipe"}
    options = {f"--{name.replace('_', '-')}" for name in vars(actions).keys() - no_options}
    assert [option for option in sorted(options) if option not in text] == []
