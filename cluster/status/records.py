"""Records of `userrl status`: the fields are the keys of `--json`. Ages are in seconds; unknown values are
None."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.status.files import LoggedProblem
from cluster.status.rates import Rates, WaitStatus

RunHealth = Literal["running", "finished", "stopped", "failed", "killed"]
"""`stopped` saved a checkpoint and resumes by `userrl train RUN`; so does `killed`, which wrote no end
state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverNow:
    """The process that drives the run, by its own words."""

    pid: int
    host: str
    began_at: float
    """In seconds since 1970."""
    silent_s: float
    """Since it last said anything."""
    stage: str
    """set-up, demonstrations, SFT, an evaluation, or GRPO; empty between them."""
    stage_done: int | None
    stage_total: int | None
    stage_left_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """The mean score of a step's dialogues."""

    last: float | None
    best: float | None
    best_step: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SizesNow:
    """Processes of each kind, at the end of the last step."""

    rollouts: float | None
    engines: float | None
    learners: int | None
    simulators: int | None
    """Replicas of the rule-based users, as the recipe or the last `userrl scale` has it."""
    num_lost_engines: float | None
    num_rebuilt_learners: float | None
    asked: Mapping[str, int]
    """What `userrl scale` asked for last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointNow:
    """The checkpoint that the run would resume from."""

    step: int
    age_s: float
    best_step: int | None
    best_score: float | None
    """On validation tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """One run at one moment."""

    run: str
    folder: str
    health: RunHealth
    is_running: bool
    reason: str
    """Why it failed; else empty."""
    driver: DriverNow | None
    """None where none runs, or none that says anything."""
    step: int
    again_up_to: int | None
    """The last step that was taken before, where those behind `step` are taken again; else None."""
    num_steps: int | None
    left_s: float | None
    """Until the end of the run."""
    reward: Reward
    scores: Mapping[str, float | None]
    """Averages over gyms on test tasks, by stage."""
    rates: Rates
    waits: WaitStatus
    sizes: SizesNow
    checkpoint: CheckpointNow | None
    troubles: Sequence[LoggedProblem]
    """The last ones, the newest last."""
