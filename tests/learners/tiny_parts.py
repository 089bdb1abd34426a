"""Small parts for the learner's tests: a random model of 30 thousand weights and hand-made groups as
tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from actors.trajectory import Completion, GroupOrder, StopReason, TokenIds, Trajectory, Turn, as_ids
from actors.trajectory_table import REWARD, to_table
from learners.batch.samples import TrainingSample, places_of
from learners.config import LearnerConfig
from learners.loss_config import LossConfig
from learners.model.checkpoint import CheckpointWriter, Progress
from learners.model.critic import Critic
from learners.model.policy import PACKED_CAUSAL, Policy
from learners.training.forward_scoring import ForwardScorer
from simulators.task import TaskKey

VOCAB_SIZE = 50


def loss_config(name: str, **keys: float) -> LossConfig:
    """`learner.loss` of this type, with those of the keys that the type has."""
    default = LearnerConfig.model_validate({"loss": name}).loss
    return default.model_copy(update={key: keys[key] for key in keys if key in type(default).model_fields})


def loss_mask(sample: TrainingSample) -> Bool[np.ndarray, "T"]:
    """True at the sample's loss tokens."""
    mask = np.zeros(sample.num_tokens, bool)
    mask[places_of(sample.turn_starts, sample.turn_lengths)] = True
    return mask


def tiny_model(vocab_size: int = VOCAB_SIZE) -> Qwen3ForCausalLM:
    """Random weights, always the same; grouped-query attention and a tied head."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config)


def tiny_policy(
    *,
    dtype: torch.dtype = torch.float64,
    temperature: float = 1.0,
    entropies_have_gradient: bool = False,
) -> Policy:
    """The model behind packed attention, in `dtype` throughout."""
    model = tiny_model()
    model.set_attn_implementation(PACKED_CAUSAL)
    policy = Policy(model, temperature=temperature, entropies_have_gradient=entropies_have_gradient)
    return policy.to(dtype)


def plain_model(folder: str) -> PreTrainedModel:
    """The folder's model as transformers loads it by default: nothing of ours in the path."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_turn(
    context: Sequence[int] | TokenIds,
    completion: Sequence[int] | TokenIds,
    *,
    reward: float,
    forked: bool,
    version: int = 0,
) -> Turn:
    """A turn whose behavior logprobs are -0.5, -0.6, ..."""
    return Turn(
        context_ids=as_ids(context),
        forked=forked,
        completion=Completion(
            token_ids=as_ids(completion),
            logprobs=np.array([-0.5 - 0.1 * i for i in range(len(completion))], np.float32),
            policy_versions=np.full(len(completion), version, np.int32),
        ),
        text="",
        action=None,
        feedback="",
        reward=reward,
    )


def make_table(trajectories: Sequence[tuple[Sequence[Turn], StopReason]], *, group_id: int = 0) -> pa.Table:
    """A scored group: each turn's reward as given, NaN where the trajectory failed."""
    key = TaskKey(gym="function", split="train", index=group_id, seed=0, difficulty=0)
    order = GroupOrder(group_id=group_id, task_key=key, group_size=len(trajectories), seed=0)
    records = [
        Trajectory(task_key=key, system="", opening="", turns=turns, stop_reason=reason)
        for turns, reason in trajectories
    ]
    table = to_table(order, records)
    rewards = np.where(table["failed"].to_numpy(), np.nan, table["env_reward"].to_numpy())
    return table.append_column(REWARD, pa.array(rewards))


def random_table(*, group_id: int, group_size: int = 4, seed: int = 0, version: int = 0) -> pa.Table:
    """A group of two-turn trajectories of random tokens and lengths; the first of them succeed."""
    rng = np.random.default_rng((seed, group_id))
    trajectories = []
    for index in range(group_size):
        turns = [
            make_turn(
                rng.integers(0, VOCAB_SIZE, rng.integers(3, 12)).tolist(),
                rng.integers(0, VOCAB_SIZE, rng.integers(1, 9)).tolist(),
                reward=float(turn == 1 and index <= group_id % group_size),
                forked=turn == 0,
                version=version,
            )
            for turn in range(2)
        ]
        trajectories.append((turns, StopReason.TERMINATED))
    return make_table(trajectories, group_id=group_id)


def critic_policy(*, dtype: torch.dtype = torch.float64) -> Policy:
    """The tiny policy with a critic that already has an opinion."""
    critic = Critic(32, seed=0)
    with torch.no_grad():
        critic.outer.weight.normal_(generator=torch.Generator().manual_seed(1))
    model = tiny_model()
    model.set_attn_implementation(PACKED_CAUSAL)
    return Policy(model, temperature=1.0, critic=critic).to(dtype)


def save_checkpoint(path: Path, policy: Policy, optimizer: Optimizer, progress: Progress) -> None:
    """A whole checkpoint when it returns. Raises OSError where one rank failed. Collective."""
    writer = CheckpointWriter()
    writer.save(path, policy, optimizer, progress)
    if error := writer.report(wait=True).error:
        raise OSError(error)


def scorer_of(policy: Policy, *, max_tokens: int = 128) -> ForwardScorer:
    """All of the pass on one rank."""
    device = torch.device("cpu")
    return ForwardScorer(policy=policy, device=device, max_tokens=max_tokens, rank=0, num_ranks=1, seed=0)
