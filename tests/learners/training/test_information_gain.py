"""Information gain against plain forward passes of the same model, and its effect on rewards."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from actors.renderer import Renderer
from actors.tool_call_parser import read_completion
from actors.trajectory import GroupOrder, StopReason, TokenIds, Trajectory
from actors.trajectory_table import REWARD, to_table
from learners.config import LearnerConfig
from learners.model.policy import PACKED_CAUSAL, Policy
from learners.model.tiny_policy import CHAT_TEMPLATE, make_tokenizer
from learners.training.information_gain import (
    INFORMATION_GAINS,
    MASK,
    InformationGain,
    gold_answer_gain,
    masked_feedback_gain,
)
from learners.training.step_batch import gain_metrics, samples_of_step, scorable, with_gain
from simulators.message import Action, Message
from tests.actors.test_renderer import COMPLETIONS, PLAIN, REWRITING, renderer_of, talk
from tests.fakes import make_key
from tests.learners.tiny_parts import make_turn, scorer_of, tiny_model

MAX_TOKENS = 20_000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(vocab_size=512)


def policy_for(renderer: Renderer) -> Policy:
    model = tiny_model(len(renderer.tokenizer))
    model.set_attn_implementation(PACKED_CAUSAL)
    return Policy(model, temperature=1.0).double()


def table_of(trajectories: Sequence[Trajectory], *, gold: str | None = None) -> pa.Table:
    """A group whose rewards are the environment's; `gold` in place of the gym's own."""
    key = trajectories[0].task_key
    order = GroupOrder(group_id=3, task_key=key, group_size=len(trajectories), seed=0)
    table = to_table(order, trajectories)
    if gold is not None:
        place = table.schema.get_field_index("gold")
        table = table.set_column(place, "gold", pa.array([gold] * table.num_rows))
    return table.append_column(REWARD, table["env_reward"])


async def group(renderer: Renderer, *, gold: str | None = None, size: int = 1) -> pa.Table:
    """Dialogues of six turns; the second is shorter."""
    talks = [await talk(renderer, COMPLETIONS[index:]) for index in range(size)]
    return table_of([trajectory for trajectory, _ in talks], gold=gold)


def plain_logprobs(policy: Policy, context: Sequence[int], ids: Sequence[int] | TokenIds) -> np.ndarray:
    """Of `ids` after the context, by the model alone, one sequence at a time."""
    policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*context, *ids]])).logits[0]
    policy.model.set_attn_implementation(PACKED_CAUSAL)
    log_probs = logits.log_softmax(-1)[len(context) - 1 : -1]
    return log_probs.gather(1, torch.tensor(ids)[:, None])[:, 0].numpy()


def contexts_of(table: pa.Table) -> list[list[int]]:
    """Everything before each turn's completion, of a table with one trajectory."""
    contexts, sequence = [], []
    for forked, context, completion in zip(
        *(table[name].to_pylist() for name in ("forked", "context_ids", "completion_ids")), strict=True
    ):
        sequence = [*([] if forked else sequence), *context]
        contexts.append(sequence)
        sequence = [*sequence, *completion]
    return contexts


def test_a_config_names_every_gain():
    names = get_args(LearnerConfig.model_fields["information_gain"].annotation)
    assert set(names) == {"none", *INFORMATION_GAINS}


GOLD = json.dumps(
    [
        {"choice": "answer", "content": "4"},
        {"choice": "answer", "content": 'twenty "one"'},
        {"choice": "finish", "content": "done"},
    ]
)


@pytest.mark.medium
@pytest.mark.parametrize("template", [PLAIN, REWRITING["stripping later"]], ids=["plain", "forking"])
async def test_the_gold_answers_gain_is_the_change_of_its_probability(
    tokenizer: PreTrainedTokenizerFast, template: str
):
    """And its sum is the last belief less the first."""
    renderer = renderer_of(tokenizer, template)
    table, policy = await group(renderer, gold=GOLD), policy_for(renderer)
    result = gold_answer_gain(table, scorable(table), renderer, scorer_of(policy, max_tokens=MAX_TOKENS))
    ids = renderer.completion_of(Action(choice="answer", content='twenty "one"'))
    counted = renderer.content_tokens(Action(choice="answer", content='twenty "one"'))
    beliefs = [np.exp(plain_logprobs(policy, context, ids)[counted].mean()) for context in contexts_of(table)]
    assert table["forked"].to_pylist()[1:].count(True) == (1 if template != PLAIN else 0)
    assert list(result.by_turn) == [(3, 0, turn) for turn in range(5)]
    assert list(result.by_turn.values()) == pytest.approx(np.diff(beliefs), abs=1e-9)
    assert sum(result.by_turn.values()) == pytest.approx(beliefs[-1] - beliefs[0], abs=1e-9)
    assert max(map(abs, result.by_turn.values())) > 1e-6


