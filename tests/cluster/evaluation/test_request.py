"""What `userrl evaluate` refuses before anything starts: one line with rule, value and cure."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.evaluation.request import EvaluationRequest, make_request, with_users
from cluster.preflight.endpoint import check_endpoint, endpoint_of
from simulators.llm_client.config import ChatConfig

KEY = "sk-loopback-0123456789"
DEFAULTS = RunConfig()


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("LOOPBACK_KEY", KEY)
    return tmp_path


def request(
    *,
    config: RunConfig = DEFAULTS,
    policy: str = "expert",
    model: str | None = None,
    api_key_env: str | None = None,
    simulators: str = "all",
    num_trials: int = 1,
    output: Path | None = None,
) -> EvaluationRequest:
    return make_request(
        config,
        policy=policy,
        model=model,
        api_key_env=api_key_env,
        simulators=simulators,
        split="test",
        num_trials=num_trials,
        success_score=0.99,
        output=output,
        as_json=False,
    )


@pytest.fixture
def endpoint() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """(URL, what GET /models answers, keys that were sent); an empty answer is a 401."""
    answers: dict[str, bytes] = {}
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization", ""))
            body = answers.get(self.path, b"")
            self.send_response(200 if body else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", answers, keys
    server.shutdown()
    server.server_close()


Served = tuple[str, dict[str, bytes], list[str]]


def test_a_script_a_simulator_and_an_output_make_a_request(in_an_empty_folder: Path) -> None:
    made = request(simulators="rules", num_trials=3, output=Path("new/e.json"))
    assert (made.kind, made.name, made.simulators, made.num_trials) == ("script", "expert", ("rules",), 3)
    assert list(in_an_empty_folder.iterdir()) == []


def test_rules_can_always_be_named_and_only_the_named_are_asked_for_their_keys() -> None:
    endpoint = {"type": "endpoint", "name": "far", "base_url": "https://far/v1", "model": "m"}
    config = RunConfig.model_validate({"simulator": {"users": [endpoint | {"weight": 0.5}]}})
    with pytest.raises(BadInput, match="simulator 'far': api_key_env='OPENAI_API_KEY' is not set"):
        request(config=config, simulators="far")
    assert request(config=config, simulators="rules, rules").simulators == ("rules",)
    (rules,) = with_users(config, ["rules"]).simulator.users
    (far,) = with_users(config, ["far"]).simulator.users
    assert (rules.name, rules.weight, far.name, far.weight) == ("rules", 1.0, "far", 1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--simulators", "ruls"], "--simulators: simulator='ruls' is not known: did you mean 'rules'?"),
        (["--trials", "0"], "--trials=0: each task is played at least once"),
        (["--model", "m"], "--model='m': goes with a base URL"),
        (["--output", "e.parquet"], "--output=e.parquet: names the JSON"),
        (["--output", "folder.json"], "folder.json is a folder"),
        (["--output", "file/e.json"], "file is a file, not a folder"),
        (["--output", "/proc/e.json"], "/proc cannot be written"),
        (["--output", "notes.json"], "is there already and no evaluation"),
        (["--gyms", "function,travl"], "did you mean travel?"),
        (["--gyms", "function", "--gyms.data.function", "none.json"], "data=none.json: no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_changes_nothing(
    words: list[str], says: str, in_an_empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_an_empty_folder / "folder.json").mkdir()
    (in_an_empty_folder / "file").write_text("x")
    (in_an_empty_folder / "notes.json").write_text('{"notes": []}')
    before = sorted(in_an_empty_folder.iterdir())
    assert main(["evaluate", "--policy", "expert", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert sorted(in_an_empty_folder.iterdir()) == before


@pytest.mark.medium
def test_an_endpoint_with_one_model_needs_no_name_and_no_key(endpoint: Served) -> None:
    url, answers, keys = endpoint
    answers["/v1/models"] = b'{"data": [{"id": "org/m"}]}'
    made = request(policy=url)
    assert made.endpoint is not None
    assert (made.kind, made.endpoint.model, made.endpoint.api_key_env) == ("endpoint", "org/m", "")
    assert made.name == f"{url}#org/m"
    assert keys == [""]


@pytest.mark.medium
def test_several_models_want_a_name(endpoint: Served) -> None:
    url, answers, _ = endpoint
    answers["/v1/models"] = b'{"data": [{"id": "a"}, {"id": "b"}]}'
    with pytest.raises(BadInput, match=r"has 2 models \(a, b\): give --model NAME"):
        request(policy=url)
    assert request(policy=url, model="b").name.endswith("#b")


@pytest.mark.medium
def test_an_endpoint_without_a_list_takes_any_name(endpoint: Served) -> None:
    url, answers, _ = endpoint
    answers["/v1/models"] = b"<html>"
    with pytest.raises(BadInput, match="does not list its models"):
        request(policy=url)
    assert request(policy=url, model="b").endpoint is not None


@pytest.mark.medium
def test_the_key_is_sent_and_never_shown(endpoint: Served) -> None:
    url, answers, keys = endpoint
    answers["/v1/models"] = b'{"data": [{"id": "m"}]}'
    made = request(policy=url, api_key_env="LOOPBACK_KEY")
    assert keys == [f"Bearer {KEY}"]
    assert KEY not in repr(made)
    answers.clear()
    with pytest.raises(BadInput, match=r"refuses the key \(status 401\)") as refusal:
        request(policy=url, api_key_env="LOOPBACK_KEY")
    assert KEY not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "api_key_env", "says"),
    [
        ("http://127.0.0.1:1/v1", None, "no answer"),
        ("http://user:secret@127.0.0.1/v1", None, "neither a password nor a query"),
        ("http://127.0.0.1:1/v1", "NO_SUCH_VARIABLE", "this environment variable is not set"),
        ("http://127.0.0.1:1/v1", KEY, "the NAME of an environment variable"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused(url: str, api_key_env: str | None, says: str) -> None:
    with pytest.raises(BadInput, match=says) as refusal:
        endpoint_of(url, model="m", api_key_env=api_key_env, temperature=1.0, timeout_s=1.0)
    assert KEY not in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.medium
def test_a_judges_endpoint_must_take_its_key(endpoint: Served) -> None:
    url, answers, keys = endpoint
    config = ChatConfig(base_url=url, model="m", api_key_env="LOOPBACK_KEY")
    answers["/v1/models"] = b'{"data": [{"id": "m"}]}'
    check_endpoint(config, section="reward.judge")
    assert keys == [f"Bearer {KEY}"]
    answers.clear()
    with pytest.raises(BadInput, match=r"status 401.*with reward\.judge\.api_key_env") as refusal:
        check_endpoint(config, section="reward.judge")
    assert KEY not in str(refusal.value)
