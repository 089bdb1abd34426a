"""The two learners of the learner's benchmark: a step of ours and a step of TRL's GRPO trainer on the same
samples (forward, backward, clip, AdamW)."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import pad

from learners.batch.aggregation import select_and_weigh
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample, places_of
from learners.config import LearnerConfig
from learners.loss_config import PpoConfig
from learners.model.policy import load_policy
from learners.training.optimizer_step import accumulate_gradients, apply_gradients, grpo_sums, make_optimizer

LR = 1e-6
CLIP = PpoConfig()
CONFIG = LearnerConfig(lr=LR, warmup_steps=0, loss=CLIP)
"""The learner as it is by default: ppo over the mean of all tokens, which TRL calls dapo."""
TEMPERATURE = 1.0


class Side(Protocol):
    """Holds a model and an optimizer of its own."""

    def step(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """One optimizer step; its loss and gradient norm."""
        ...


class OurSide:
    def __init__(self, folder: str):
        self.policy = load_policy(
            folder,
            temperature=TEMPERATURE,
            dtype=torch.float32,
            recompute_activations=False,
        )
        self._optimizer = make_optimizer(self.policy, config=CONFIG)

    def step(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """As the learner does it, packing included."""
        taken, weights = select_and_weigh(samples, config=CONFIG, gym_shares={}, seed=0)
        num_tokens = sum(sample.num_loss_tokens for sample in taken)
        sums = accumulate_gradients(
            self.policy,
            micro_batches(
                taken, weights=weights, max_tokens=CONFIG.micro_batch_tokens, rank=0, num_ranks=1, seed=0
            ),
            loss_fn=partial(grpo_sums, config=CONFIG, num_tokens=num_tokens, policy_version=0),
            device=torch.device("cpu"),
            num_ranks=1,
        )
        norm = apply_gradients(
            self.policy, self._optimizer, lr=LR, max_grad_norm=CONFIG.max_grad_norm, loss=sums["loss"]
        )
        return sums["loss"], norm


class TrlSide:
    """TRL's own trainer, its own loss, backward and optimizer, on batches made as its generation makes them:
    prompts padded on the left, completions on the right, both to the longest of the step."""

    def __init__(self, folder: str, *, num_samples: int, batch_size: int, output_dir: str):
        """`batch_size` dialogues a forward pass, as many passes as the step needs."""
        args = GRPOConfig(
            output_dir=output_dir,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=num_samples // batch_size,
            num_generations=num_samples,
            max_completion_length=4096,
            loss_type="dapo",
            beta=0.0,
            epsilon=CLIP.clip_low,
            epsilon_high=CLIP.clip_high,
            delta=CLIP.dual_clip,
            temperature=TEMPERATURE,
            learning_rate=LR,
            adam_beta2=0.95,  # as ours
            max_grad_norm=CONFIG.max_grad_norm,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trainer = GRPOTrainer(
                model=folder,
                reward_funcs=lambda **_: [0.0],
                args=args,
                train_dataset=Dataset.from_list([{"prompt": "unused"}]),
                processing_class=AutoTokenizer.from_pretrained(folder),
            )
        self._trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
        self._trainer.create_optimizer()
        self._batch_size = batch_size

    def step(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """The heart of `Trainer.train`, for one step whose batches are made already."""
        trainer: Any = self._trainer
        model, optimizer, loss_sum = trainer.model.train(), trainer.optimizer, 0.0
        batch = padded(samples)
        for first in range(0, len(samples), self._batch_size):
            rows = slice(first, first + self._batch_size)
            inputs = {name: x if x.ndim == 0 else x[rows] for name, x in batch.items()}
            loss = trainer.compute_loss(model, inputs)
            trainer.accelerator.backward(loss)
            loss_sum += float(loss.detach())
        norm = trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        return loss_sum, float(norm)


def padded(samples: Sequence[TrainingSample]) -> dict[str, Tensor]:
    """What TRL's trainer gives to its loss after generation: a dialogue's first context is its prompt, all
    that follows its completion, and `tool_mask` says what the policy did not write."""
    parts: dict[str, list[Tensor]] = {
        "prompt_ids": [], "prompt_mask": [], "completion_ids": [], "completion_mask": [],
        "tool_mask": [], "old_per_token_logps": [],
    }  # fmt: skip
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids).long()
        mask = torch.zeros(len(ids), dtype=torch.bool)
        mask[places_of(sample.turn_starts, sample.turn_lengths)] = True
        start = int(sample.turn_starts[0])
        logprobs = torch.zeros(len(ids)).masked_scatter(mask, torch.from_numpy(sample.behavior_logprobs))
        parts["prompt_ids"].append(ids[:start])
        parts["completion_ids"].append(ids[start:])
        parts["prompt_mask"].append(torch.ones(start, dtype=torch.long))
        parts["completion_mask"].append(torch.ones(len(ids) - start, dtype=torch.long))
        parts["tool_mask"].append(mask[start:].long())
        parts["old_per_token_logps"].append(logprobs[start:])
    batch = {
        name: pad(tensors, padding_value=0, padding_side="left" if name.startswith("prompt") else "right")
        for name, tensors in parts.items()
    }
    batch["advantages"] = torch.tensor([float(s.advantages[0]) for s in samples])
    batch["num_items_in_batch"] = batch["tool_mask"].sum()
    return batch
