"""Importance weights against numbers computed by hand, at each level and for each loss."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.loss_config import (
    CispoConfig,
    ImportanceConfig,
    MaskedConfig,
    NoImportanceConfig,
    ReinforceConfig,
    TruncatedConfig,
)
from learners.losses.importance import importance_weights, inside_mask, masked_weights, truncated_weights
from tests.learners.losses.test_policy_loss import config_of, gradient_of, tokens_of

LOG_RATIO = torch.tensor([log(r) for r in (2.0, 3.0, 0.5, 0.1)], dtype=torch.float64)
TOKENS, TURNS, SEQUENCE = torch.arange(4), torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64)


def test_truncation_bounds_ratios_only_from_above():
    """Turn products are 6 and 0.05, the sequence's is 0.3."""
    assert truncated_weights(LOG_RATIO, TOKENS, high=2.5).tolist() == pytest.approx([2.0, 2.5, 0.5, 0.1])
    assert truncated_weights(LOG_RATIO, TURNS, high=2.5).tolist() == pytest.approx([2.5, 2.5, 0.05, 0.05])
    assert truncated_weights(LOG_RATIO, SEQUENCE, high=2.5).tolist() == pytest.approx([0.3] * 4)


def test_a_mask_leaves_out_on_both_sides_and_by_the_whole_segment():
    assert masked_weights(LOG_RATIO, TOKENS, low=0.4, high=2.5).tolist() == pytest.approx([2.0, 0, 0.5, 0])
    assert masked_weights(LOG_RATIO, TURNS, low=0.01, high=2.5).tolist() == pytest.approx([0, 0, 0.05, 0.05])
    assert inside_mask(LOG_RATIO, SEQUENCE, low=0.2, high=2.5).tolist() == [1.0] * 4
    assert inside_mask(LOG_RATIO, SEQUENCE, low=0.5, high=2.5).tolist() == [0.0] * 4


def test_ratios_beyond_all_bounds_stay_finite():
    far = torch.tensor([4000.0, -4000.0], dtype=torch.float32)
    each = torch.arange(2)
    assert truncated_weights(far, each, high=2.0).tolist() == pytest.approx([2.0, 0.0], abs=1e-8)
    assert masked_weights(far, each, low=0.5, high=2.0).tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3)), max_size=12), st.floats(1, 4))
def test_weights_are_their_reference_written_token_by_token(tokens: list[tuple[float, int]], high: float):
    log_ratio = torch.tensor([x for x, _ in tokens], dtype=torch.float64)
    segments = torch.tensor([s for _, s in tokens], dtype=torch.int64)
    ratios = [exp(sum(x for x, s in tokens if s == segment)) for _, segment in tokens]
    truncated = truncated_weights(log_ratio, segments, high=high).tolist()
    assert truncated == pytest.approx([min(r, high) for r in ratios], rel=1e-9)
    masked = masked_weights(log_ratio, segments, low=0.3, high=high).tolist()
    away = [abs(r - bound) > 1e-9 for r in ratios for bound in (0.3, high)]
    if all(away):
        assert masked == pytest.approx([r if 0.3 <= r <= high else 0.0 for r in ratios], rel=1e-9)


def weights_for(loss: str, importance: str) -> list[float]:
    configs: dict[str, ImportanceConfig] = {
        "none": NoImportanceConfig(),
        "truncated": TruncatedConfig(high=2.5),
        "masked": MaskedConfig(low=0.4, high=2.5),
    }
    tokens, has_ratio = tokens_of([2.0, 3.0, 0.5], [1.0, 1.0, 1.0]), config_of(loss).has_ratio
    return importance_weights(tokens, configs[importance], has_ratio=has_ratio).tolist()


def test_the_ratio_is_counted_once():
    """reinforce gets the ratio as its weight; a loss that has the ratio gets a mask of ones and zeros."""
    assert weights_for("reinforce", "truncated") == pytest.approx([2.0, 2.5, 0.5])
    assert weights_for("reinforce", "masked") == pytest.approx([2.0, 0.0, 0.5])
    for loss in ("ppo", "gspo", "turn", "cispo", "sapo"):
        assert weights_for(loss, "masked") == [1.0, 0.0, 1.0]
        assert weights_for(loss, "none") == [1.0, 1.0, 1.0]


def test_reinforce_truncated_by_the_token_is_cispo():
    ratios, advantages = [2.0, 1.1, 0.3], [1.0, -2.0, 0.5]
    tokens = tokens_of(ratios, advantages)
    weights = importance_weights(tokens, TruncatedConfig(high=1.3), has_ratio=False)
    assert not weights.requires_grad
    _, truncated = gradient_of(tokens, config=ReinforceConfig(), weights=weights.tolist())
    _, cispo = gradient_of(tokens, config=CispoConfig(clip_high=0.3))
    assert truncated == pytest.approx(cispo, abs=1e-12)
