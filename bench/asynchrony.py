"""Benchmark of asynchronous against synchronous training, with users that take time to reply: trained
trajectories per second, seconds to the same reward, idle shares.

One run's processes train again and again from the same cold-started policy: Ray, Serve, vLLM, learner and all
are those of `userrl train`. Modes take turns; what differs is `buffer.max_off_policy_steps` alone.
"""

import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from bench.harness import RUNS, run
from bench.result_rows import Row
from bench.short_trainings import Step, Trials, trials
from cluster.config.run_config import RunConfig
from cluster.console.progress import quiet_libraries

WINDOW = 4
"""Steps over which rewards are averaged: a step has few tasks, some easy and some not."""
REACHED = 0.8
"""Share of the synchronous run's rise to its best mean reward whose time is taken; the rest is noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One latency of the users."""

    delay_s: float
    max_off_policy_steps: int
    """Of the asynchronous mode: as many steps as pass during a dialogue, and one or two of reserve."""
    sync_steps: int
    async_steps: int
    is_scored: bool = False
    """Whether the policy is evaluated on held-out tasks, before and after."""


CASES = (
    Case(delay_s=0.0, max_off_policy_steps=2, sync_steps=8, async_steps=16),
    Case(delay_s=0.05, max_off_policy_steps=3, sync_steps=8, async_steps=16),
    Case(delay_s=0.2, max_off_policy_steps=5, sync_steps=30, async_steps=30, is_scored=True),
    Case(delay_s=1.0, max_off_policy_steps=12, sync_steps=7, async_steps=28),
)
QUICK = (Case(delay_s=0.2, max_off_policy_steps=5, sync_steps=8, async_steps=16, is_scored=True),)


def recipe(folder: str) -> RunConfig:
    """Sized so that a learner with one core has no less to do than an engine with the other: the policy is
    the quick-start's, three times as wide. With a smaller one the learner waits for the engine, whose
    work hardly depends on its size."""
    return RunConfig.model_validate(
        {
            "run": {"name": "asynchrony", "folder": folder},
            "gyms": {"weights": {"intention": 1.0, "persuade": 1.0}},
            "policy": {
                "tiny": {"hidden_size": 192, "num_layers": 4, "num_heads": 4, "intermediate_size": 576}
            },
            "rollout": {"dialogues_per_actor": 512, "group_size": 8, "max_completion_tokens": 48},
            "engine": {"max_model_len": 640, "max_num_seqs": 128, "num_threads": 1},
            "learner": {"lr": 5e-4, "num_threads": 1},
            "buffer": {"groups_per_step": 4},
            "sft": {"demonstrator": "hasty", "num_demonstrations": 3000, "num_epochs": 1.5, "lr": 3e-3},
            "evaluation": {"tasks_per_gym": 150},
            "checkpoint": {"every_steps": 1000},
            "tracking": {"mode": "disabled"},
        }
    )


Interval = tuple[float, float, float]
"""Mean, low, high: 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One training."""

    steps: Sequence[Step]
    warm_up: int
    """First steps that no rate and no idle share counts: what was ordered when the training began comes home
    in waves."""
    held_out: Interval | None
    """Of the score on held-out tasks, afterwards; None where it was not asked for."""

    @property
    def rate(self) -> float:
        """Trained trajectories a second, from the end of the warm-up on."""
        first, last = self.steps[self.warm_up - 1], self.steps[-1]
        num_trained = last.metrics["ledger/trained"] - first.metrics["ledger/trained"]
        return num_trained / (last.ended_s - first.ended_s)

    def mean(self, key: str) -> float:
        """Of a metric over the steps after the warm-up, each by its length."""
        counted = self.steps[self.warm_up :]
        lengths = [step.metrics["time/step_s"] for step in counted]
        weighed = [step.metrics[key] * length for step, length in zip(counted, lengths, strict=True)]
        return sum(weighed) / sum(lengths)

    def rewards(self) -> list[float]:
        """Mean reward of the last `WINDOW` steps, at each step from the first whole window on."""
        each = [step.metrics["rollout/reward/mean"] for step in self.steps]
        return [fmean(each[end - WINDOW : end]) for end in range(WINDOW, len(each) + 1)]

    def seconds_to(self, reward: float) -> float:
        """Until that mean first reaches `reward`; infinite where it never does."""
        ends = [step.ended_s for step in self.steps[WINDOW - 1 :]]
        reached = (end for end, value in zip(ends, self.rewards(), strict=True) if value >= reward)
        return next(reached, math.inf)


