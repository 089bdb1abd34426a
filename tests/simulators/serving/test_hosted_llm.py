"""Hosted LLM users: a real vLLM on Ray Serve; a killed replica neither loses a dialogue nor scores one."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from simulators.config import LlmServeConfig, SimulatorConfig
from simulators.env import GymEnv, TurnResult
from simulators.gyms import GYMS
from simulators.llm_client.client import ChatClient
from simulators.serving.hosted_llm import app_name, deploy_llm, remove_llm
from simulators.user import User, UserCall, UserReply
from simulators.users.factory import chat_config, connect_users
from simulators.users.llm_user import LlmUser
from simulators.users.rule_user import RuleUser
from tests.fakes import make_tasks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PORT = 18471
NUM_DIALOGUES = 48
TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_model(folder: Path) -> None:
    """A Qwen3 of two thin layers with random weights that reads and writes single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        eos_token_id=fast.convert_tokens_to_ids("<|im_end|>"),
        dtype="bfloat16",
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SimulatorConfig:
    folder = tmp_path_factory.mktemp("model")
    build_model(folder)
    hosted = LlmServeConfig(
        name="bytes",
        model=str(folder),
        num_replicas=2,
        max_model_len=4096,
        kv_cache_gib=1,
        max_tokens=96,
        temperature=1.0,
        timeout_s=60.0,
        start_timeout_s=400.0,
        max_concurrency=NUM_DIALOGUES,
    )
    return SimulatorConfig(users=(hosted,))


@pytest.fixture(scope="module")
def url(config: SimulatorConfig) -> Iterator[str]:
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield deploy_llm(config.llms()[0], run="test", port=PORT)
    remove_llm(config.llms()[0], run="test")
    serve.shutdown()
    ray.shutdown()


@dataclass
class Counted:
    """Another user's replies, counted."""

    inner: User
    num_open: int = 0
    num_answered: int = 0

    async def reply(self, call: UserCall) -> UserReply:
        self.num_open += 1
        try:
            reply = await self.inner.reply(call)
        finally:
            self.num_open -= 1
        self.num_answered += 1
        return reply


@pytest.fixture
async def user(config: SimulatorConfig, url: str) -> AsyncIterator[Counted]:
    connected = connect_users(config, rules=RuleUser(), gyms=GYMS, llm_urls={"bytes": url})
    assert isinstance(connected, LlmUser)
    yield Counted(connected)
    await connected.close()


async def play(user: User, index: int) -> list[TurnResult]:
    """A dialogue in which every turn asks the user."""
    gym = GYMS["telepathy"]
    task = make_tasks("telepathy", num=index + 1)[index]
    env = GymEnv(gym, task=task, user=user, seed=index)
    rng = random.Random(index)
    steps = [
        await env.step(f"[action] Is it {rng.choice(('red', 'a bird', 'a tool'))}? {i}") for i in range(8)
    ]
    return [*steps, await env.step("[finish]")]


def replicas() -> list[str]:
    actors: list[Any] = list(ray.util.list_named_actors(all_namespaces=True))
    return sorted(a["name"] for a in actors if a["namespace"] == "serve" and "#LLMServer" in a["name"])


async def test_a_hosted_model_plays_users_within_their_schema(user: Counted, url: str):
    assert len(replicas()) == 2
    [steps] = [await play(user, 0)]
    replies = [step.user_reply for step in steps if step.user_reply]
    assert len(replies) == 8
    for reply in replies:
        assert (reply.simulator, reply.model) == ("bytes", "bytes")
        assert reply.num_tokens > 100 and reply.latency_s > 0 and len(reply.prompt_hash) == 16
        assert reply.text  # whatever the random weights say, it is one of the gym's own replies
    assert sum(step.reward for step in steps) == 0


@pytest.mark.soak
async def test_free_text_of_the_model_stays_json(config: SimulatorConfig, url: str):
    chat = ChatClient(chat_config(config.llms()[0], url=url))
    schema = {
        "type": "object",
        "properties": {"holds": {"enum": [True, False, None]}},
        "required": ["holds"],
        "additionalProperties": False,
    }
    reply = await chat.complete([{"role": "user", "content": "Is it so?"}], seed=1, schema=schema)
    await chat.close()
    assert reply.text in ('{"holds":true}', '{"holds":false}', '{"holds":null}')


@pytest.mark.soak
async def test_a_replica_killed_under_load_loses_no_dialogue_and_scores_none(user: Counted):
    victim, survivor = replicas()
    actor = ray.get_actor(victim, namespace="serve")
    dialogues = asyncio.gather(*(play(user, index) for index in range(NUM_DIALOGUES)))
    async with asyncio.timeout(120):
        while user.num_answered < NUM_DIALOGUES or user.num_open < NUM_DIALOGUES * 0.8:
            await asyncio.sleep(0.005)
    ray.kill(actor)  # with about half of the open calls in its hands
    finished = await dialogues
    assert survivor in replicas()  # the other one bore it
    assert [len(steps) for steps in finished] == [9] * NUM_DIALOGUES
    replies = [step.user_reply for steps in finished for step in steps[:-1]]
    assert all(reply is not None and reply.text and reply.simulator == "bytes" for reply in replies)
    assert any(reply is not None and reply.num_retries for reply in replies)
    assert sum(step.reward for steps in finished for step in steps) == 0


def test_a_model_that_is_not_there_is_refused_at_once(url: str):
    with pytest.raises(ValueError, match="is no folder"):
        deploy_llm(LlmServeConfig(name="gone", model="./no/such/folder"), run="test", port=PORT)
    assert app_name(LlmServeConfig(name="gone", model="x"), run="a") == "llm-a-gone"
