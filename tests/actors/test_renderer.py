"""Token in, token out: training sees the sampled tokens, whatever the chat template would make of them."""

import copy
import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerFast

from actors.engines.protocol import Sampling
from actors.renderer import Renderer
from actors.rollout import RolloutContext, rollout
from actors.tool_call_parser import parse_tool_call
from actors.trajectory import Trajectory, as_ids
from learners.model.tiny_policy import CHAT_TEMPLATE, make_tokenizer
from simulators.gyms import GYMS
from simulators.message import TOOL_NAME, Action, Message
from simulators.users.rule_user import RuleUser
from tests.fakes import TextEngine, make_key

OPENING = (Message(role="system", content="Rules."), Message(role="user", content="Which one?"))
# Its line ends differ from the tiny policy's, whose tokenizer joins a stop and what follows it into one
# token.
PLAIN = CHAT_TEMPLATE.replace("<|im_end|>\\n'", "<|im_end|>|\\n'")
REORDERING = PLAIN.replace(
    "+ call.function.arguments | tojson",
    "+ ('{\"content\":' + call.function.arguments.content | tojson"
    " + ',  \"choice\":\"' + call.function.arguments.choice + '\"}')",
)
THINKING = PLAIN.replace(
    "assistant\\n' + message.content", "assistant\\n<think>\\n</think>\\n' + message.content"
)
STRIPPING = PLAIN.replace(
    "{{- '<|im_start|>assistant\\n' + message.content }}",
    "{{- '<|im_start|>assistant\\n' + (message.content.split('</think>')[-1] | trim) }}",
)
STRIPPING_LATER = PLAIN.replace(
    "{{- '<|im_start|>assistant\\n' + message.content }}",
    "{{- '<|im_start|>assistant\\n' + (message.content if loop.index0 >= (messages | length) - 2"
    " else (message.content.split('</think>')[-1] | trim)) }}",
)
REWRITING = {"plain": PLAIN, "reordering": REORDERING, "thinking": THINKING, "stripping": STRIPPING}
REWRITING["stripping later"] = STRIPPING_LATER


def call(choice: str, content: str) -> str:
    arguments = {"choice": choice, "content": content}
    return f"<tool_call>\n{json.dumps({'name': TOOL_NAME, 'arguments': arguments})}\n</tool_call>"


COMPLETIONS = (
    call("action", "1 2 3 4"),
    '<tool_call>{"arguments":   {"content" : "0 0 0 1", "choice":"action"},\n "name":"'
    + TOOL_NAME
    + '"}</tool_call>',
    "Let me see.  " + call("action", "4 3 2 1") + " And now?\n",
    "<think>\n\nHm. </think>" + call("action", "0 0 0 0"),
    call("search", "test"),
    call("finish", "caf\u00e9 \U0001f600"),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(vocab_size=1024)


def renderer_of(tokenizer: PreTrainedTokenizerFast, template: str) -> Renderer:
    variant = copy.copy(tokenizer)
    variant.chat_template = template
    return Renderer(variant)


async def talk(
    renderer: Renderer, texts: Sequence[str], *, stops: bool = True
) -> tuple[Trajectory, TextEngine]:
    engine = TextEngine(renderer, texts, stops=stops)
    context = RolloutContext(
        engine_for=lambda task, seed: engine,
        user=RuleUser(),
        renderer=renderer,
        sampling=Sampling(max_completion_tokens=8),
        gyms=GYMS,
        personas="plain",
        max_turns=None,
        max_tokens=10_000,
    )
    return await rollout(make_key("function"), context, seed=0), engine


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, *REWRITING.values()], ids=["tiny", *REWRITING])
async def test_training_sees_the_tokens_that_the_engine_was_given_and_sampled(
    tokenizer: PreTrainedTokenizerFast, template: str, stops: bool
):
    renderer = renderer_of(tokenizer, template)
    trajectory, engine = await talk(renderer, COMPLETIONS, stops=stops)
    assert trajectory.stop_reason == "terminated" and len(trajectory.turns) == len(COMPLETIONS)
    sequence: list[int] = []
    for text, turn, request in zip(COMPLETIONS, trajectory.turns, engine.requests, strict=True):
        sequence = [*([] if turn.forked else sequence), *turn.context_ids]
        assert sequence == list(request.token_ids)
        sampled = [*renderer.encode(text), *([renderer.stop_id] if stops else [])]
        assert list(turn.completion.token_ids) == sampled
        sequence += sampled
        assert turn.text == text


