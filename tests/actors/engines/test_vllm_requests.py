"""Results of a request, converted from vLLM's types."""

from dataclasses import dataclass
from typing import Any

import pytest

from actors.engines.vllm_requests import versions_of


@dataclass
class Span:
    version: str
    start: int
    end: int


def test_each_token_has_the_version_of_its_span():
    spans: Any = [Span("7", 0, 3), Span("8", 3, 4), Span("12", 4, 6)]
    versions = versions_of(spans, num_tokens=6)
    assert versions.tolist() == [7, 7, 7, 8, 12, 12]
    assert versions.dtype == "int32"


@pytest.mark.parametrize("spans", [[], [Span("7", 0, 3)], [Span("7", 0, 3), Span("8", 4, 5)]])
def test_a_token_without_a_version_is_an_error(spans: Any):
    with pytest.raises(AssertionError, match="do not cover 5 tokens"):
        versions_of(spans, num_tokens=5)
