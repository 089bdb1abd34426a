"""Information-gain rewards: the value of a turn's feedback, measured by the policy's own probabilities.

`gold_answer` (IGPO, arXiv 2510.14967): how much more probable the feedback made the gold answer.
`masked_feedback` (InfoPO, arXiv 2603.00656): how much more probable it made the policy's next completion,
compared with the same dialogue with uninformative feedback. Both use the current weights, without a gradient.
The last turn has no gain: no completion follows its feedback."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy import ndarray

from actors.renderer import Renderer
from actors.tool_call_parser import read_completion
from actors.trajectory import TokenIds, as_ids
from learners.batch.samples import TrainingSample
from learners.training.forward_scoring import ForwardScorer, TurnKey, scores_by_turn, turn_logprobs
from simulators.message import Action, Message

MASK = "No information found."
"""Uninformative feedback, in InfoPO's words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InformationGain:
    """Result of scoring."""

    by_turn: Mapping[TurnKey, float]
    """The gain of each turn that has one; not finite if the policy's logprobs are not."""
    num_too_long: int
    """Sequences above the token limit of a forward pass; their turns have no gain."""


GainFn = Callable[[pa.Table, Sequence[TrainingSample], Renderer, ForwardScorer], InformationGain]
"""(table of any number of groups, their samples, ...) -> gains."""


def gold_answer_gain(
    table: pa.Table, samples: Sequence[TrainingSample], renderer: Renderer, scorer: ForwardScorer
) -> InformationGain:
    """g_t = b_t - b_(t-1), with b_t = exp(mean over j of log pi(a_j | history up to turn t's feedback, a_<j))
    the length-normalised probability of the gold answer a (IGPO, arXiv 2510.14967); b_0 is that after the
    opening, so that a dialogue's gains add up to the last b minus the first.

    The answer is scored inside its tool call, whose own tokens are given and not counted. Of several gold
    answers the last one is used. A task without one gives no gain.
    """
    golds = {gold: _gold_answer(gold, renderer) for gold in table["gold"].unique().to_pylist()}
    gold_of = {
        (group, trajectory): golds[gold]
        for group, trajectory, gold in _rows(table, "group_id", "trajectory", "gold")
    }
    probes: dict[TurnKey, TrainingSample] = {}
    for key, (sample, said) in _turns(samples).items():
        if (gold := gold_of[key[:2]]) is not None:
            probes[key] = _probe(sample, context=sample.token_ids[: said.start], ids=gold[0], counted=gold[1])
    logprobs, num_too_long = _score(probes, scorer)
    beliefs = {key: float(np.exp(logprob)) for key, logprob in logprobs.items()}
    gains = {
        key: beliefs[after] - belief for key, belief in beliefs.items() if (after := _next(key)) in beliefs
    }
    return InformationGain(by_turn=gains, num_too_long=num_too_long)


def masked_feedback_gain(
    table: pa.Table,
    samples: Sequence[TrainingSample],
    renderer: Renderer,
    scorer: ForwardScorer,
    *,
    mask: Callable[[str], str] = lambda feedback: MASK,
) -> InformationGain:
    """g_t = mean over k of log pi(a_k | history) - log pi(a_k | history with turn t's feedback masked), a
    being the policy's next completion (InfoPO, arXiv 2603.00656). May be negative.

    The masked dialogue is rendered as if the environment had said `mask(feedback)`. A turn without feedback
    has no gain.
    """
    turns = _turns(samples)
    probes: dict[TurnKey, TrainingSample] = {}
    for key, masked, actual in _replayed(table, turns.keys(), renderer, mask=mask):
        sample, said = turns[_next(key)]
        if not np.array_equal(sample.token_ids[: said.start], actual):
            raise ValueError(
                f"information_gain=masked_feedback: turn {key[2]} of trajectory {key[1]} in group {key[0]} "
                "renders to other tokens than were sampled: give learners and rollout actors one tokenizer"
            )
        ids = sample.token_ids[said]
        probes[key] = _probe(sample, context=masked, ids=ids, counted=slice(0, len(ids)))
    without, num_too_long = _score(probes, scorer)
    known = scores_by_turn(samples, scorer(samples, score=turn_logprobs))
    gains = {key: known[_next(key)] - logprob for key, logprob in without.items()}
    return InformationGain(by_turn=gains, num_too_long=num_too_long)


