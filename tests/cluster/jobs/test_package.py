"""What a job takes along: the rooms and what the recipe names, and nothing else of the folder."""

import zipfile
from pathlib import Path

import pytest

from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.jobs import package
from cluster.jobs.package import ROOMS, pack

RECIPE = '[run]\nname = "sent"\n'


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With what must not leave it."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in (".env", ".git/config", "runs/a/metrics.jsonl", "wandb/x", "data/big.json"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("canary")
    (folder / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(folder)
    return folder


def packed(overrides: dict[str, str] | None = None) -> tuple[RunConfig, list[str]]:
    config = load(Path("r.toml"), overrides or {})
    pack(config, recipe=Path("r.toml"), target=Path("../p.zip"))
    with zipfile.ZipFile("../p.zip") as archive:
        return config, archive.namelist()


def test_the_rooms_and_the_recipe_go_along_and_nothing_else() -> None:
    _, names = packed()
    assert {name.partition("/")[0] for name in names} == {*ROOMS, "recipe.toml"}
    assert {"cluster/cli/main.py", "simulators/gyms/travel.py", "learners/losses/policy_loss.py"} <= set(
        names
    )
    assert not [name for name in names if "__pycache__" in name]
    with zipfile.ZipFile("../p.zip") as archive:
        assert archive.read("recipe.toml").decode() == RECIPE


def test_a_file_that_the_recipe_names_by_relative_path_goes_along_under_that_path() -> None:
    _, names = packed({"gyms.data.search": "data/big.json", "sft.files": "data/big.json"})
    assert "data/big.json" in names
    assert not [name for name in names if name.startswith(("runs", ".env", ".git"))]


def test_an_absolute_path_is_the_clusters_own() -> None:
    _, names = packed({"gyms.data.search": "/mnt/not/here.json", "policy.path": "/mnt/model"})
    assert not [name for name in names if "here.json" in name or "mnt/" in name]


@pytest.mark.parametrize("path", ["data/none.json", "../outside.json"])
def test_a_relative_path_that_is_not_sent_is_refused(path: str) -> None:
    Path("../outside.json").touch()
    with pytest.raises(
        BadInput, match=rf"gyms\.data\.search={path}: a job's files are sent from this folder"
    ):
        packed({"gyms.data.search": path})


def test_too_much_is_refused_with_the_largest_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MOST_MIB", 3)
    Path("data/big.json").write_bytes(bytes(4 * 2**20))
    with pytest.raises(
        BadInput, match=r"^gyms\.data\.search: .* 4 of them from there, and a cluster takes 3"
    ):
        packed({"gyms.data.search": "data/big.json"})
    assert not Path("../p.zip").exists()


def test_the_same_content_is_the_same_package() -> None:
    packed()
    first = Path("../p.zip").read_bytes()
    Path("r.toml").touch()
    packed()
    assert Path("../p.zip").read_bytes() == first
