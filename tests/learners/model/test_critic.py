"""The critic: advantages computed by hand, and learning that does not change the policy."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.trajectory import StopReason
from learners.advantages.config import TurnGaeConfig
from learners.batch.aggregation import turn_weights
from learners.batch.packing import micro_batches
from learners.batch.samples import TrainingSample
from learners.config import LearnerConfig
from learners.model.checkpoint import Progress, load_checkpoint
from learners.model.critic import Critic, critic_loss, explained_variance
from learners.model.policy import Policy
from learners.model.weight_export import full_state_dict
from learners.training.optimizer_step import (
    accumulate_gradients,
    apply_gradients,
    grpo_sums,
    make_optimizer,
    sft_sums,
    step_metrics,
    total_loss,
    with_critic,
)
from learners.training.step_batch import samples_of_step
from tests.learners.tiny_parts import (
    critic_policy,
    make_table,
    make_turn,
    random_table,
    save_checkpoint,
    scorer_of,
    tiny_policy,
)

pytestmark = pytest.mark.medium

CPU = torch.device("cpu")
DONE = StopReason.TERMINATED
CONFIG = LearnerConfig(advantage=TurnGaeConfig(gamma=0.5, gae_lambda=0.5), warmup_steps=0)


def expecting(value: float) -> Policy:
    """A policy whose critic says the same of every state."""
    policy = critic_policy()
    assert policy.critic is not None
    with torch.no_grad():
        policy.critic.outer.weight.zero_()
        policy.critic.outer.bias.fill_(value)
    return policy


def step_samples(
    tables: list[pa.Table], policy: Policy, *, config: LearnerConfig = CONFIG
) -> tuple[list[TrainingSample], dict[str, float]]:
    return samples_of_step(tables, config=config, renderer=None, scorer=scorer_of(policy))[:2]


def two_turns(*, reward: float, forked: bool = False) -> list:
    return [
        make_turn([1], [2, 3], reward=0.0, forked=True),
        make_turn([4], [5], reward=reward, forked=forked),
    ]


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, samples: list[TrainingSample], *, lr: float = 0.01
) -> dict[str, float]:
    num_tokens = sum(sample.num_loss_tokens for sample in samples)
    loss_fn = partial(grpo_sums, config=CONFIG, num_tokens=num_tokens, policy_version=0)
    if policy.critic is not None:
        loss_fn = partial(with_critic, loss_fn=loss_fn)
    of_turns = turn_weights(samples, gym_shares=None)
    batches = micro_batches(samples, turn_weights=of_turns, max_tokens=128, rank=0, num_ranks=1, seed=0)
    sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    norm = apply_gradients(policy, optimizer, lr=lr, max_grad_norm=0.5, loss=total_loss(sums))
    return sums | {"norm": norm}


def weights_of(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.named_parameters()}


@pytest.mark.parametrize("end", [DONE, StopReason.MAX_TURNS, StopReason.MAX_TOKENS])
@pytest.mark.parametrize("forked", [False, True])
def test_advantages_and_returns_by_hand(end: StopReason, forked: bool):
    """V = 1/2 before each turn, rewards 0 and 1, gamma = lambda = 1/2: deltas 0 + 1/4 - 1/2 and 1 + 0 - 1/2,
    advantages -1/4 + 1/8 and 1/2, returns 3/8 and 1. What ended the dialogue makes no difference."""
    table = make_table([(two_turns(reward=1.0, forked=forked), end)])
    samples, metrics = step_samples([table], expecting(0.5))
    assert len(samples) == 1 + forked
    advantages = np.concatenate([sample.advantages for sample in samples])
    returns = np.concatenate([sample.returns for sample in samples])
    assert advantages == pytest.approx([-0.125, 0.5])
    assert returns == pytest.approx([0.375, 1.0])
    assert sum(sample.num_returns for sample in samples) == 2
    assert metrics["learner/critic/explained_variance"] == pytest.approx(0.0)


def test_an_untrained_critic_leaves_lambda_returns():
    """V = 0: advantages are sums of (gamma lambda)^l r, here 1/4 and 1, and so are the returns."""
    (sample,), _ = step_samples([make_table([(two_turns(reward=1.0), DONE)])], expecting(0.0))
    assert sample.advantages.tolist() == [0.25, 1]
    assert sample.returns.tolist() == [0.25, 1]


def test_a_new_critic_predicts_zero_and_is_the_same_for_a_seed():
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    assert Critic(8, seed=0)(hidden).tolist() == [0, 0, 0]
    one, same, other = (Critic(8, seed=seed).inner.weight for seed in (1, 1, 2))
    assert one.equal(same) and not one.equal(other)


def test_a_turn_without_tokens_has_a_value_of_zero():
    """The dialogue ended in silence: V = 0 there, so that the turn before has 0 + 0 - 1/2 + 1/4 x 1."""
    turns = [make_turn([1], [2], reward=0.0, forked=True), make_turn([3], [], reward=1.0, forked=False)]
    (sample,), _ = step_samples([make_table([(turns, DONE)])], expecting(0.5))
    assert (sample.turns.tolist(), sample.advantages.tolist()) == ([0], [-0.25])


def test_gyms_with_other_rules_are_as_without_a_critic():
    table = random_table(group_id=1)
    others = random_table(group_id=2)
    gym = table.schema.get_field_index("gym")
    others = others.set_column(gym, "gym", pa.array(["tau"] * others.num_rows))
    mixed = LearnerConfig(by_gym={"function": TurnGaeConfig()})
    samples, _ = step_samples([table, others], expecting(0.5), config=mixed)
    alone, metrics = step_samples([others], tiny_policy(), config=LearnerConfig())
    assert "learner/critic/explained_variance" not in metrics
    tau = [sample for sample in samples if sample.gym == "tau"]
    assert [sample.advantages.tolist() for sample in tau] == [sample.advantages.tolist() for sample in alone]
    assert {sample.num_returns for sample in tau} == {0}
    assert {sample.num_returns for sample in samples if sample.gym == "function"} == {2}


def test_failed_and_unscored_trajectories_are_not_scored_by_the_critic():
    bad = two_turns(reward=float("nan"))
    table = make_table(
        [(bad, DONE), (two_turns(reward=1.0), StopReason.ENGINE_ERROR), (two_turns(reward=1.0), DONE)]
    )
    samples, _ = step_samples([table], expecting(0.5))
    assert [sample.trajectory for sample in samples] == [2]


def test_a_critic_that_is_not_finite_drops_trajectories_and_trains_nothing():
    samples, metrics = step_samples([random_table(group_id=0)], expecting(float("nan")))
    assert (samples, metrics["learner/num_dropped/unscored"]) == ([], 4.0)


def test_loss_and_explained_variance_by_hand():
    """Errors 1 and 2 over two turns: (1 + 4) / 2; a turn without a return counts for nothing."""
    values = torch.tensor([1.0, 2.0, 7.0], requires_grad=True)
    loss = critic_loss(values, torch.tensor([0.0, 4.0, torch.nan]), weights=torch.full((3,), 0.5))
    loss.backward()
    assert loss.item() == 2.5
    assert values.grad is not None and values.grad.tolist() == [1.0, -2.0, 0.0]
    returns = np.array([0.0, 2.0])
    assert explained_variance(np.array([0.0, 2.0]), returns) == 1.0
    assert explained_variance(np.array([1.0, 1.0]), returns) == 0.0
    assert explained_variance(np.array([2.0, 0.0]), returns) == -3.0
    assert explained_variance(np.array([2.0, 0.0]), np.array([1.0, 1.0])) is None


def test_another_gym_does_not_change_what_a_gyms_turns_weigh_in_the_critics_loss():
    """Two turns of function and four of tau, by shares 0.25 and 0.75: each gym's turns weigh its share."""
    table = make_table([(two_turns(reward=1.0), DONE)])
    more = make_table([(two_turns(reward=r), DONE) for r in (0.0, 1.0)], group_id=1)
    more = more.set_column(more.schema.get_field_index("gym"), "gym", pa.array(["tau"] * more.num_rows))
    function, tau = (step_samples([each], expecting(0.0))[0] for each in (table, more))
    shares = {"function": 0.25, "tau": 0.75}
    assert turn_weights(function, gym_shares=shares).tolist() == [0.125]
    assert turn_weights([*function, *tau], gym_shares=shares).tolist() == [0.125, 0.1875, 0.1875]
    assert turn_weights([*function, *tau], gym_shares=None).tolist() == pytest.approx([1 / 6] * 3)


