"""Text form of a run's status: a heading, then one labelled line for each subject."""

import time
from collections.abc import Iterator, Sequence

from cluster.console.eta import short_time
from cluster.console.events import printable
from cluster.status.records import Status

NAME_WIDTH = 11
HEALTH = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped; `userrl train {folder}` resumes it",
    "failed": "failed; fix the cause, then `userrl train {folder}` resumes it",
    "killed": "not running: its driver was killed; `userrl train {folder}` resumes it",
}
LIMITS = {
    "engines": "the rest waits for engines",
    "dialogues": "the rest waits for dialogues",
    "learners": "the rest waits for learners",
    "": "",
}


def status_lines(status: Status) -> list[str]:
    """The lines."""
    subjects = {
        "stage": _stage(status),
        "reward": _reward(status),
        "rates": _rates(status),
        "waits": _waits(status),
        "queue": _queue(status),
        "disk": _disk(status),
        "sizes": _sizes(status),
        "checkpoint": _checkpoint(status),
    }
    lines = [_heading(status)]
    for name, parts in subjects.items():
        told = " | ".join(part for part in parts if part)
        if told:
            lines.append(_line(name, told))
    lines += [_line("for", order) for order in status.waits.orders]
    lines += [_line("trouble", f"{short_time(one.age_s)} ago: {one.text}") for one in status.troubles]
    return lines


def _line(name: str, text: str) -> str:
    return f"  {name:<{NAME_WIDTH}}{printable(text)}"


def _heading(status: Status) -> str:
    driver, parts = status.driver, [HEALTH[status.health].format(folder=status.folder)]
    if driver:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(driver.began_at))
        parts.append(f"pid {driver.pid} on {driver.host} since {began}")
        parts.append(f"last heard of {short_time(driver.silent_s)} ago")
    if status.health == "failed" and status.reason:
        parts.append(status.reason)
    return printable(f"{status.folder}: {', '.join(parts)}")


def _stage(status: Status) -> Iterator[str]:
    of = "" if status.num_steps is None else f" of {status.num_steps}"
    if (driver := status.driver) and driver.stage:
        left = "" if driver.stage_left_s is None else f", {short_time(driver.stage_left_s)} left"
        far = "" if driver.stage_total is None else f" {driver.stage_done}/{driver.stage_total}"
        yield f"{driver.stage}{far}{left}"
    again = "" if status.again_up_to is None else f" (again, up to {status.again_up_to})"
    yield f"step {status.step}{again}{of}"
    if status.left_s is not None:
        yield f"{short_time(status.left_s)} left"


def _reward(status: Status) -> Iterator[str]:
    reward = status.reward
    if reward.last is not None:
        yield f"last {reward.last:.3f}"
    if reward.best is not None:
        yield f"best {reward.best:.3f} at step {reward.best_step}"
    scores = [f"{stage} {score:.3f}" for stage, score in status.scores.items() if score is not None]
    if scores:
        yield f"score on test tasks: {', '.join(scores)}"


def _rates(status: Status) -> Iterator[str]:
    rates = status.rates
    if rates.step_s is not None:
        yield f"{rates.step_s:.1f} s a step"
    if rates.groups_per_s is not None:
        yield f"{rates.groups_per_s:.2f} groups/s"
    if rates.dialogues_per_min is not None:
        yield f"{rates.dialogues_per_min:,.0f} dialogues/min"
    if rates.tokens_per_s is not None:
        yield f"{rates.tokens_per_s:,.0f} tokens/s"


def _waits(status: Status) -> Iterator[str]:
    waits = status.waits
    if waits.learner_idle is not None and waits.engine_idle is not None:
        yield f"idle learner {waits.learner_idle:.0%} engine {waits.engine_idle:.0%}"
    yield LIMITS[waits.limit]
    if waits.text:
        said = waits.text.partition("; group ")[0]
        yield f"{said} (for {short_time(waits.since_s or 0.0)})"


def _queue(status: Status) -> Iterator[str]:
    waits = status.waits
    if waits.groups_ready is not None:
        yield f"{waits.groups_ready:.0f} groups ready"
    if waits.slots_taken is not None:
        yield f"{waits.slots_taken:.0f} slots taken"
    if waits.trajectories_in_flight is not None:
        yield f"{waits.trajectories_in_flight:.0f} dialogues in flight"
    if waits.num_reissued:
        yield f"{waits.num_reissued:.0f} groups given to another"


def _disk(status: Status) -> Iterator[str]:
    waits = status.waits
    yield f"{waits.disk_free_bytes / 2**30:.1f} GiB free"
    yield f"journal {waits.journal_bytes / 2**20:.1f} MiB"
    failed = {
        "journal": waits.num_journal_failures,
        "archive": waits.num_archive_failures,
        "checkpoint": waits.num_checkpoint_failures,
    }
    told = [f"{name} {number:.0f}" for name, number in failed.items() if number]
    if told:
        yield f"failed writes: {', '.join(told)}"


def _sizes(status: Status) -> Iterator[str]:
    sizes = status.sizes
    kinds: Sequence[tuple[str, float | None]] = (
        ("rollout actors", sizes.rollouts),
        ("engines", sizes.engines),
        ("learners", sizes.learners),
        ("simulator replicas", sizes.simulators),
    )
    yield ", ".join(f"{name} {number:.0f}" for name, number in kinds if number is not None)
    if sizes.asked:
        asked = ", ".join(f"{name} {number}" for name, number in sizes.asked.items())
        yield f"asked for: {asked}"
    if sizes.num_lost_engines:
        yield f"engines lost {sizes.num_lost_engines:.0f}"
    if sizes.num_rebuilt_learners:
        yield f"learners rebuilt {sizes.num_rebuilt_learners:.0f} times"


def _checkpoint(status: Status) -> Iterator[str]:
    checkpoint = status.checkpoint
    if checkpoint is None:
        yield "none yet"
        return
    yield f"step {checkpoint.step}, {short_time(checkpoint.age_s)} ago"
    if checkpoint.best_step is not None:
        yield f"best: step {checkpoint.best_step}, validation score {checkpoint.best_score:.3f}"
