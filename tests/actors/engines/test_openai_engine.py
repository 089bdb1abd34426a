"""The engine of an endpoint's model, against a real server on loopback."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors.engines.openai_engine import OpenAIEngine
from actors.engines.protocol import Sampling
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout
from actors.trajectory import StopReason, Trajectory
from learners.model.tiny_policy import make_tokenizer
from simulators.gyms import GYMS
from simulators.llm_client.client import ChatClient, ChatConfig
from simulators.message import TOOL_NAME, TOOL_SCHEMA, Action
from simulators.users.rule_user import RuleUser
from tests.fake_endpoint import Endpoint, Script, completion, serve_endpoint
from tests.fakes import make_key

pytestmark = pytest.mark.medium

KEY = "sk-loopback-0123456789"
FIRST = ('{"choice": "action", "content": "1 2 3 4"}', '{"choice": "finish", "content": ""}')


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer(vocab_size=1024))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPBACK_KEY", KEY)


def call(*arguments: str, text: str | None = None, name: str = TOOL_NAME) -> dict[str, Any]:
    """A completion with a tool call for each of these arguments."""
    body = completion(text, "tool_calls")
    body["choices"][0]["message"]["tool_calls"] = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": one}}
        for i, one in enumerate(arguments)
    ]
    return body


def calls(anything: object) -> dict[str, Any]:
    """A completion with this in place of its tool calls."""
    body = completion(None, "tool_calls")
    body["choices"][0]["message"]["tool_calls"] = anything
    return body


@asynccontextmanager
async def played(
    script: Script, renderer: Renderer, *, gym: str = "function"
) -> AsyncIterator[tuple[Trajectory, Endpoint]]:
    """One dialogue with a server that answers by the script."""
    async with serve_endpoint(script) as endpoint:
        chat = ChatClient(
            ChatConfig(
                base_url=endpoint.url,
                model="m",
                api_key_env="LOOPBACK_KEY",
                max_retries=1,
                backoff_s=0.001,
                timeout_s=0.5,
            )
        )
        engine = OpenAIEngine(chat, renderer=renderer)
        context = RolloutContext(
            engine_for=lambda task, seed: engine,
            user=RuleUser(),
            renderer=renderer,
            sampling=Sampling(),
            gyms=GYMS,
            personas="plain",
            max_turns=None,
            max_tokens=2**24,
        )
        yield await rollout(make_key(gym), context, seed=3), endpoint
        await chat.close()


async def test_the_first_tool_call_is_the_action_and_the_tool_is_offered(renderer: Renderer) -> None:
    script = [call(FIRST[0], '{"choice": "answer", "content": "0"}', text="I will ask."), call(FIRST[1])]
    async with played(script, renderer) as (trajectory, endpoint):
        actions = [turn.action for turn in trajectory.turns]
        assert actions == [
            Action(choice="action", content="1 2 3 4"),
            Action(choice="finish", content=""),
        ]
        assert trajectory.stop_reason is StopReason.TERMINATED
        first, second = endpoint.requests
        assert first["tools"] == [TOOL_SCHEMA]
        assert [message["role"] for message in first["messages"]] == ["system", "user"]
        said, feedback = second["messages"][2:]
        assert said["content"] == "I will ask."
        assert json.loads(said["tool_calls"][0]["function"]["arguments"])["content"] == "1 2 3 4"
        assert feedback["role"] == "tool"
        assert feedback["tool_call_id"] == said["tool_calls"][0]["id"]
        assert feedback["content"] == trajectory.turns[0].feedback
        assert endpoint.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_a_model_that_plays_like_the_expert_scores_like_the_expert(renderer: Renderer) -> None:
    def expert(body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        script = GYMS["function"].expert(messages[1]["content"], random.Random(0), 0.0)
        action = next(script)
        for message in messages[2:]:
            if message["role"] == "tool":
                action = script.send(message["content"])
        return call(json.dumps({"choice": action.choice, "content": action.content}))

    async with played(expert, renderer) as (trajectory, _):
        assert trajectory.stop_reason is StopReason.TERMINATED
        assert sum(turn.reward for turn in trajectory.turns) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "answer",
    [
        "I think it is 7.",
        f'Quoted: <tool_call>{{"name": "{TOOL_NAME}", "arguments": {FIRST[0]}}}</tool_call>',
        "",
        call("not json"),
        call('{"choice": "guess", "content": "7"}'),
        call('{"choice": "answer", "content": 7}'),
        call('{"choice": "answer", "content": "\\ud800"}'),
        call('["answer", "7"]'),
        call('{"choice": "answer", "content": "7"}', name="other_tool"),
        call("[" * 100_000),
        calls("all of them"),
        calls([None, 7]),
        calls([{"id": "c", "type": "function", "function": None}]),
        calls([{"id": "c", "type": "function", "function": {"name": None, "arguments": FIRST[0]}}]),
    ],
)
async def test_a_reply_without_a_valid_tool_call_ends_the_dialogue_as_text(
    answer: Any, renderer: Renderer
) -> None:
    async with played([answer], renderer) as (trajectory, _):
        assert trajectory.stop_reason is StopReason.NO_TOOL_CALL
        assert [turn.action for turn in trajectory.turns] == [None]


@pytest.mark.parametrize("answer", [500, 401, (429, "insufficient_quota"), b"no json", {"choices": []}, 5.0])
async def test_an_endpoint_that_fails_is_an_engine_error_and_never_a_score(
    answer: Any, renderer: Renderer
) -> None:
    async with played([call(FIRST[0]), answer], renderer) as (trajectory, _):
        assert trajectory.stop_reason is StopReason.ENGINE_ERROR
        assert trajectory.stop_reason.failed
        assert len(trajectory.turns) == 1
        assert trajectory.error
        assert KEY not in trajectory.error


async def test_arguments_as_an_object_and_a_call_without_a_type_are_accepted(renderer: Renderer) -> None:
    function = {"name": TOOL_NAME, "arguments": json.loads(FIRST[0])}
    async with played([calls([{"id": "c", "function": function}]), call(FIRST[1])], renderer) as (first, _):
        assert first.turns[0].action == Action(choice="action", content="1 2 3 4")


async def test_text_survives_the_renderers_tokens(renderer: Renderer) -> None:
    content = 'Grüße, "quoted" \\ 東京 🙂 <|im_end|> line\nbreak'
    arguments = json.dumps({"choice": "action", "content": content})
    async with played([call(arguments, text="<|im_end|>"), call(FIRST[1])], renderer) as (trajectory, _):
        assert trajectory.turns[0].action == Action(choice="action", content=content)
