"""`userrl chaos`: runs a real job, kills its processes at random, and reports what that cost."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path

from cluster.chaos.audit import ChaosAudit, account
from cluster.chaos.cluster import ChaosCluster, Job
from cluster.chaos.faults import Fault, FaultKind, schedule, summary, summary_by_kind
from cluster.chaos.injector import FaultInjector
from cluster.chaos.report import print_chaos
from cluster.config.recipe import BadInput
from cluster.config.run_config import RunConfig
from cluster.console.log import info
from cluster.ray_cluster.placement import this_machine
from cluster.run_folder.atomic_files import write_whole
from cluster.run_folder.paths import RunFolder


def chaos(config: RunConfig, *, num_kills: int, seed: int, as_json: bool) -> None:
    """Trains `NAME-chaos-SEED` under `num_kills` faults, and where that run is through before the last of
    them `NAME-chaos-SEED-2` and so on; prints the fixed JSON, or what a person wants to know, which takes an
    undisturbed run, `NAME-calm`, for comparison."""
    if num_kills < 1:
        raise BadInput(f"--kills {num_kills}: nothing would happen: give at least 1")
    name = f"{config.run.name}-chaos-{seed}"
    first = RunFolder.of(_named(config, name)).path
    _refuse_old(first)
    faults = deque(schedule(num_kills, seed=seed))
    runs: list[ChaosResult] = []
    while faults and (not runs or (runs[-1].completed and runs[-1].recoveries)):
        number = f"-{len(runs) + 1}" if runs else ""
        runs.append(_disturb(_named(config, name + number), faults))
    if faults:
        info(f"{len(faults)} of {num_kills} faults had no run to strike")
    recoveries = [recovery for run in runs for recovery in run.recoveries]
    completed = all(run.completed for run in runs)
    accounts = sum((run.accounts for run in runs), ChaosAudit(lost=0, duplicated=0, stale=0))
    result = {**summary(recoveries), **asdict(accounts), "completed": completed}
    each = [{"kind": kind, "recovery_s": seconds} for kind, seconds in recoveries]
    by_kind = summary_by_kind(recoveries)
    write_whole(first / "chaos.json", json.dumps({**result, "recovery_by_kind": by_kind, "faults": each}))
    info(f"each fault with its seconds: {first / 'chaos.json'}")
    if as_json:
        print(json.dumps(result))
        return
    calm = _named(config, f"{config.run.name}-calm")
    _run(calm, deque())  # where it is there already, it is finished at once
    print_chaos(
        recoveries,
        accounts,
        completed=completed,
        disturbed=[run.folder for run in runs],
        calm=RunFolder.of(calm),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChaosResult:
    """A run under faults."""

    folder: RunFolder
    recoveries: Sequence[tuple[FaultKind, float]]
    """Each fault that struck, with the seconds until it was mended."""
    accounts: ChaosAudit
    completed: bool
    """Whether the run came to its end."""


def _disturb(config: RunConfig, faults: deque[Fault]) -> ChaosResult:
    recoveries, completed = _run(config, faults)
    folder = RunFolder.of(config)
    accounts = account(folder, max_off_policy_steps=config.buffer.max_off_policy_steps)
    return ChaosResult(folder=folder, recoveries=recoveries, accounts=accounts, completed=completed)


def _refuse_old(first: Path) -> None:
    """Raises `BadInput` where there is a run already of any name that chaos may take: it would be finished at
    once, or disturbed in its middle."""
    others = sorted(first.parent.glob(f"{escape(first.name)}-*"))
    for path in (first, *(path for path in others if path.name.rpartition("-")[2].isdecimal())):
        if RunFolder(path).config.exists():
            raise BadInput(f"{path}: is there already: give another --seed or --run NAME")


def _named(config: RunConfig, name: str) -> RunConfig:
    """The same run under another name."""
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def _run(config: RunConfig, faults: deque[Fault]) -> tuple[list[tuple[FaultKind, float]], bool]:
    """Each fault that struck with the seconds until it was mended, and whether the run came to its end. Those
    that struck are taken off `faults`."""
    cluster = ChaosCluster(this_machine())
    job = Job(config, folder=RunFolder.of(config).path / "chaos", address=cluster.address)
    try:
        job.start()
        strikes = FaultInjector(cluster, job)
        while faults and strikes.strike(faults[0]):
            faults.popleft()
        return strikes.recoveries, strikes.wait_for_end()
    finally:
        job.stop()
        cluster.shutdown()
