"""Evaluation metrics: scores, 95 % intervals, pass^k, pass@k, effective turns and the paper's numbers. Pure
NumPy.

The unit is a task: a gym's score is the mean over tasks of the mean over each task's trials, and intervals
resample tasks, since the trials of one task are not independent. A failed dialogue is counted, never scored.
`docs/evaluation.md` gives the source of each formula.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.trajectory import StopReason

SUCCESS_SCORE = 0.99
"""A dialogue succeeds from this score on: everything was reached, up to rounding."""
NUM_RESAMPLES = 10_000
CHUNK = 1_000
"""Resamples drawn at a time, to bound memory."""
NORMAL_95 = 1.959964
"""The two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DialogueOutcome:
    """How one evaluation dialogue went."""

    gym: str
    task_id: str
    score: float
    """Sum of the turn rewards; NaN where the dialogue failed."""
    num_turns: int
    policy: str = ""
    simulator: str = "rules"
    """The simulator of the recipe that played the user."""
    persona: str = "plain"
    trial: int = 0
    """Which of the task's dialogues this is."""
    stop_reason: StopReason = StopReason.TERMINATED
    error: str = ""
    rewards: tuple[float, ...] = ()  # [num_turns]
    choices: tuple[str, ...] = ()  # [num_turns]
    """What each turn did; empty where it made no valid tool call."""
    contents: tuple[str, ...] = ()  # [num_turns]
    """The content of each turn's tool call; all that was said where there was none."""
    opening: str = ""
    feedbacks: tuple[str, ...] = ()  # [num_turns]
    seconds: tuple[float, ...] = field(default=(), compare=False)  # [num_stages]
    """Seconds of its turns by `TURN_STAGES`; empty if not recorded."""
    num_aspects: int = 1
    """What Travel's choice rewards are divided by: the parts of the trip under `published` rules; 1 where the
    rewards of all parts sum to 1 already."""

    @property
    def failed(self) -> bool:
        """Not the policy's doing. Counted, never scored."""
        return self.stop_reason.failed or math.isnan(self.score)


Measure = Callable[[DialogueOutcome], float]


def published_score(outcome: DialogueOutcome) -> float:
    """The released evaluation's number (UserRL's analyze.py): the sum of the turn rewards, not normalised –
    so Intention exceeds 1 under `published` rules – but for Travel only its choices."""
    return travel_score(outcome) if outcome.gym == "travel" else math.fsum(outcome.rewards)


def travel_score(outcome: DialogueOutcome) -> float:
    """Travel's released metric: of `answer` turns only, the best reward for each first letter of the answer
    (a letter is a part of the trip), summed and divided by the number of parts."""
    best: dict[str, float] = {}
    for choice, content, reward in zip(outcome.choices, outcome.contents, outcome.rewards, strict=True):
        letter = content.strip().removeprefix("[answer]").strip()[:1].upper()
        if choice == "answer" and letter:
            best[letter] = max(best.get(letter, 0.0), reward)
    return math.fsum(best.values()) / outcome.num_aspects


def effective_turns(outcome: DialogueOutcome) -> float:
    """The number, counted from 1, of the last turn with a reward other than zero; 0 without one (UserRL,
    Table 4)."""
    return float(max((turn for turn, reward in enumerate(outcome.rewards, start=1) if reward), default=0))


def time_weighted(outcome: DialogueOutcome) -> float:
    """`Σ r_i / (i + 1)`, turns counted from 0: a reward counts less the later it comes (UserRL, Table 4)."""
    return math.fsum(reward / turn for turn, reward in enumerate(outcome.rewards, start=1))


def task_means(outcomes: Sequence[DialogueOutcome], measure: Measure) -> np.ndarray:
    """Mean of `measure` over the scored trials of each task: [num_tasks with a scored trial], by
    appearance."""
    by_task: dict[tuple[str, str], list[float]] = {}
    for outcome in outcomes:
        if not outcome.failed:
            by_task.setdefault((outcome.gym, outcome.task_id), []).append(measure(outcome))
    return np.array([math.fsum(values) / len(values) for values in by_task.values()], dtype=np.float64)