@pytest.mark.parametrize("content", ["F3", 'a "quote"', "caf\u00e9 \U0001f600", "}}", "a\nb"])
def test_the_counted_tokens_hold_the_content_and_nothing_before_or_after(
    tokenizer: PreTrainedTokenizerFast, content: str
):
    renderer = renderer_of(tokenizer, CHAT_TEMPLATE)
    action = Action(choice="answer", content=content)
    ids, counted = renderer.completion_of(action), renderer.content_tokens(action)
    assert len(ids) == len(counted)
    first, last = counted.index(True), len(counted) - counted[::-1].index(True)
    assert all(counted[first:last])
    written = json.dumps(content, ensure_ascii=False)[1:-1]
    before, text, after = (
        str(renderer.tokenizer.decode(part)) for part in (ids[:first], ids[first:last], ids[last:])
    )
    assert written in text and len(text) <= len(written) + 6
    assert '"content"' in before + text and "</tool_call>" in text + after


@pytest.mark.parametrize("stops", [True, False])
async def test_the_masked_feedback_gain_is_relative_to_the_dialogue_with_uninformative_feedback(
    tokenizer: PreTrainedTokenizerFast, stops: bool
):
    renderer = renderer_of(tokenizer, PLAIN)
    trajectory, _ = await talk(renderer, COMPLETIONS, stops=stops)
    table, policy = table_of([trajectory]), policy_for(renderer)
    scorer = scorer_of(policy, max_tokens=MAX_TOKENS)
    result = masked_feedback_gain(table, scorable(table), renderer, scorer)
    contexts, turns = contexts_of(table), trajectory.turns
    expected = []
    for turn, following in pairwise(turns):
        real = contexts[len(expected) + 1]
        between = list(following.context_ids)
        stop = between[: 0 if stops else 1]
        tail = str(renderer.tokenizer.decode(between[len(stop) :]))
        assert tail.count(turn.feedback) == 1
        masked = real[: -len(between)] + stop + renderer.encode(tail.replace(turn.feedback, MASK))
        said = list(following.completion.token_ids)
        gain = plain_logprobs(policy, real, said) - plain_logprobs(policy, masked, said)
        expected.append(gain.mean())
    assert list(result.by_turn) == [(3, 0, turn) for turn in range(5)]
    assert list(result.by_turn.values()) == pytest.approx(expected, abs=1e-9)
    assert max(map(abs, expected)) > 1e-6


@pytest.mark.medium
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, *REWRITING.values()], ids=["tiny", *REWRITING])
async def test_a_mask_equal_to_the_feedback_gives_no_gain(tokenizer: PreTrainedTokenizerFast, template: str):
    """Whatever the template rewrites: masked and actual dialogue are the same tokens."""
    renderer = renderer_of(tokenizer, template)
    table, policy = await group(renderer, size=2), policy_for(renderer)
    scorer = scorer_of(policy, max_tokens=MAX_TOKENS)
    result = masked_feedback_gain(table, scorable(table), renderer, scorer, mask=lambda feedback: feedback)
    assert len(result.by_turn) == 5 + 4
    assert max(map(abs, result.by_turn.values())) < 1e-9


def test_a_turn_without_feedback_has_no_gain_and_later_turns_have_one(tokenizer: PreTrainedTokenizerFast):
    renderer = renderer_of(tokenizer, PLAIN)
    dialogue = renderer.begin((Message(role="system", content="Rules."), Message(role="user", content="Go.")))
    turns = []
    for feedback in ("no", "", "yes", ""):
        action = Action(choice="action", content=str(len(turns)))
        ids = renderer.completion_of(action)
        text = renderer.decode(ids)
        turn = make_turn(dialogue.context_ids, ids, reward=0.0, forked=dialogue.forked)
        turns.append(replace(turn, text=text, action=action, feedback=feedback))
        reply = Message(role="tool", content=feedback)
        said = read_completion(text)
        dialogue = renderer.extend(dialogue, completion_ids=ids, message=said, reply=reply)
    key = make_key("function")
    trajectory = Trajectory(
        task_key=key, system="Rules.", opening="Go.", turns=turns, stop_reason=StopReason.MAX_TURNS
    )
    table = table_of([trajectory])
    scorer = scorer_of(policy_for(renderer), max_tokens=MAX_TOKENS)
    assert list(masked_feedback_gain(table, scorable(table), renderer, scorer).by_turn) == [
        (3, 0, 0),
        (3, 0, 2),
    ]


