"""Encrypted environment variables: only a process with the token can decrypt them."""

import os

import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.jobs.submit import encrypted_environment
from cluster.ray_cluster.encrypted_env import ENCRYPTED, decrypt_environment, encrypt_environment

CANARY = "canary-4711"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-cluster's")
    monkeypatch.setenv("THE_KEY", CANARY)


def test_the_ciphertext_shows_neither_name_nor_value_and_the_token_decrypts_it() -> None:
    environment = encrypted_environment(["THE_KEY"])
    assert environment.keys() == {ENCRYPTED}
    assert CANARY not in environment[ENCRYPTED]
    assert "THE_KEY" not in environment[ENCRYPTED]
    del os.environ["THE_KEY"]
    os.environ |= environment
    decrypt_environment()
    assert os.environ["THE_KEY"] == CANARY


def test_another_token_decrypts_nothing_and_reveals_nothing() -> None:
    os.environ[ENCRYPTED] = encrypt_environment({"THE_KEY": CANARY}, token="another")
    with pytest.raises(RuntimeError, match="node's Ray token is not the one") as error:
        decrypt_environment()
    assert CANARY not in str(error.value)


def test_the_same_value_has_a_different_ciphertext_each_time() -> None:
    assert encrypt_environment({"A": "1"}, token="t") != encrypt_environment({"A": "1"}, token="t")


def test_a_process_without_encrypted_variables_is_unchanged() -> None:
    before = dict(os.environ)
    decrypt_environment()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("UNSET_HERE", "--env UNSET_HERE: not set here: export it"),
        (f"THE_KEY={CANARY}", "--env THE_KEY=...: give the name alone"),
    ],
)
def test_a_variable_that_cannot_be_sent_is_refused_without_its_value(name: str, says: str) -> None:
    with pytest.raises(BadInput) as error:
        encrypted_environment([name])
    assert says in str(error.value)
    assert CANARY not in str(error.value)


def test_without_a_token_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs.submit.find_token", lambda: None)
    with pytest.raises(BadInput, match="sealed with the cluster's token, and there is none here"):
        encrypted_environment(["THE_KEY"])
    assert encrypted_environment([]) == {}


def test_the_command_line_of_a_job_decrypts_them_before_it_checks_a_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.environ |= encrypted_environment(["THE_KEY"])
    del os.environ["THE_KEY"]
    assert main(["check", "nowhere.toml"]) == 2
    assert os.environ["THE_KEY"] == CANARY
    assert CANARY not in "".join(capsys.readouterr())
