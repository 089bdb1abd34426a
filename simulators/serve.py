"""The simulated users as a Ray Serve application: replicas that answer, and an HTTP face for tools.

Rollout actors call the replicas through `simulators.serve_user.ServeUser`; the HTTP face does the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.handle import DeploymentHandle

from simulators.config import SimulatorConfig
from simulators.env import Gym
from simulators.message import Choice
from simulators.persona import Persona
from simulators.rule_user import RuleUser
from simulators.serve_user import ServeUser
from simulators.user import SimulatorError, UserCall, UserReply

MAX_ONGOING_REQUESTS = 256
"""Requests that one replica works on at a time; further ones wait with their callers."""

http = FastAPI(title="Simulated users")


class Simulator:
    """One replica: answers calls by the gyms' rules."""

    def __init__(self, gyms: Mapping[str, Gym] | None):
        self._user = RuleUser(gyms)

    async def reply(self, calls: Sequence[UserCall]) -> list[UserReply | SimulatorError]:
        """One reply a call, in order; the error where that call ended in one."""
        return [self._reply(call) for call in calls]

    def _reply(self, call: UserCall) -> UserReply | SimulatorError:
        try:
            return self._user.answer(call)
        except SimulatorError as error:
            return error


class ReplyRequest(BaseModel):
    """The body of POST /reply."""

    model_config = ConfigDict(extra="forbid")

    gym: str
    scenario: dict[str, Any]
    question: str
    choice: Choice = "action"
    view: dict[str, Any] = {}
    persona: dict[str, float] = {}
    history: list[tuple[str, str]] = []
    seed: int = 0


class ReplyResponse(BaseModel):
    """What POST /reply answers."""

    text: str
    facts: dict[str, Any]
    decoy: str
    simulator: str
    model: str
    prompt_hash: str
    seed: int
    num_tokens: int
    latency_s: float
    num_retries: int


@serve.ingress(http)
class Ingress:
    """The HTTP face."""

    def __init__(self, simulator: DeploymentHandle, config: SimulatorConfig):
        self._user = ServeUser(simulator, config)

    @http.post("/reply")
    async def reply(self, request: ReplyRequest) -> ReplyResponse:
        """The simulated user's reply; 502 with one line of text where it gave none."""
        call = UserCall(
            gym=request.gym,
            scenario=request.scenario,
            question=request.question,
            choice=request.choice,
            view=request.view,
            persona=Persona(**request.persona),
            history=tuple(request.history),
            seed=request.seed,
        )
        try:
            reply = await self._user.reply(call)
        except SimulatorError as error:
            raise HTTPException(status_code=502, detail=str(error)) from error
        return ReplyResponse(**dataclasses.asdict(reply))

    @http.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}


def build_app(
    config: SimulatorConfig, *, http: bool = True, gyms: Mapping[str, Gym] | None = None
) -> serve.Application:
    """The application: `Simulator`, with `Ingress` before it where `http`. `gyms` is for tests."""
    simulator = serve.deployment(
        name="Simulator",
        num_replicas=config.num_replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": config.num_cpus_per_replica},
    )(Simulator).bind(gyms)
    if not http:
        return simulator
    ingress = serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0})(Ingress)
    return ingress.bind(simulator, config)
