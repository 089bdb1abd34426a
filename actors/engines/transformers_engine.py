"""Engine that samples from a model folder in this process with transformers, one completion at a time, for
`userrl play`. Needs neither Ray nor vLLM.

It samples from the policy's own distribution, like the policy engines; the logprobs are zero: its
trajectories are never trained.
"""

import asyncio
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from actors.engines.protocol import CompletionRequest, EngineError
from actors.renderer import Renderer
from actors.trajectory import Completion


class TransformersEngine:
    """Samples with transformers. Implements `PolicyEngine`."""

    def __init__(self, folder: str | Path, *, renderer: Renderer):
        """Loads the model, on a GPU if there is one. Raises OSError or ValueError if the folder holds no
        model."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if device == "cuda" else torch.float32
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
        # The sampling defaults of a model's authors (a top-k, a penalty) are not those of training.
        model.generation_config = GenerationConfig()
        self._model: Any = model.to(device).eval()  # type: ignore[arg-type]  # `generate` is mixed in
        self._stop_id = renderer.stop_id

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that the model was made for; None if its config does not say."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Samples one completion. Raises `EngineError`."""
        try:
            token_ids = await asyncio.to_thread(self._sample, request)
        except RuntimeError as error:  # out of memory, above all
            raise EngineError(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        return Completion.scripted(token_ids)

    @torch.inference_mode()
    def _sample(self, request: CompletionRequest) -> list[int]:
        prompt = torch.from_numpy(request.token_ids.astype("int64"))[None].to(self._model.device)
        torch.manual_seed(request.seed)
        settings = GenerationConfig(
            do_sample=True,
            temperature=request.sampling.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=request.sampling.max_completion_tokens,
            eos_token_id=self._stop_id,
            pad_token_id=self._stop_id,
        )
        sampled = self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
        return sampled[0, prompt.shape[1] :].tolist()
