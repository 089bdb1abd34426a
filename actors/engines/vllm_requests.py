"""Conversion of requests, results and errors between vLLM's types and ours. Imports vLLM only when called."""

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from actors.engines.protocol import EngineError, EngineGoneError, RequestError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import WeightVersionSpan


def sampling_params(
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    stop_token_ids: tuple[int, ...],
    prompt_logprobs: int | None = None,
) -> "SamplingParams":
    """Sampling parameters of one request, which may modify them. Raises `EngineError`."""
    try:
        checked = _checked(temperature, stop_token_ids, prompt_logprobs)
    except Exception as error:
        raise as_engine_error(error) from error
    params = copy.copy(checked)
    params.max_tokens, params.seed = max_tokens, seed
    return params


@functools.lru_cache
def _checked(
    temperature: float, stop_token_ids: tuple[int, ...], prompt_logprobs: int | None
) -> "SamplingParams":
    """The parameters that many requests share. Construction validates them, which takes 8 µs; a copy takes
    0.2."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=temperature,
        logprobs=0,  # the sampled token's only
        prompt_logprobs=prompt_logprobs,
        flat_logprobs=True,
        stop_token_ids=list(stop_token_ids),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def flat_logprobs(logprobs: object) -> NDArray[np.float32]:
    """One logprob per token [num_tokens], from vLLM's flat form."""
    return np.asarray(cast("FlatLogprobs", logprobs).logprobs, np.float32)


def versions_of(spans: "Sequence[WeightVersionSpan]", *, num_tokens: int) -> NDArray[np.int32]:
    """The version of the weights that sampled each token [num_tokens]."""
    versions, num_named = np.empty(num_tokens, np.int32), 0
    for span in spans:
        versions[span.start : span.end] = int(span.version)
        num_named += span.end - span.start
    assert num_named == num_tokens, f"{spans} do not cover {num_tokens} tokens"
    return versions


def as_engine_error(error: BaseException) -> EngineError:
    """Converts any error of vLLM, since its own classes would make the caller's process import vLLM to
    unpickle them: to `RequestError` if the request is at fault, to `EngineGoneError` if vLLM's core has
    died."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        error = error.__cause__  # the wrapper has no text
    if isinstance(error, EngineDeadError):
        return EngineGoneError(f"{type(error).__name__}: {error}")
    kind = RequestError if isinstance(error, VLLMClientError) else EngineError
    return kind(f"{type(error).__name__}: {error}")
