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
from learners.training.forward_scoring import ForwardScorer, TurnKey, scores_by_turn, turn_values
from learners.training.information_gain import INFORMATION_GAINS, InformationGain
from learners.training.turn_credit_table import GroupCredits


def samples_of_step(
    tables: Sequence[pa.Table], *, config: LearnerConfig, renderer: Renderer | None, scorer: ForwardScorer
) -> tuple[list[TrainingSample], dict[str, float], list[GroupCredits]]:
    """The samples of these groups, metrics of gains, critic and dropped trajectories, and each group's
    credits. `renderer` is needed for information gains only. Collective if the policy or the critic
    scores."""
    metrics: dict[str, float] = {}
    tables = [table for table in tables if table.num_rows]
    gains: Mapping[TurnKey, float] = {}
    if tables and config.information_gain != "none":
        assert renderer is not None, "gains are scored on rendered tokens"
        whole = pa.concat_tables(tables)
        to_score = scorable(whole)
        gain = INFORMATION_GAINS[config.information_gain](whole, to_score, renderer, scorer)
        weight, scored = config.information_gain_weight, trajectories_of(to_score)
        tables = [with_gain(table, gain, weight=weight, scored=scored) for table in tables]
        metrics, gains = gain_metrics(gain, tables), gain.by_turn
    credit_of = cache(config.credit_of)  # one rule per gym
    values = critic_values(tables, credit_of=credit_of, scorer=scorer)
    groups = [_credits_of(table, credit_of=credit_of, values=values, gains=gains) for table in tables]
    samples: list[TrainingSample] = []
    dropped: Counter[str] = Counter()
    if groups:  # all groups in one table, which is faster
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


def _credits_of(
    table: pa.Table, *, credit_of: CreditOf, values: Mapping[TurnKey, float], gains: Mapping[TurnKey, float]
) -> GroupCredits:
    missing, own_values = np.full(table.num_rows, np.nan), None
    if _needs_critic(table, credit_of):
        own_values = np.array([values.get(key, 0.0) for key in turn_keys(table)])
    return GroupCredits(
        table=table,
        advantages=_advantages(table, credit_of, values=own_values),
        values=missing if own_values is None else own_values,
        gains=np.array([gains.get(key, np.nan) for key in turn_keys(table)]) if gains else missing,
    )


def _advantages(table: pa.Table, credit_of: CreditOf, *, values: ndarray | None) -> ndarray:  # [num_rows]
    """The rollout actor's advantages; computed here if they depend on the critic or on information gains."""
    if TURN_ADVANTAGE.name in table.column_names and not table[TURN_ADVANTAGE.name].null_count:
        return table[TURN_ADVANTAGE.name].to_numpy()
    return gym_advantages(table, credit_of, values=values)


def _critic_metrics(groups: Sequence[GroupCredits], *, values: Mapping[TurnKey, float]) -> dict[str, float]:
    """The critic's explained variance over the turns that it scored."""
    predicted: list[float] = []
    returns: list[float] = []
    for group in groups if values else ():
        has_both = np.array([key in values for key in turn_keys(group.table)]) & np.isfinite(group.returns)
        predicted += group.values[has_both].tolist()
        returns += group.returns[has_both].tolist()
    explained = explained_variance(np.array(predicted), np.array(returns))
    return {} if explained is None else {"learner/critic/explained_variance": explained}


def critic_values(
    tables: Sequence[pa.Table], *, credit_of: CreditOf, scorer: ForwardScorer
) -> dict[TurnKey, float]:
    """The critic's value before each turn, for gyms whose estimator needs it. A turn without tokens has no
    state and is left out: its value counts as 0."""
    samples = [sample for table in tables if _needs_critic(table, credit_of) for sample in scorable(table)]
    return scores_by_turn(samples, scorer(samples, score=turn_values))


def scorable(table: pa.Table) -> list[TrainingSample]:
    """The samples of the trajectories that have a reward, for scoring."""
    return samples_from_table(table, advantages=table["reward"].to_numpy())


def with_gain(
    table: pa.Table, gain: InformationGain, *, weight: float, scored: Collection[TrajectoryKey]
) -> pa.Table:
    """The table with weight x gain added to each turn's reward. A trajectory that was not `scored`, or has a
    non-finite gain, gets no reward, so that it is neither compared nor trained."""
    keys = turn_keys(table)
    gains = np.array([gain.by_turn.get(key, 0.0) if key[:2] in scored else np.nan for key in keys])
    rewards = pa.array(table["reward"].to_numpy() + weight * gains)
    return table.set_column(table.schema.get_field_index(REWARD.name), REWARD, rewards)


def trajectories_of(samples: Sequence[TrainingSample]) -> set[TrajectoryKey]:
    """The trajectories that the samples belong to."""
    return {(sample.group_id, sample.trajectory) for sample in samples}


def gain_metrics(gain: InformationGain, tables: Sequence[pa.Table]) -> dict[str, float]:
    """Metrics of finite gains: means over all turns and by gym, number of turns, number of too long ones."""
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
    """The key of each row."""
    columns = (table[name].to_pylist() for name in ("group_id", "trajectory", "turn"))
    return list(zip(*columns, strict=True))


def _needs_critic(table: pa.Table, credit_of: CreditOf) -> bool:
    """Whether the estimator of the group's gym needs the critic."""
    return credit_of(table["gym"][0].as_py()).estimator.asks_critic
