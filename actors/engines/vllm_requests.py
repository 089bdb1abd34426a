"""One request in vLLM's terms, and what became of it in ours. Pure; imports vLLM only when it is called."""

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
    """How to sample one request, which may change it. Raises `EngineError`."""
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
    """What many requests have in common. vLLM checks it as it is made, which takes 8 µs; a copy takes 0.2."""
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
    """One logprob a token [num_tokens], out of the form that `flat_logprobs` asks vLLM for."""
    return np.asarray(cast("FlatLogprobs", logprobs).logprobs, np.float32)


def versions_of(spans: "Sequence[WeightVersionSpan]", *, num_tokens: int) -> NDArray[np.int32]:
    """Of each token, the version of the weights that sampled it [num_tokens]."""
    versions, num_named = np.empty(num_tokens, np.int32), 0
    for span in spans:
        versions[span.start : span.end] = int(span.version)
        num_named += span.end - span.start
    assert num_named == num_tokens, f"{spans} do not cover {num_tokens} tokens"
    return versions


def as_engine_error(error: BaseException) -> EngineError:
    """Whatever vLLM raises: its own classes would make the caller's process import vLLM to read them. A
    `RequestError` where vLLM finds the request at fault, an `EngineGoneError` where its core has died."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        error = error.__cause__  # the wrapper has no text
    if isinstance(error, EngineDeadError):
        return EngineGoneError(f"{type(error).__name__}: {error}")
    kind = RequestError if isinstance(error, VLLMClientError) else EngineError
    return kind(f"{type(error).__name__}: {error}")
