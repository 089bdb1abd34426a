"""A person as the user of a policy: scripts, model folders, checkpoints of a run, and endpoints."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engines.protocol import CompletionRequest, Sampling
from actors.engines.scripted_engine import ScriptedEngine
from actors.engines.transformers_engine import TransformersEngine
from actors.renderer import Renderer
from actors.trajectory import TokenIds
from cluster.cli.main import main
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig, load
from cluster.play.policy import Opponent, PolicyRequest, find_policy, open_policy, with_settings_of
from cluster.play.rollout import play_policy
from cluster.play.terminal import Terminal
from cluster.run_folder.paths import LEARNER_FOLDER, RunFolder
from learners.config import LearnerSettings, TinyPolicyConfig
from learners.model.tiny_policy import build
from learners.policy_learner import PolicyLearner
from simulators.gyms import GYMS
from simulators.gyms.telepathy import PROPERTIES
from simulators.message import Message
from tests.actors.engines.test_openai_engine import call
from tests.cluster.play.test_play import userrl_play
from tests.fake_endpoint import serve_endpoint
from tests.fakes import make_tasks

pytestmark = pytest.mark.medium

TINY = TinyPolicyConfig(
    hidden_size=32, num_layers=2, num_heads=2, head_dim=32, intermediate_size=48, vocab_size=1024
)
TASKS = {"run.name": "mine", "learner.lora_rank": "2", "rollout.max_completion_tokens": "12"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build(folder, TINY, max_tokens=512, seed=0)
    return folder


@pytest.fixture(scope="module")
def renderer(model: Path) -> Renderer:
    return Renderer.from_folder(model)


def a_terminal(typed: list[str]) -> tuple[Terminal, list[str]]:
    """One at which this is typed, and what it shows."""
    shown: list[str] = []
    lines: Iterator[str] = iter(typed)

    def read_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return Terminal(read_line=read_line, show=shown.append), shown


def request_of(renderer: Renderer, *, seed: int = 0, temperature: float = 1.0) -> CompletionRequest:
    said = [Message(role="system", content="Rules."), Message(role="user", content="Hello.")]
    dialogue = renderer.begin(said)
    return CompletionRequest(
        token_ids=dialogue.token_ids,
        messages=said,
        sampling=Sampling(temperature=temperature, max_completion_tokens=8),
        seed=seed,
    )


def greedy(model: Path, prompt: TokenIds, *, stop_id: int, most: int) -> list[int]:
    """The likeliest completion, token for token, by the model's own logits."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = prompt.tolist()
    for _ in range(most):
        with torch.inference_mode():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == stop_id:
            break
    return ids[len(prompt) :]


async def test_a_local_engine_samples_from_the_policy_as_it_is(model: Path, renderer: Renderer) -> None:
    engine = TransformersEngine(model, renderer=renderer)
    cold = await engine.complete(request_of(renderer, temperature=1e-4))
    prompt = request_of(renderer).token_ids
    assert cold.token_ids.tolist() == greedy(model, prompt, stop_id=renderer.stop_id, most=8)
    first, again, other = [
        (await engine.complete(request_of(renderer, seed=seed))).token_ids.tolist() for seed in (1, 1, 2)
    ]
    assert first == again != other
    assert max(map(len, (first, other))) <= 8
    assert engine.max_tokens == 512
    assert not np.any(cold.logprobs), "what it plays is never trained"


def test_what_a_models_makers_advise_changes_nothing(model: Path, renderer: Renderer, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "top_k": 1, "repetition_penalty": 9.0}'
    )
    completions = [
        asyncio.run(TransformersEngine(folder, renderer=renderer).complete(request_of(renderer, seed=3)))
        for folder in (model, tmp_path)
    ]
    assert completions[0].token_ids.tolist() == completions[1].token_ids.tolist()