def mean(values: np.ndarray) -> float:
    """NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan


def interval(task_scores: np.ndarray, *, seed: int) -> tuple[float, float]:
    """95 % interval of the mean over tasks [num_tasks]: a seeded percentile bootstrap that resamples tasks
    with all their trials; Wilson's (1927) where every task scored 0 or 1.

    Wilson's keeps its width where all scores are equal, as an untrained policy's zeros are.
    """
    n = len(task_scores)
    if n == 0:
        return math.nan, math.nan
    if np.isin(task_scores, (0.0, 1.0)).all():
        p, z2 = float(task_scores.mean()), NORMAL_95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = NORMAL_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(0.0, middle - half), min(1.0, middle + half)
    rng = np.random.default_rng(seed)
    chunks = (rng.choice(task_scores, size=(CHUNK, n)).mean(axis=1) for _ in range(NUM_RESAMPLES // CHUNK))
    low, high = np.quantile(np.concatenate(list(chunks)), (0.025, 0.975))
    return float(low), float(high)


def joined_interval(
    scores: Sequence[float], intervals: Sequence[tuple[float, float]], weights: Sequence[float]
) -> tuple[float, float]:
    """95 % interval of `Σ w_i s_i` from those of its independent parts (MOVER, Zou and Donner 2008)."""
    middle = math.fsum(w * score for w, score in zip(weights, scores, strict=True))
    parts = list(zip(weights, scores, intervals, strict=True))
    below = math.sqrt(math.fsum((w * (score - low)) ** 2 for w, score, (low, _) in parts))
    above = math.sqrt(math.fsum((w * (high - score)) ** 2 for w, score, (_, high) in parts))
    return middle - below, middle + above


def pass_hat_k(num_trials: int, num_successes: int, k: int) -> float:
    """Chance that k trials drawn without replacement all succeed: `C(c, k) / C(n, k)` (pass^k, Yao et al.
    2024, tau-bench). Raises ValueError for k outside 1..n."""
    _check_k(num_trials, num_successes, k)
    return math.comb(num_successes, k) / math.comb(num_trials, k)


def pass_at_k(num_trials: int, num_successes: int, k: int) -> float:
    """Chance that at least one of k trials succeeds, unbiased: `1 - C(n - c, k) / C(n, k)` (Chen et al. 2021,
    eq. 1). Raises ValueError for k outside 1..n."""
    _check_k(num_trials, num_successes, k)
    return 1.0 - math.comb(num_trials - num_successes, k) / math.comb(num_trials, k)


def pass_curves(
    outcomes: Sequence[DialogueOutcome], *, num_trials: int, success_score: float
) -> tuple[list[float], list[float]]:
    """(pass^k, pass@k) for k = 1..num_trials, each the mean over the tasks with at least k scored trials; NaN
    where there is none."""
    trials, successes = Counter[str](), Counter[str]()
    for outcome in outcomes:
        if not outcome.failed:
            trials[outcome.task_id] += 1
            successes[outcome.task_id] += outcome.score >= success_score
    hats, ats = [], []
    for k in range(1, num_trials + 1):
        counts = [(n, successes[task]) for task, n in trials.items() if n >= k]
        hats.append(mean(np.array([pass_hat_k(n, c, k) for n, c in counts])))
        ats.append(mean(np.array([pass_at_k(n, c, k) for n, c in counts])))
    return hats, ats


def _check_k(num_trials: int, num_successes: int, k: int) -> None:
    if not 1 <= k <= num_trials or not 0 <= num_successes <= num_trials:
        raise ValueError(
            f"k={k}, {num_successes} of {num_trials}: k must be 1 to the number of trials: give more trials"
        )
