"""Fault injector: applies one fault after another to a running job, measures each recovery time, and prints
both."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cluster.chaos.cluster import ChaosCluster, Job, look
from cluster.chaos.faults import Fault, FaultKind, Snapshot, is_mended
from cluster.console.log import info

MEND_TIMEOUT_S = 300.0
"""A fault that is not mended by then never is; the next one comes."""
LOOK_EVERY_S = 0.5
MOST_RESTARTS = 5
"""Restarts of a driver that exited, as a job supervisor would do."""


class FaultInjector:
    """Strikes a job and measures how long each blow takes to mend."""

    def __init__(self, cluster: ChaosCluster, job: Job):
        self.recoveries: list[tuple[FaultKind, float]] = []
        self._cluster = cluster
        self._job = job
        self._num_restarts = 0
        self._hung = frozenset[int]()
        """Stopped replicas that still exist: Serve removes one long after it has replaced it."""

    def strike(self, fault: Fault) -> bool:
        """False if the run was over before. If there is no process of the kind, that is reported and none is
        killed."""
        calm_until = time.monotonic() + fault.calm_s
        self._wait(lambda: time.monotonic() >= calm_until, timeout_s=math.inf)
        before = Snapshot()

        def can_strike() -> bool:
            nonlocal before
            before = self._look()
            return bool(before.alive["driver"] and before.alive.get(fault.role))

        if not self._wait(can_strike, timeout_s=MEND_TIMEOUT_S):
            if self._is_over:
                return False
            info(f"{fault.title}: passed over: the run had none to strike for {MEND_TIMEOUT_S:.0f} s")
            return True
        candidates = sorted(before.alive[fault.role])
        victim = candidates[int(fault.pick * len(candidates))]
        began = time.monotonic()
        info(f"{fault.title}: pid {victim} | {before.last_step or 'before the first step'}")
        victims = self._hit(fault, victim)
        mended = self._wait(partial(self._is_mended, fault, victims, before), timeout_s=MEND_TIMEOUT_S)
        mended = mended or self._job.exit_code == 0
        seconds = time.monotonic() - began
        self.recoveries.append((fault.kind, seconds))
        info(f"{fault.title}: {'mended' if mended else 'not mended'} after {seconds:.1f}s")
        return True

    def wait_for_end(self) -> bool:
        """Whether the run came to its end."""
        return self._wait(lambda: self._job.exit_code == 0, timeout_s=math.inf)

    @property
    def _is_over(self) -> bool:
        """Whether the driver has ended, and is not started again."""
        code = self._job.exit_code
        return code == 0 or (code is not None and self._num_restarts == MOST_RESTARTS)

    def _wait(self, condition: Callable[[], bool], *, timeout_s: float) -> bool:
        """Whether the condition became true before the timeout and before the end of the run. A driver that
        ends by itself before its run does is started again."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._is_over or time.monotonic() > deadline:
                return condition()
            if self._job.exit_code:
                self._num_restarts += 1
                info(f"the driver ended with {self._job.exit_code}: it is started again; see {self._job.log}")
                self._job.start()
            time.sleep(LOOK_EVERY_S)
        return True

    def _look(self) -> Snapshot:
        """Excludes hung processes: they are neither hit again nor counted as running."""
        self._cluster.bring_back_nodes()
        seen = look(self._cluster, self._job)
        self._hung &= frozenset[int]().union(*seen.alive.values())
        return replace(seen, alive={role: pids - self._hung for role, pids in seen.alive.items()})

    def _hit(self, fault: Fault, victim: int) -> frozenset[int]:
        if fault.kind == "driver":
            self._job.kill()
            self._job.start()
            return frozenset({victim})
        victims = self._cluster.strike(fault, victim=victim)
        if fault.is_hang:
            self._hung |= victims
        return victims

    def _is_mended(self, fault: Fault, victims: frozenset[int], before: Snapshot) -> bool:
        return is_mended(fault.role, victims=victims, before=before, now=self._look())