def test_a_policy_plays_a_whole_dialogue_with_a_person(renderer: Renderer) -> None:
    """The expert's actions, as tokens; the person answers each question by the task's own card."""
    (task,) = make_tasks("telepathy", num=1)
    gym = GYMS["telepathy"]
    engine = ScriptedEngine("expert", gym=gym, task=task, renderer=renderer, seed=0)
    shown: list[str] = []

    def read_line(prompt: str) -> str:
        asked = next(line for line in reversed(shown) if line.startswith("\nThe agent (action)"))
        word = asked.rstrip("?").split()[-1]
        return str(PROPERTIES.index(word) + 1)

    opponent = Opponent(engine=engine, renderer=renderer, max_tokens=2**20)
    play_policy(
        load(None), gym, task, opponent=opponent, terminal=Terminal(read_line=read_line, show=shown.append)
    )
    told = "\n".join(shown)
    assert "agent: [action] Is it" in told and re.search(
        rf"agent: \[answer\] .*{task.scenario['target']}", told
    ), told
    assert told.index("agent: [action]") < told.index("The agent (action)") < told.index("environment: ")
    assert told.rstrip().endswith("turns") and "The dialogue is over.\n" in told and "score 1.00" in told


def test_a_policy_that_makes_no_call_ends_the_dialogue_and_one_without_a_user_has_no_score(
    model: Path, renderer: Renderer
) -> None:
    (task,) = make_tasks("telepathy", num=1)
    gym, config = GYMS["telepathy"], load(None, {"rollout.max_completion_tokens": "4"})
    terminal, shown = a_terminal([])
    random_model = Opponent(
        engine=TransformersEngine(model, renderer=renderer), renderer=renderer, max_tokens=512
    )
    play_policy(config, gym, task, opponent=random_model, terminal=terminal)
    assert shown[-1] == "\nThe agent made no tool call, which ends the dialogue.\nscore 0.00 in 1 turn"
    terminal, shown = a_terminal([])  # the person leaves at once
    script = ScriptedEngine("expert", gym=gym, task=task, renderer=renderer, seed=0)
    expert = Opponent(engine=script, renderer=renderer, max_tokens=2**20)
    play_policy(load(None), gym, task, opponent=expert, terminal=terminal)
    assert shown[-1] == "\nThe dialogue broke off (human: the input ended): no score."


@pytest.fixture
def run(tmp_path: Path, model: Path) -> RunFolder:
    """A run that trains adapters of the model, with a checkpoint whose weights are not the model's."""
    config = load(None, TASKS | {"run.folder": str(tmp_path), "policy.path": str(model)})
    folder = RunFolder.of(config)
    folder.create(config)
    learner = PolicyLearner(
        LearnerSettings(
            policy_folder=str(model), learner=config.learner, sft=config.sft, temperature=1.0, seed=0
        )
    )
    with torch.no_grad():
        for number, weight in enumerate(learner._policy.parameters()):
            if weight.requires_grad:
                weight.add_(0.01 * (number % 3 + 1))
    learner.save(str(folder.begin_checkpoint(3) / LEARNER_FOLDER))
    assert not learner.saved(wait=True).error
    folder.complete_checkpoint(3)
    learner.export(str(tmp_path / "expected"))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("named", ["run", "checkpoint"])
def test_a_checkpoint_of_a_run_plays_with_its_own_weights_and_lengths(
    run: RunFolder, named: str, model: Path
) -> None:
    place = find_policy(str(run.path if named == "run" else run.checkpoint(3)))
    assert place.checkpoint == run.checkpoint(3)
    config = with_settings_of(place, load(None), overrides={})
    assert config.rollout.max_completion_tokens == 12
    opponent = open_policy(PolicyRequest(policy=place.path), place, config)
    assert isinstance(opponent.engine, TransformersEngine)
    assert opponent.max_tokens == 512, "the model was made for no more"
    playing, expected = opponent.engine._model.state_dict(), weights_of(run.path.parent / "expected")
    assert playing.keys() == expected.keys()
    assert all(torch.equal(playing[name], expected[name]) for name in expected)
    assert any(not torch.equal(expected[name], weight) for name, weight in weights_of(model).items())