def test_a_turn_without_any_return_still_has_a_gradient_of_zero():
    """Every rank's critic takes part in the sum over ranks, whatever its micro-batches hold."""
    critic = Critic(8, seed=0)
    critic_loss(critic(torch.zeros(0, 8)), torch.zeros(0), weights=torch.zeros(0)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in critic.parameters())


def test_the_critic_learns_the_returns_of_a_fixed_batch():
    """The policy all but stands still, so that the states stay the same."""
    policy = critic_policy(dtype=torch.float32)
    samples, _ = step_samples([random_table(group_id=g) for g in range(3)], expecting(0.0))
    optimizer = make_optimizer(policy, config=LearnerConfig(lr=1e-9, advantage=TurnGaeConfig(critic_lr=0.01)))
    losses = [update(policy, optimizer, samples, lr=1e-9)["critic_loss"] for _ in range(100)]
    assert losses[-1] < losses[0] / 10


def test_the_policys_step_is_the_same_bit_for_bit_whether_or_not_a_critic_learns():
    """The critic is far off, so that its gradient would dwarf the policy's in a norm of both."""
    with_head, without = expecting(100.0), tiny_policy()
    samples, _ = step_samples([random_table(group_id=g) for g in range(2)], expecting(0.5))
    sums = update(with_head, make_optimizer(with_head, config=CONFIG), samples)
    plain = update(without, make_optimizer(without, config=CONFIG), samples)
    assert sums["critic_loss"] > 1000
    assert {name: value for name, value in sums.items() if name != "critic_loss"} == plain
    for name, tensor in without.named_parameters():
        assert with_head.get_parameter(name).equal(tensor), name
    assert with_head.critic is not None and float(with_head.critic.outer.bias.detach()) < 100.0