async def test_another_tokenizer_than_the_rollouts_is_refused(tokenizer: PreTrainedTokenizerFast):
    table = await group(renderer_of(tokenizer, PLAIN))
    renderer = renderer_of(tokenizer, CHAT_TEMPLATE)
    with pytest.raises(ValueError, match="renders to other tokens than were sampled: give"):
        masked_feedback_gain(table, scorable(table), renderer, scorer_of(policy_for(renderer)))


@pytest.mark.parametrize(
    "gold",
    ["", "[]", '[{"choice": "finish", "content": "x"}]', '[{"choice": "answer", "content": ""}]'],
)
async def test_a_task_without_a_gold_answer_gives_no_gain(tokenizer: PreTrainedTokenizerFast, gold: str):
    renderer = renderer_of(tokenizer, PLAIN)
    table = await group(renderer, gold=gold)
    result = gold_answer_gain(table, scorable(table), renderer, scorer_of(policy_for(renderer)))
    assert result == InformationGain(by_turn={}, num_too_long=0)


async def test_too_long_sequences_are_left_out_and_counted(tokenizer: PreTrainedTokenizerFast):
    """Beliefs after the opening and after the first feedback fit; no later one does."""
    renderer = renderer_of(tokenizer, PLAIN)
    table = await group(renderer, gold=GOLD)
    num_gold = len(renderer.completion_of(Action(choice="answer", content='twenty "one"')))
    limit = len(contexts_of(table)[1]) + num_gold
    scorer = scorer_of(policy_for(renderer), max_tokens=limit)
    result = gold_answer_gain(table, scorable(table), renderer, scorer)
    assert list(result.by_turn) == [(3, 0, 0)]
    assert result.num_too_long == 4


async def test_weighted_gains_are_added_to_rewards_and_a_non_finite_one_removes_the_reward(
    tokenizer: PreTrainedTokenizerFast,
):
    table = await group(renderer_of(tokenizer, PLAIN), size=2)
    rewards = table["reward"].to_numpy()
    gain = InformationGain(by_turn={(3, 0, 1): 0.5, (3, 1, 0): float("nan")}, num_too_long=0)
    gained = with_gain(table, gain, weight=2.0, scored={(3, 0), (3, 1)})
    assert (gained["reward"].to_numpy() - rewards)[:6].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert np.isnan(gained["reward"].to_numpy()[6])
    assert gained["env_reward"].equals(table["env_reward"])
    unasked = with_gain(table, gain, weight=2.0, scored={(3, 0)})["reward"].to_numpy()
    assert np.isnan(unasked[6:]).all() and np.isfinite(unasked[:6]).all()
    assert [sample.trajectory for sample in scorable(gained)] == [0]
    assert gain_metrics(gain, [table]) == {
        "learner/information_gain/function": 0.5,
        "learner/information_gain/mean": 0.5,
        "learner/information_gain/num_turns": 1.0,
        "learner/information_gain/num_too_long": 0.0,
    }


@pytest.mark.parametrize("kind", ["gold_answer", "masked_feedback"])
async def test_every_estimator_gets_the_gains_as_turn_rewards(tokenizer: PreTrainedTokenizerFast, kind: str):
    """turn_mean, one trajectory less the mean of two: half the difference of their rewards-to-go."""
    renderer = renderer_of(tokenizer, PLAIN)
    table, policy = await group(renderer, gold=GOLD, size=2), policy_for(renderer)
    scorer = scorer_of(policy, max_tokens=MAX_TOKENS)
    config = LearnerConfig.model_validate(
        {
            "advantage": {"type": "turn_mean", "gamma": 1},
            "information_gain": kind,
            "information_gain_weight": 3,
        }
    )
    samples, metrics, _ = samples_of_step([table], config=config, renderer=renderer, scorer=scorer)
    find = gold_answer_gain if kind == "gold_answer" else masked_feedback_gain
    gains = find(table, scorable(table), renderer, scorer).by_turn
    totals = [3.0 * sum(gain for key, gain in gains.items() if key[1] == index) for index in range(2)]
    rewards = np.bincount(table["trajectory"].to_numpy(), weights=table["reward"].to_numpy())
    first = samples[0].advantages[0]
    assert first == pytest.approx((totals[0] + rewards[0] - totals[1] - rewards[1]) / 2, abs=1e-6)
    assert metrics["learner/information_gain/mean"] == pytest.approx(np.mean(list(gains.values())))
    assert metrics["learner/information_gain/function"] == metrics["learner/information_gain/mean"]