def test_a_finished_runs_model_plays_and_the_command_line_comes_before_the_runs_settings(
    run: RunFolder, model: Path
) -> None:
    run.model.mkdir()
    for file in model.iterdir():
        (run.model / file.name).write_bytes(file.read_bytes())
    for named in (run.path, run.model):
        place = find_policy(str(named))
        assert (Path(place.path), place.checkpoint) == (run.model, None)
        base = load(None, {"rollout.temperature": "0.5"})
        assert with_settings_of(place, base, overrides={}).rollout.max_completion_tokens == 12
        words = {"rollout.temperature": "0.5", "engine.max_num_seqs": "3", "gyms.difficulty": "2"}
        kept = with_settings_of(place, base, overrides=words)
        assert (kept.rollout.temperature, kept.rollout.max_completion_tokens) == (0.5, 12)
        made = load(run.config).engine
        assert kept.engine == made.model_copy(update={"max_num_seqs": 3})


def test_a_damaged_checkpoint_is_one_line(run: RunFolder) -> None:
    (tensors,) = (run.checkpoint(3) / LEARNER_FOLDER).glob("rank-*.bin")
    tensors.write_bytes(b"")
    place = find_policy(str(run.path))
    with pytest.raises(BadInput, match=r"--policy: .*damaged"):
        open_policy(PolicyRequest(policy=place.path), place, load(run.config))


def test_an_unfinished_checkpoint_is_refused(run: RunFolder) -> None:
    old = run.checkpoint(3).with_name("step-00002") / LEARNER_FOLDER
    old.mkdir(parents=True)
    place = find_policy(str(old.parent))
    assert place.checkpoint == old.parent
    with pytest.raises(BadInput, match="no finished"):
        open_policy(PolicyRequest(policy=place.path), place, load(run.config))


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    config: RunConfig = load(None, {"run.name": "young", "run.folder": str(tmp_path)})
    RunFolder.of(config).create(config)
    with pytest.raises(BadInput, match="the run has no checkpoint yet"):
        find_policy(str(tmp_path / "young"))


def test_a_person_plays_the_user_of_other_scripts() -> None:
    silent = userrl_play("telepathy", "--as", "user", "--policy", "silent", typed=[])
    assert "agent: [finish]" in silent.stdout
    assert silent.stdout.endswith("The dialogue is over.\nscore 0.00 in 1 turn\n")
    aimless = userrl_play("telepathy", "--as", "user", "--policy", "random", typed=[])
    assert "\nagent: [" in aimless.stdout and aimless.returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policy", "expert"], "you are the agent yourself: add --as user"),
        (["--as", "user", "--policy", "exprt"], "did you mean expert?"),
        (["--as", "user", "--policy", "./nowhere"], "no such folder"),
        (["--as", "user", "--policy", "expert", "--model", "m"], "--model='m': goes with a base URL"),
        (["--as", "user", "--policy", "http://127.0.0.1:1/v1", "--model", "m"], "no answer"),
    ],
)
def test_a_policy_that_cannot_play_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", "telepathy", *words]) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.count("\n") == 1 and not told.out


async def test_a_person_plays_the_user_of_an_endpoints_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (task,) = make_tasks("telepathy", num=1)
    script = [
        call('{"choice": "action", "content": "Is it animal?"}'),
        call('{"choice": "finish", "content": ""}'),
    ]
    terminal, shown = a_terminal([str(PROPERTIES.index("animal") + 1)])

    def play_it(url: str) -> None:
        config, request = load(None), PolicyRequest(policy=url, model="m")
        opponent = open_policy(request, None, config)
        play_policy(config, GYMS["telepathy"], task, opponent=opponent, terminal=terminal)

    async with serve_endpoint(script) as endpoint:
        await asyncio.to_thread(play_it, endpoint.url)
    told = "\n".join(shown)
    assert f'"target": "{task.scenario["target"]}"' in told, "the person knows the card"
    assert "agent: [action] Is it animal?" in told and "agent: [finish]" in told
    assert told.endswith("The dialogue is over.\nscore 0.00 in 2 turns")
    assert [message["role"] for message in endpoint.requests[1]["messages"]] == [
        *("system", "user", "assistant", "tool")
    ]