@pytest.mark.parametrize("name", ["plain", "reordering", "thinking"])
async def test_a_template_that_would_only_rewrite_completions_never_forks(
    tokenizer: PreTrainedTokenizerFast, name: str
):
    renderer = renderer_of(tokenizer, REWRITING[name])
    trajectory, _ = await talk(renderer, COMPLETIONS)
    assert [turn.forked for turn in trajectory.turns] == [True] + [False] * 5
    for before, turn in pairwise(trajectory.turns):
        reply = f"<|im_start|>user\n<tool_response>\n{before.feedback}\n</tool_response><|im_end|>|\n"
        between = f"|\n{reply}<|im_start|>assistant\n"
        assert renderer.tokenizer.decode(list(turn.context_ids)) == between


def test_a_completion_cut_by_length_gets_the_stop_as_context(tokenizer: PreTrainedTokenizerFast):
    renderer = renderer_of(tokenizer, PLAIN)
    dialogue = renderer.begin(OPENING)
    message = Message(role="assistant", content="", action=Action(choice="action", content="1"))
    reply = Message(role="tool", content="ok")
    ids = renderer.encode(call("action", "1"))
    cut = renderer.extend(dialogue, completion_ids=as_ids(ids), message=message, reply=reply)
    whole = renderer.extend(
        dialogue, completion_ids=as_ids([*ids, renderer.stop_id]), message=message, reply=reply
    )
    assert cut.token_ids.tolist() == whole.token_ids.tolist()
    assert cut.context_ids.tolist() == [renderer.stop_id, *whole.context_ids.tolist()]


def test_a_canonical_dialogue_grows_into_what_the_template_renders_from_scratch(
    tokenizer: PreTrainedTokenizerFast,
):
    renderer = renderer_of(tokenizer, PLAIN)
    dialogue = renderer.begin(OPENING)
    for content in ("Is it red?", 'a "quoted" \\ word', "1 2 3"):
        action = Action(choice="action", content=content)
        dialogue = renderer.extend(
            dialogue,
            completion_ids=renderer.completion_of(action),
            message=Message(role="assistant", content="", action=action),
            reply=Message(role="tool", content="No."),
        )
        assert not dialogue.forked
        assert dialogue.token_ids.tolist() == renderer.begin(dialogue.messages).token_ids.tolist()


def test_the_tiny_policys_dialogue_reads_as_its_template_renders_it(tokenizer: PreTrainedTokenizerFast):
    renderer = renderer_of(tokenizer, CHAT_TEMPLATE)
    action = Action(choice="action", content="Is it red?")
    dialogue = renderer.extend(
        renderer.begin(OPENING),
        completion_ids=renderer.completion_of(action),
        message=Message(role="assistant", content="", action=action),
        reply=Message(role="tool", content="No."),
    )
    scratch = renderer.begin(dialogue.messages)
    assert renderer.tokenizer.decode(list(dialogue.token_ids)) == renderer.tokenizer.decode(
        list(scratch.token_ids)
    )


@pytest.mark.parametrize(("template", "forks"), [(STRIPPING, [4]), (STRIPPING_LATER, [5])])
async def test_a_template_that_strips_thoughts_forks_into_a_rendering_from_scratch(
    tokenizer: PreTrainedTokenizerFast, template: str, forks: list[int]
):
    renderer = renderer_of(tokenizer, template)
    trajectory, engine = await talk(renderer, COMPLETIONS)
    forked = [index for index, turn in enumerate(trajectory.turns) if turn.forked]
    assert forked == [0, *forks]
    for index in forked:
        request = engine.requests[index]
        assert request.token_ids.tolist() == renderer.begin(request.messages).token_ids.tolist()
        assert "Hm." not in renderer.tokenizer.decode(list(request.token_ids))


def test_a_tokenizer_without_a_template_is_refused(tokenizer: PreTrainedTokenizerFast):
    variant = copy.copy(tokenizer)
    variant.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        Renderer(variant)


@pytest.mark.parametrize("thought", ["", "a+5"])
@pytest.mark.parametrize("content", ["", "F30", 'a "quoted" \\ one', "two\nlines", "caf\u00e9 \U0001f600"])
def test_a_tool_call_is_read_back_from_its_tokens(
    tokenizer: PreTrainedTokenizerFast, content: str, thought: str
):
    renderer = renderer_of(tokenizer, CHAT_TEMPLATE)
    ids = renderer.completion_of(Action(choice="answer", content=content, thought=thought))
    assert ids[-1] == renderer.stop_id and ids.tolist().count(renderer.stop_id) == 1
    assert parse_tool_call(renderer.decode(ids)) == Action(choice="answer", content=content)
