"""Tiny policy for CPU runs: a Qwen3-architecture model with random weights and a tokenizer trained on the
gyms' language.

It is written as a folder that `from_pretrained` and vLLM load like a downloaded one. Numbers are tokenised
digit by digit; each constant text (a gym's rules, a tool call's syntax) is one token."""

import asyncio
import json
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from learners.config import TinyPolicyConfig
from simulators.env import GymEnv
from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.message import TOOL_NAME, TOOL_SCHEMA
from simulators.task import TaskKey
from simulators.users.rule_user import RuleUser

STOP = "<|im_end|>"
PAD = "<|endoftext|>"
SYNTAX = (
    f'<tool_call>\n{{"name": "{TOOL_NAME}", "arguments": {{"choice": "',
    '", "content": "',
    '"}}\n</tool_call>',
    "\n<|im_start|>user\n<tool_response>\n",
    "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
"""Constant text between messages; one token each, like the rules: see `constants`."""
WORDS = r"\d| ?[A-Z][a-z]| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+|\s"
"""Pre-tokenisation: single digits, the first two letters of a name, words with their space, punctuation."""
INITIALIZER_RANGE = 0.1
"""Standard deviation of the random weights: with the usual 0.02 so narrow a model learns to copy three times
later."""
ROPE_THETA = 200.0
"""Dialogues have some hundred tokens: with a base of 10 000 most frequencies are too low to distinguish
positions."""
CORPUS_DIALOGUES_PER_GYM = 300
CORPUS_LEVELS = (0, 0, 0, 0, 1, 2)
"""Difficulty of the dialogues, in rotation: mostly the easiest, which a policy of this size can learn."""
CORPUS_SEED = 0
CHAT_TEMPLATE = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% else %}{% set system = '' %}{% endif %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}{{ '\\n<tools>\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '</tools>' }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
  {%- if message.role == 'user' %}{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
  {%- elif message.role == 'assistant' %}
    {{- '<|im_start|>assistant\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
      {{- '\\n' if message.content or not loop.first }}
      {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
      {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
  {%- elif message.role == 'tool' %}
    {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""  # noqa: E501
"""The ChatML form with Qwen3's <tools>, <tool_call> and <tool_response> blocks."""


def build(
    folder: Path,
    config: TinyPolicyConfig,
    *,
    max_tokens: int,
    seed: int,
    gyms: Mapping[str, Gym] = GYMS,
) -> None:
    """Writes model and tokenizer into `folder`, for the language of these gyms; the same seed gives the same
    bytes."""
    disable_progress_bar()
    tokenizer = make_tokenizer(vocab_size=config.vocab_size, gyms=gyms)
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_dim=config.head_dim,
            max_position_embeddings=max_tokens,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,  # type: ignore[arg-type]
            pad_token_id=tokenizer.pad_token_id,  # type: ignore[arg-type]
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            initializer_range=INITIALIZER_RANGE,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def constants(gyms: Mapping[str, Gym]) -> tuple[str, ...]:
    """Constant texts: one token each, so that a small policy spends its few parameters on the rest."""
    tools = json.dumps(TOOL_SCHEMA)
    rules = (f"<|im_start|>system\n{gym.system}\n<tools>\n{tools}\n</tools>" for gym in gyms.values())
    return (*SYNTAX, *rules)


def make_tokenizer(*, vocab_size: int, gyms: Mapping[str, Gym] = GYMS) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the gyms' rules, openings, actions and feedback."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    specials = [PAD, "<|im_start|>", STOP]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(constants(gyms)) - 4,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(gyms), trainer)
    blocks = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*constants(gyms), *blocks)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=STOP, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def _corpus(gyms: Mapping[str, Gym]) -> list[str]:
    """Texts of dialogues in these gyms, played in this process."""
    texts = ["system", "user", "assistant"] * CORPUS_DIALOGUES_PER_GYM
    for name, gym in gyms.items():
        texts += _texts_of_builtin(name) if GYMS.get(name) is gym else _texts_of(gym)
    return texts


@cache
def _texts_of_builtin(name: str) -> list[str]:
    return _texts_of(GYMS[name])


def _texts_of(gym: Gym) -> list[str]:
    """Messages of the gym's expert and user on training tasks."""
    texts = []
    for index in range(CORPUS_DIALOGUES_PER_GYM):
        difficulty = CORPUS_LEVELS[index % len(CORPUS_LEVELS)]
        key = TaskKey(gym=gym.name, split="train", index=index, seed=CORPUS_SEED, difficulty=difficulty)
        texts += asyncio.run(_expert_dialogue(gym, key))
    return texts


async def _expert_dialogue(gym: Gym, key: TaskKey) -> list[str]:
    task = gym.make_task(key)
    env = GymEnv(gym, task=task, user=RuleUser({gym.name: gym}))
    texts = [task.opening]
    expert = gym.expert(task.opening, random.Random(key.index), 0.0)
    action = next(expert)
    while True:
        step = await env.step(str(action))
        texts += (action.thought, action.choice, action.content, step.feedback)
        if step.terminated or step.truncated:
            return texts
        try:
            action = expert.send(step.feedback)
        except StopIteration:  # the expert is done before the dialogue has ended
            return texts
