"""Forward scoring passes: per-turn numbers, independent of packing and number of ranks."""

import numpy as np
import pytest
import torch

from learners.batch.packing import pack
from learners.training.forward_scoring import ForwardScorer, scores_by_turn, turn_logprobs, turn_values
from tests.learners.batch.test_packing import samples_of
from tests.learners.tiny_parts import critic_policy, scorer_of, tiny_policy

SAMPLES = samples_of(2)


def test_a_turns_logprob_is_the_mean_over_its_tokens():
    policy = tiny_policy()
    scores = scorer_of(policy)(SAMPLES, score=turn_logprobs)
    for sample, found in zip(SAMPLES, scores, strict=True):
        with torch.no_grad():
            logprobs = policy(pack([sample])).logprobs.numpy()
        expected = [said.mean() for said in np.split(logprobs, np.cumsum(sample.turn_lengths)[:-1])]
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_value_is_read_at_the_token_before_the_turn_begins():
    policy = critic_policy()
    assert policy.critic is not None
    scores = scorer_of(policy)(SAMPLES, score=turn_values)
    for sample, found in zip(SAMPLES, scores, strict=True):
        ids = torch.from_numpy(sample.token_ids).long()[None]
        policy.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            hidden = policy.model.base_model(input_ids=ids).last_hidden_state[0]
            values = policy.critic(hidden).numpy()
        assert found == pytest.approx(values[sample.turn_starts - 1], abs=1e-9)
        assert np.ptp(found) > 1e-6


@pytest.mark.parametrize("read", [turn_logprobs, turn_values])
def test_packing_changes_no_number(read):
    policy = critic_policy()
    longest = max(sample.num_tokens for sample in SAMPLES)
    alone = scorer_of(policy, max_tokens=longest)(SAMPLES, score=read)
    packed = scorer_of(policy, max_tokens=10_000)(SAMPLES, score=read)
    assert np.allclose(np.concatenate(alone), np.concatenate(packed), rtol=0, atol=1e-9)


def test_the_ranks_numbers_add_up_to_those_of_one_rank(monkeypatch: pytest.MonkeyPatch):
    """Without the sum over ranks each holds its own samples' numbers and zeros elsewhere."""
    policy = tiny_policy()
    whole = np.concatenate(scorer_of(policy)(SAMPLES, score=turn_logprobs))
    monkeypatch.setattr("learners.training.forward_scoring.dist.all_reduce", lambda scores: None)
    parts = [
        np.concatenate(
            ForwardScorer(
                policy=policy, device=torch.device("cpu"), max_tokens=64, rank=rank, num_ranks=3, seed=5
            )(SAMPLES, score=turn_logprobs)
        )
        for rank in range(3)
    ]
    assert (np.count_nonzero(parts, axis=0) == 1).all()
    assert np.allclose(np.sum(parts, axis=0), whole, rtol=0, atol=1e-9)


def test_without_samples_no_forward_pass_runs():
    assert scorer_of(tiny_policy())([], score=turn_values) == []
    assert scores_by_turn([], []) == {}


def test_a_pass_leaves_no_gradient_and_no_graph():
    policy = critic_policy()
    scorer_of(policy)(SAMPLES, score=turn_values)
    assert all(parameter.grad is None for parameter in policy.parameters())