def test_the_critic_has_its_own_learning_rate_and_no_weight_decay():
    policy = critic_policy()
    config = LearnerConfig(lr=1e-4, advantage=TurnGaeConfig(critic_lr=1e-2), weight_decay=0.1)
    optimizer = make_optimizer(policy, config=config)
    assert policy.critic is not None
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    apply_gradients(policy, optimizer, lr=5e-5, max_grad_norm=1.0, loss=0.0)
    rates = {group["lr"] for group in optimizer.param_groups if group["weight_decay"]}
    assert rates == {5e-5}
    critic = next(
        g for g in optimizer.param_groups if any(p is policy.critic.outer.bias for p in g["params"])
    )
    assert critic["lr"] == pytest.approx(5e-3) and critic["weight_decay"] == 0.0
    assert len(critic["params"]) == len(list(policy.critic.parameters()))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_critic_that_is_not_finite_leaves_everything_untouched(where: str):
    policy = critic_policy()
    optimizer = make_optimizer(policy, config=CONFIG)
    before = weights_of(policy)
    assert policy.critic is not None
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    if where == "gradient":
        policy.critic.outer.bias.grad = torch.full((1,), torch.inf, dtype=torch.float64)
    sums = {"loss": 1.0, "critic_loss": float("nan") if where == "loss" else 1.0, "entropy": 1.0}
    norm = apply_gradients(policy, optimizer, lr=0.1, max_grad_norm=1.0, loss=total_loss(sums))
    assert all(tensor.equal(before[name]) for name, tensor in weights_of(policy).items())
    metrics = step_metrics(sums, grad_norm=norm, lr=0.1, num_tokens=1, num_loss_tokens=1, duration_s=1.0)
    assert metrics["learner/num_skipped"] == 1.0
    assert metrics["learner/critic/loss"] == pytest.approx(sums["critic_loss"], nan_ok=True)


