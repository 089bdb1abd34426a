"""The tiny policy: a folder like any downloaded one, made alike from the same seed, and a tokenizer that
loses nothing."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from actors.renderer import Renderer
from actors.tool_call_parser import parse_tool_call
from learners.config import TinyPolicyConfig
from learners.model.tiny_policy import build, constants, make_tokenizer
from simulators.env import GymEnv
from simulators.gyms import GYMS
from simulators.message import TOOL_NAME, Action, Message
from simulators.task import Task
from simulators.users.rule_user import RuleUser
from tests.fakes import make_tasks

CONFIG = TinyPolicyConfig(hidden_size=32, num_layers=1, num_heads=1, intermediate_size=32, vocab_size=768)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(vocab_size=1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build(folder, CONFIG, max_tokens=256, seed=1)
    return folder


async def expert_dialogue(task: Task) -> list[tuple[Action, str]]:
    """(action, feedback) pairs of the expert's dialogue."""
    gym = GYMS[task.key.gym]
    env = GymEnv(gym, task=task, user=RuleUser())
    expert = gym.expert(task.opening, random.Random(0), 0.0)
    action, dialogue = next(expert), []
    while True:
        step = await env.step(str(action))
        dialogue.append((action, step.feedback))
        if step.terminated or step.truncated:
            return dialogue
        action = expert.send(step.feedback)


@pytest.mark.medium
def test_transformers_loads_the_folder_and_generates(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen3" and model.config.vocab_size == len(tokenizer)
    assert (
        model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    ids = torch.from_numpy(Renderer(tokenizer).begin([Message(role="user", content="hello")]).token_ids)[None]
    assert model(ids).logits.isfinite().all()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.medium
def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path):
    build(tmp_path, CONFIG, max_tokens=256, seed=1)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.medium
def test_another_seed_gives_other_weights_and_the_same_tokenizer(folder: Path, tmp_path: Path):
    build(tmp_path, CONFIG, max_tokens=256, seed=2)
    same = {
        path.name for path in folder.iterdir() if path.read_bytes() == (tmp_path / path.name).read_bytes()
    }
    assert "tokenizer.json" in same and "model.safetensors" not in same


@pytest.mark.medium
def test_the_vocabulary_keeps_to_its_size(folder: Path, tokenizer: PreTrainedTokenizerFast):
    assert len(tokenizer) <= 1024
    assert len(AutoTokenizer.from_pretrained(folder)) <= CONFIG.vocab_size


@pytest.mark.parametrize("gym", GYMS)
@pytest.mark.parametrize("difficulty", [0, 2])
async def test_texts_of_the_gyms_round_trip_through_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, gym: str, difficulty: int
):
    for task in make_tasks(gym, num=5, difficulty=difficulty):
        dialogue = await expert_dialogue(task)
        texts = [
            GYMS[gym].system,
            task.opening,
            *(text for action, said in dialogue for text in (action.content, said)),
        ]
        for text in texts:
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["", " ", "  two  spaces ", "a\n\tb", "caf\u00e9 \U0001f600", "don't ! , .", "12.5-3"]
)
def test_any_text_round_trips_through_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_each_constant_text_is_one_token(tokenizer: PreTrainedTokenizerFast):
    assert [len(tokenizer.encode(text)) for text in constants(GYMS)] == [1] * len(constants(GYMS))


def test_a_tool_call_is_its_constants_around_choice_and_content(tokenizer: PreTrainedTokenizerFast):
    ids = Renderer(tokenizer).completion_of(Action(choice="answer", content="7"))
    assert tokenizer.batch_decode([[i] for i in ids]) == [
        f'<tool_call>\n{{"name": "{TOOL_NAME}", "arguments": {{"choice": "',
        "answer",
        '", "content": "',
        "7",
        '"}}\n</tool_call>',
        "<|im_end|>",
    ]


def test_numbers_are_tokenised_digit_by_digit(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.batch_decode([[i] for i in tokenizer.encode("1234")]) == list("1234")


@pytest.mark.parametrize("gym", GYMS)
async def test_every_action_of_an_expert_is_parsed_from_its_tokens(
    tokenizer: PreTrainedTokenizerFast, gym: str
):
    renderer = Renderer(tokenizer)
    for difficulty in (0, 1, 2):
        for task in make_tasks(gym, num=5, difficulty=difficulty, split="train"):
            for action, _ in await expert_dialogue(task):
                read = parse_tool_call(renderer.decode(renderer.completion_of(action)))
                assert read == Action(choice=action.choice, content=action.content)