def train(trial: Trials, case: Case, *, max_off_policy_steps: int, seed: int) -> Outcome:
    """One training and, where it is scored, its evaluation."""
    steps = trial.steps(
        num_steps=case.async_steps if max_off_policy_steps else case.sync_steps,
        run={"seed": seed},
        simulator={"users": [{"type": "rules", "delay_s": case.delay_s}]},
        buffer={"max_off_policy_steps": max_off_policy_steps},
    )
    outcome = Outcome(
        steps=steps,
        warm_up=2 + max_off_policy_steps,
        held_out=trial.score() if case.is_scored else None,
    )
    print(
        f"users of {1000 * case.delay_s:.0f} ms, max_off_policy_steps={max_off_policy_steps}, seed {seed}: "
        f"{outcome.rate:.1f} trajectories/s, score {outcome.held_out}",
        flush=True,
    )
    return outcome


def rows_of(case: Case, *, sync: Sequence[Outcome], asynchronous: Sequence[Outcome]) -> Iterator[Row]:
    """Both modes' numbers; ratios are medians of the ratios run by run."""
    users = f"users of {1000 * case.delay_s:,.0f} ms"
    names = f"{users}, synchronous", f"{users}, max_off_policy_steps={case.max_off_policy_steps}"
    measured = {
        "trained trajectories": ([one.rate for one in sync], [one.rate for one in asynchronous], "1/s", 1)
    }
    if case.is_scored:
        rises = [(one.rewards()[0], max(one.rewards())) for one in sync]
        targets = [first + REACHED * (best - first) for first, best in rises]
        measured["time to the same reward"] = (
            [one.seconds_to(target) for one, target in zip(sync, targets, strict=True)],
            [one.seconds_to(target) for one, target in zip(asynchronous, targets, strict=True)],
            "s",
            -1,
        )
    for metric, (slow, quick, unit, sign) in measured.items():
        ratio = median((new / old) ** sign for new, old in zip(quick, slow, strict=True))
        for name, values in zip(names, (slow, quick), strict=True):
            is_ours, never = name is names[1], math.isinf(median(values))
            yield Row(
                bench="asynchrony",
                case=name,
                metric=f"{metric}: most runs took longer than" if never else metric,
                value=median(one.steps[-1].ended_s for one in asynchronous) if never else median(values),
                unit=unit,
                runs=len(values),
                ratio_to=names[0] if is_ours else "",
                ratio=ratio if is_ours else None,
            )
    for name, outcomes in zip(names, (sync, asynchronous), strict=True):
        shares = {
            "learner idle": [100 * one.mean("learner/idle/share") for one in outcomes],
            "engine idle": [100 * one.mean("engine/idle/share") for one in outcomes],
        }
        ages = [max(step.metrics["buffer/age/max"] for step in one.steps) for one in outcomes]
        for metric, values in shares.items():
            yield _row(name, metric, values, unit="%")
        yield _row(name, "oldest token trained", ages, unit="steps")
        yield from _score_rows(name, [one.held_out for one in outcomes if one.held_out])


def _score_rows(name: str, scores: Sequence[Interval]) -> Iterator[Row]:
    if scores:
        yield _row(name, "score on held-out tasks", [score for score, _, _ in scores])
        yield _row(name, "its 95 % interval, half", [(high - low) / 2 for _, low, high in scores])


def _row(case: str, metric: str, values: Sequence[float], *, unit: str = "") -> Row:
    return Row(
        bench="asynchrony", case=case, metric=metric, value=median(values), unit=unit, runs=len(values)
    )


def measure(quick: bool) -> list[Row]:
    quiet_libraries()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, trials(recipe(folder)) as trial:
        rows += _score_rows("cold-started policy", [trial.score()])
        for case in QUICK if quick else CASES:
            outcomes: dict[int, list[Outcome]] = {0: [], case.max_off_policy_steps: []}
            for seed in range(1 if quick else RUNS):
                for bound, done in outcomes.items():
                    done.append(train(trial, case, max_off_policy_steps=bound, seed=seed))
            rows += rows_of(case, sync=outcomes[0], asynchronous=outcomes[case.max_off_policy_steps])
    return rows


if __name__ == "__main__":
    sys.exit(run(measure, doc=__doc__))