def test_engines_and_exports_get_no_critic_weights():
    policy = critic_policy()
    assert any(name.startswith("critic.") for name, _ in policy.named_parameters())
    assert full_state_dict(policy, keep=True).keys() == full_state_dict(tiny_policy(), keep=True).keys()


def test_sft_does_not_change_the_critic_and_its_checkpoint_is_complete(tmp_path: Path):
    """Demonstrations have no returns: the critic's gradient is zero, not missing, so that a checkpoint of the
    stage holds the optimizer's state of every weight."""
    policy = critic_policy()
    assert policy.critic is not None
    optimizer = make_optimizer(policy, config=CONFIG)
    before = {name: tensor.clone() for name, tensor in policy.critic.state_dict().items()}
    samples, _ = step_samples([random_table(group_id=0)], tiny_policy(), config=LearnerConfig())
    loss_fn = partial(with_critic, loss_fn=partial(sft_sums, num_tokens=7))
    batches = micro_batches(samples, max_tokens=128, rank=0, num_ranks=1, seed=0)
    sums = accumulate_gradients(policy, batches, loss_fn=loss_fn, device=CPU, num_ranks=1)
    apply_gradients(policy, optimizer, lr=0.01, max_grad_norm=1.0, loss=total_loss(sums))
    assert sums["critic_loss"] == 0.0
    assert all(tensor.equal(before[name]) for name, tensor in policy.critic.state_dict().items())
    save_checkpoint(tmp_path / "c", policy, optimizer, Progress(stage="sft"))
    resumed = critic_policy()
    assert load_checkpoint(tmp_path / "c", resumed, make_optimizer(resumed, config=CONFIG)).stage == "sft"


def test_training_with_a_critic_resumes_exactly_from_a_checkpoint(tmp_path: Path):
    policy = critic_policy()
    optimizer = make_optimizer(policy, config=CONFIG)
    tables = [random_table(group_id=0)]
    samples, _ = step_samples(tables, policy)
    update(policy, optimizer, samples)
    save_checkpoint(tmp_path / "c", policy, optimizer, Progress(stage="grpo"))
    expected_samples, expected_metrics = step_samples(tables, policy)
    expected = update(policy, optimizer, expected_samples)

    resumed = critic_policy()
    resumed_optimizer = make_optimizer(resumed, config=CONFIG)
    load_checkpoint(tmp_path / "c", resumed, resumed_optimizer)
    samples, metrics = step_samples(tables, resumed)
    assert metrics == expected_metrics
    assert update(resumed, resumed_optimizer, samples) == expected
    for name, tensor in weights_of(policy).items():
        assert resumed.get_parameter(name).equal(tensor), name


def test_a_critic_exists_only_if_an_estimator_needs_one():
    assert LearnerConfig().critic_lrs == set()
    assert LearnerConfig(advantage=TurnGaeConfig()).critic_lrs == {1e-3}
    assert LearnerConfig(by_gym={"tau": TurnGaeConfig(critic_lr=1e-2)}).critic_lrs == {1e-2}


def test_the_gyms_share_one_critic_and_its_learning_rate():
    with pytest.raises(ValueError, match=r"critic_lr=0\.01: one critic serves all gyms, .* has 0\.001: give"):
        LearnerConfig(advantage=TurnGaeConfig(), by_gym={"tau": TurnGaeConfig(critic_lr=1e-2)})
