"""The driver's hold on the policy engines: as many as are wanted, each with the live weights before anybody
asks it. One that dies or hangs is replaced while the run goes on.

A new engine starts, waits for weights, receives them, and only then is one of those that rollout actors know.
It refuses to know where weights come from: `give` is somebody else's.
"""

import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.engines.client import EngineSet
from actors.engines.engine_clock import EngineUsage
from actors.process_info import ProcessInfo
from cluster.console.progress import say, warn
from cluster.workers.engine_replica import GONE, EngineReplica, in_one_line

SILENT_S = 30.0
"""An engine that has not answered for so long is ended. Its event loop never works for a second on end."""
LEAVE_S = 60.0
"""Longest wait for the completions of an engine that is to go; what is left then is asked for elsewhere."""
MOST_FAILED_STARTS = 3
"""In a row: an engine that never starts is not the machine's mishap."""
CALL_TIMEOUT_S = 10.0
WAIT_S = 1.0


class EngineStartError(RuntimeError):
    """No engine could be started."""


class EnginePool:
    """All engines of a run, as one."""

    def __init__(
        self,
        create: Callable[[int], ActorHandle],
        *,
        num_engines: int,
        places_each: int,
        start_timeout_s: float,
    ):
        """`create` makes the actor of the engine with this number; `places_each` is how many sequences one
        computes at once."""
        self.give: Callable[[], None] = lambda: None
        """Begins to bring the live weights to those that wait for them."""
        self.num_wanted = num_engines
        self.num_lost = 0
        """Engines that died or hung, so far."""
        self._create = create
        self._places_each = places_each
        self._start_timeout_s = start_timeout_s
        self._members: list[EngineReplica] = []
        self._num_first = num_engines
        self._num_created = 0
        self._num_failed_starts = 0
        self._version = 0
        self._fill()

    def wait(self) -> None:
        """Until the first engines have all started; who dies or hangs meanwhile is replaced. Raises what one
        raised by itself: another would, too."""
        while starting := [member for member in self._members if member.phase == "starts"]:
            ray.wait([member.pending for member in starting], timeout=WAIT_S)
            for member in starting:
                if member.is_done and (error := member.fault()) is not None:
                    raise error
                self._look_at_start(member)
            self._fill()

    @property
    def actors(self) -> list[ActorHandle]:
        """Those that have started and stay: who gets weights."""
        return [one.actor for one in self._members if one.phase in ("waits", "receives", "serves")]

    @property
    def waiting(self) -> list[ActorHandle]:
        """Those of them that wait for their first weights, and are not being sent any."""
        return [one.actor for one in self._members if one.phase == "waits"]

    @property
    def num_serving(self) -> int:
        return sum(member.phase == "serves" for member in self._members)

    @property
    def is_settled(self) -> bool:
        """Whether there are as many as are wanted, and all serve."""
        return len(self._members) == self.num_serving == self.num_wanted

    def current(self, *, num_sharing: int) -> EngineSet | None:
        """What `num_sharing` rollout actors need to know; None where the run has no engines at all."""
        if not self.num_wanted:
            return None
        serving = tuple(member.actor for member in self._members if member.phase == "serves")
        places = self._places_each * len(serving) / max(1, num_sharing)
        return EngineSet(version=self._version, engines=serving, capacity=places)

    def scale(self, num_engines: int) -> None:
        """More are started; of too many the newest go, once their completions are there."""
        self.num_wanted = num_engines
        staying = [member for member in self._members if member.phase != "leaves"]
        staying.sort(key=lambda member: member.is_going)
        for member in staying[num_engines:]:
            if member.phase == "serves":
                self._version += 1
                member.leave()
            else:  # nobody knows it yet
                self._end(member)
        self._fill()

    def look(self) -> None:
        """Notices who has started, died, hung or has nothing left to do, and starts what is missing. Never
        waits. Raises `EngineStartError` where engines do not start again and again."""
        for member in list(self._members):
            if member.phase == "starts":
                self._look_at_start(member)
            elif member.phase == "leaves":
                self._look_at_leaving(member)
            else:
                self._look_at_health(member)
        self._let_go()
        self._fill()

    def give_notice(self, nodes: Collection[str]) -> None:
        """Those on these nodes, by Ray's names, are about to end with them: others are started."""
        for member in list(self._members):
            if member.place is None or member.place.node_id not in nodes or member.is_going:
                continue
            if member.phase != "leaves":
                warn(f"{member}: its node is about to go: another is started")
                member.is_going = True
                if member.phase != "serves":
                    self._end(member)
        self._fill()

    def receives(self, actor: ActorHandle) -> None:
        """Its first weights are on their way."""
        member = self._member(actor)
        if member is not None and member.phase == "waits":
            member.enter("receives")

    def serves(self, actor: ActorHandle) -> None:
        """It has the live weights."""
        member = self._member(actor)
        if member is not None and member.phase == "receives":
            seconds = time.monotonic() - member.since
            member.enter("serves")
            self._version += 1
            if not member.is_first:
                say(f"{member} serves | weights after {seconds:.1f}s")

    def lose(self, actor: ActorHandle, why: str) -> None:
        """It died, hangs or cannot load weights: another takes its place."""
        member = self._member(actor)
        if member is None:
            return
        warn(f"{member} is lost: {why}: another is started")
        self.num_lost += 1
        self._version += member.phase == "serves"
        self._end(member)
        self._fill()

    def usage(self) -> list[EngineUsage]:
        """What each engine's time went to since the last call of this; without those that do not say."""
        asked: list[Any] = [
            member.actor.usage.remote() for member in self._members if member.phase == "serves"
        ]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=CALL_TIMEOUT_S) if asked else ([], [])
        usages = []
        for reference in ready:
            try:
                usages.append(ray.get(reference))
            except RayError:  # `look` sees to it
                continue
        return usages

    def stop(self, *, timeout_s: float) -> None:
        """Ends all of them; what does not end in time is killed. Who still starts would not listen."""
        stopping: list[Any] = [one.actor.stop.remote() for one in self._members if one.phase != "starts"]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=timeout_s)
        for member in list(self._members):
            self._end(member)
        self.num_wanted = 0

    def _let_go(self) -> None:
        """Who is about to go leaves once there are enough without it."""
        num_others = sum(one.phase == "serves" and not one.is_going for one in self._members)
        for member in self._members:
            if member.is_going and member.phase == "serves" and num_others >= self.num_wanted:
                self._version += 1
                member.leave()

    def _fill(self) -> None:
        """Starts as many as are missing."""
        staying = [one for one in self._members if one.phase != "leaves" and not one.is_going]
        num_missing = self.num_wanted - len(staying)
        for _ in range(num_missing):
            number, self._num_created = self._num_created, self._num_created + 1
            is_first = number < self._num_first
            self._members.append(
                EngineReplica.begin(self._create(number), name=f"engine {number}", is_first=is_first)
            )

    def _started(self, member: EngineReplica, place: ProcessInfo) -> None:
        member.started(place)
        self._num_failed_starts = 0

    def _look_at_start(self, member: EngineReplica) -> None:
        seconds = time.monotonic() - member.since
        if not member.is_done:
            if seconds > self._start_timeout_s:
                self._failed_start(member, f"did not start within start_timeout_s={self._start_timeout_s:g}")
            return
        try:
            self._started(member, ray.get(member.pending))
        except RayError as error:
            self._failed_start(member, in_one_line(error))

    def _failed_start(self, member: EngineReplica, why: str) -> None:
        self._num_failed_starts += 1
        if self._num_failed_starts >= MOST_FAILED_STARTS:
            raise EngineStartError(f"{member}: {why}; {MOST_FAILED_STARTS} in a row did not start")
        warn(f"{member}: {why}: another is started")
        self._end(member)

    def _look_at_health(self, member: EngineReplica) -> None:
        if not member.is_done:
            silent_s = time.monotonic() - member.asked_at
            if silent_s > SILENT_S:
                self.lose(member.actor, f"no answer for {silent_s:.0f} s")
            return
        try:
            ray.get(member.pending)
        except RayError as error:
            self.lose(member.actor, in_one_line(error))
        else:
            member.check()

    def _look_at_leaving(self, member: EngineReplica) -> None:
        """It goes as soon as no completion is in flight there."""
        is_idle, is_over = False, time.monotonic() - member.since > LEAVE_S
        if member.is_done:
            try:
                usage: EngineUsage = ray.get(member.pending)
                is_idle = usage.duration_s > 0 and usage.idle_s >= usage.duration_s
            except RayError:
                is_over = True
            else:
                member.pending = member.actor.usage.remote()
        if is_idle or is_over:
            say(f"{member} has gone")
            self._end(member)

    def _end(self, member: EngineReplica) -> None:
        self._members.remove(member)
        member.end()

    def _member(self, actor: ActorHandle) -> EngineReplica | None:
        return next((member for member in self._members if member.actor == actor), None)


def serve_own_weights(engines: EnginePool, *, timeout_s: float) -> None:
    """The engines serve what the model folder holds, now and whenever one is replaced: no learner will send
    anything. Raises GetTimeoutError."""

    def give() -> None:
        for actor in engines.waiting:
            engines.receives(actor)
            try:
                ray.get(actor.serve_own_weights.remote(0), timeout=timeout_s)
            except GONE as error:
                engines.lose(actor, in_one_line(error))
            else:
                engines.serves(actor)

    engines.give = give
    give()


def no_engines() -> EnginePool:
    """Where scripts or an endpoint play."""

    def create(number: int) -> ActorHandle:
        raise AssertionError("no engine is wanted")

    return EnginePool(create, num_engines=0, places_each=0, start_timeout_s=0.0)