def _turns(samples: Sequence[TrainingSample]) -> dict[TurnKey, tuple[TrainingSample, slice]]:
    """Each turn with a token in the loss: its sample, and the slice of its tokens."""
    return {
        (sample.group_id, sample.trajectory, turn): (sample, slice(start, start + length))
        for sample in samples
        for turn, start, length in zip(
            sample.turns.tolist(), sample.turn_starts.tolist(), sample.turn_lengths.tolist(), strict=True
        )
    }


def _next(key: TurnKey) -> TurnKey:
    return (key[0], key[1], key[2] + 1)


def _rows(table: pa.Table, *names: str) -> Iterator[tuple]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _gold_answer(gold: str, renderer: Renderer) -> tuple[TokenIds, slice] | None:
    """The last gold answer as completion ids, and the slice of the answer itself; None without one."""
    answers = [call for call in json.loads(gold or "[]") if call["choice"] == "answer"]
    if not answers:
        return None
    action = Action(**answers[-1])
    counted = np.flatnonzero(renderer.content_tokens(action))
    if not len(counted):
        return None
    return renderer.completion_of(action), slice(int(counted[0]), int(counted[-1]) + 1)


def _replayed(
    table: pa.Table, scored: Collection[TurnKey], renderer: Renderer, *, mask: Callable[[str], str]
) -> Iterator[tuple[TurnKey, TokenIds, TokenIds]]:
    """(turn, context of the next completion with the turn's feedback masked, the actual context), for each
    turn with feedback that is followed by a scored turn."""
    names = ("group_id", "trajectory", "turn", "system", "opening", "text", "feedback", "completion_ids")
    dialogue = None
    for group, trajectory, turn, system, opening, text, feedback, completion_ids in _rows(table, *names):
        key = (group, trajectory, turn)
        if _next(key) not in scored:
            continue
        if turn == 0:
            messages = (Message(role="system", content=system), Message(role="user", content=opening))
            dialogue = renderer.begin(messages)
        assert dialogue is not None, "a turn without tokens ends its dialogue"
        said = read_completion(text)
        masked, dialogue = (
            renderer.extend(
                dialogue,
                completion_ids=as_ids(completion_ids),
                message=said,
                reply=Message(role="tool", content=content),
            )
            for content in (mask(feedback), feedback)
        )
        if feedback:
            yield key, masked.token_ids, dialogue.token_ids


def _probe(
    sample: TrainingSample, *, context: Sequence[int] | ndarray, ids: Sequence[int] | ndarray, counted: slice
) -> TrainingSample:
    """A sequence to score: context and `ids`, of which only the `counted` ones are scored, as one turn."""
    length = counted.stop - counted.start
    zeros, zero = np.zeros(length, np.float32), np.zeros(1, np.float32)
    return replace(
        sample,
        token_ids=np.concatenate([context, ids]).astype(np.int32),
        behavior_logprobs=zeros,
        policy_versions=zeros.astype(np.int32),
        turns=zero.astype(np.int32),
        turn_starts=np.array([len(context) + counted.start]),
        turn_lengths=np.array([length]),
        advantages=zero,
        returns=zero,
    )


def _score(
    probes: Mapping[TurnKey, TrainingSample], scorer: ForwardScorer
) -> tuple[dict[TurnKey, float], int]:
    """Each probe's mean logprob, and the number of probes that were too long."""
    short = {key: probe for key, probe in probes.items() if probe.num_tokens <= scorer.max_tokens}
    scores = scorer(list(short.values()), score=turn_logprobs)
    logprobs = {key: float(score[0]) for key, score in zip(short, scores, strict=True)}
    return logprobs, len(probes) - len(short)


INFORMATION_GAINS: dict[str, GainFn] = {
    "gold_answer": gold_answer_gain,
    "masked_feedback": masked_feedback_gain,
}
