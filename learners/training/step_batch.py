"""Training batch of a step from its groups: adds information gains to the rewards, queries the critic,
computes advantages, and reads the samples. No Ray; every rank computes the same."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import numpy as np
import pyarrow as pa
from numpy import ndarray

from actors.renderer import Renderer
from actors.trajectory_table import REWARD
from learners.advantages.group_advantages import TURN_ADVANTAGE, CreditOf, gym_advantages
from learners.batch.samples import TrainingSample, samples_from_table, without_truncated
from learners.config import LearnerConfig
from learners.drop_reasons import TrajectoryKey, drop_metrics, num_dropped
from learners.model.critic import explained_variance
from learners.training.forward_scoring import ForwardScorer, TurnKey, by_turn, turn_values
from learners.training.information_gain import INFORMATION_GAINS, InformationGain
from learners.training.turn_credit_table import GroupCredits


def samples_of_step(
    tables: Sequence[pa.Table], *, config: LearnerConfig, renderer: Renderer | None, scorer: ForwardScorer
) -> tuple[list[TrainingSample], dict[str, float], list[GroupCredits]]:
    """The samples of these groups, what is reported of gains and critic, and what every turn was credited
    with. `renderer` is needed for gains alone. Collective where the policy is asked."""
    metrics: dict[str, float] = {}
    tables = [table for table in tables if table.num_rows]
    gains: Mapping[TurnKey, float] = {}
    if tables and config.information_gain != "none":
        assert renderer is not None, "gains are scored on rendered tokens"
        whole = pa.concat_tables(tables)
        asked = scorable(whole)
        gain = INFORMATION_GAINS[config.information_gain](whole, asked, renderer, scorer)
        weight = config.information_gain_weight
        tables = [with_gain(table, gain, weight=weight, scored=trajectories_of(asked)) for table in tables]
        metrics, gains = gain_metrics(gain, tables), gain.by_turn
    credit_of = cache(config.credit_of)  # one rule a gym
    values = critic_values(tables, credit_of=credit_of, scorer=scorer)
    groups = [_credited(table, credit_of=credit_of, values=values, gains=gains) for table in tables]
    samples: list[TrainingSample] = []
    dropped: Counter[str] = Counter()
    if groups:  # all at once: a group alone is too small to lay out fast
        whole = pa.concat_tables(tables)
        advantages = np.concatenate([group.advantages for group in groups])
        returns = np.concatenate([group.returns for group in groups])
        samples = samples_from_table(whole, advantages=advantages, returns=returns)
        dropped = num_dropped(whole, advantages=advantages, sampled=trajectories_of(samples))
    metrics |= drop_metrics(dropped) | _critic_metrics(groups, values=values)
    if config.truncated == "mask":
        samples, num_masked = without_truncated(samples, tables=tables)
        metrics["learner/num_masked"] = float(num_masked)
    return samples, metrics, groups


def _credited(
    table: pa.Table, *, credit_of: CreditOf, values: Mapping[TurnKey, float], gains: Mapping[TurnKey, float]
) -> GroupCredits:
    nothing, expected = np.full(table.num_rows, np.nan), None
    if _asks_critic(table, credit_of):
        expected = np.array([values.get(key, 0.0) for key in turn_keys(table)])
    return GroupCredits(
        table=table,
        advantages=_advantages(table, credit_of, values=expected),
        values=nothing if expected is None else expected,
        gains=np.array([gains.get(key, np.nan) for key in turn_keys(table)]) if gains else nothing,
    )


def _advantages(table: pa.Table, credit_of: CreditOf, *, values: ndarray | None) -> ndarray:  # [num_rows]
    """The rollout actor's advantages; computed here if they depend on the critic or on information gains."""
    if TURN_ADVANTAGE.name in table.column_names and not table[TURN_ADVANTAGE.name].null_count:
        return table[TURN_ADVANTAGE.name].to_numpy()
    return gym_advantages(table, credit_of, values=values)


def _critic_metrics(groups: Sequence[GroupCredits], *, values: Mapping[TurnKey, float]) -> dict[str, float]:
    """How much of the returns the critic has foreseen, where it was asked."""
    expected: list[float] = []
    received: list[float] = []
    for group in groups if values else ():
        seen = np.array([key in values for key in turn_keys(group.table)]) & np.isfinite(group.returns)
        expected += group.values[seen].tolist()
        received += group.returns[seen].tolist()
    explained = explained_variance(np.array(expected), np.array(received))
    return {} if explained is None else {"learner/critic/explained_variance": explained}


def critic_values(
    tables: Sequence[pa.Table], *, credit_of: CreditOf, scorer: ForwardScorer
) -> dict[TurnKey, float]:
    """What the critic expects before each turn of the gyms that ask it. A turn without tokens has no state to
    read and is not in it: its value counts as 0."""
    samples = [sample for table in tables if _asks_critic(table, credit_of) for sample in scorable(table)]
    return by_turn(samples, scorer(samples, read=turn_values))


def scorable(table: pa.Table) -> list[TrainingSample]:
    """The samples of the trajectories that have a reward, to be read and not to be trained."""
    return samples_from_table(table, advantages=table["reward"].to_numpy())


def with_gain(
    table: pa.Table, gain: InformationGain, *, weight: float, scored: Collection[TrajectoryKey]
) -> pa.Table:
    """The table with weight x gain added to each turn's reward. A trajectory that was not `scored`, or has a
    gain that is not finite, is left without a reward: never compared, and never trained, with a wrong one."""
    keys = turn_keys(table)
    gains = np.array([gain.by_turn.get(key, 0.0) if key[:2] in scored else np.nan for key in keys])
    rewards = pa.array(table["reward"].to_numpy() + weight * gains)
    return table.set_column(table.schema.get_field_index(REWARD.name), REWARD, rewards)


def trajectories_of(samples: Sequence[TrainingSample]) -> set[TrajectoryKey]:
    """The trajectories that the samples are of."""
    return {(sample.group_id, sample.trajectory) for sample in samples}


def gain_metrics(gain: InformationGain, tables: Sequence[pa.Table]) -> dict[str, float]:
    """Mean gain of a turn that has a finite one, over all gyms and by gym, how many have, and what was left
    out."""
    gym_of = {key: table["gym"][0].as_py() for table in tables for key in turn_keys(table)}
    of_gym: Mapping[str, list[float]] = defaultdict(list)
    for key, value in gain.by_turn.items():
        if np.isfinite(value):
            of_gym[gym_of[key]].append(value)
    metrics = {f"learner/information_gain/{gym}": float(np.mean(of_gym[gym])) for gym in sorted(of_gym)}
    finite = [value for values in of_gym.values() for value in values]
    if finite:
        metrics["learner/information_gain/mean"] = float(np.mean(finite))
    return metrics | {
        "learner/information_gain/num_turns": float(len(finite)),
        "learner/information_gain/num_too_long": float(gain.num_too_long),
    }


def turn_keys(table: pa.Table) -> list[TurnKey]:  # [num_rows]
    columns = (table[name].to_pylist() for name in ("group_id", "trajectory", "turn"))
    return list(zip(*columns, strict=True))


def _asks_critic(table: pa.Table, credit_of: CreditOf) -> bool:
    """Whether the credit of the group's gym needs the critic."""
    return credit_of(table["gym"][0].as_py()).estimator.asks_critic
