"""The cluster's token: where it is searched, and that other users of the machine cannot read a new one."""

import os
import stat
from pathlib import Path

import pytest

from cluster.config.recipe import BadInput
from cluster.ray_cluster.auth_token import default_path, find_token, provide_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_variable_precedes_the_named_file_which_precedes_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_token() is None
    default_path().parent.mkdir()
    default_path().write_text("home\n")
    assert find_token() == "home"
    named = tmp_path / "named"
    named.write_text(" named ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert find_token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_token() == "variable"


def test_a_named_file_without_a_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="no token can be read there"):
        find_token()
    (tmp_path / "none").touch()
    with pytest.raises(BadInput, match="the file is empty"):
        find_token()


def test_a_new_token_is_long_is_kept_and_is_readable_by_its_owner_only() -> None:
    provide_token()
    token = find_token()
    assert token is not None
    assert len(token) == 64
    assert mode(default_path()) == 0o600
    provide_token()
    assert find_token() == token


def test_a_world_readable_token_is_made_private_and_kept() -> None:
    default_path().parent.mkdir()
    default_path().write_text("from-ray")
    default_path().chmod(0o644)
    provide_token()
    assert (find_token(), mode(default_path())) == ("from-ray", 0o600)


def test_an_empty_file_is_replaced() -> None:
    default_path().parent.mkdir()
    default_path().touch(mode=0o644)
    provide_token()
    assert find_token()
    assert mode(default_path()) == 0o600


def test_an_unwritable_home_folder_leaves_the_token_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ray").write_text("a file where the folder should be")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_no_token_is_created_if_tokens_are_turned_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    provide_token()
    assert list(home.iterdir()) == []
