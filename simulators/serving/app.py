"""Ray Serve application of the rule-based simulated users: replicas that reply, and an optional HTTP API.

Rollout actors and the HTTP API call the replicas through `simulators.serving.user_client.ServeUser`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from simulators.config import SimulatorConfig
from simulators.gym import Gym
from simulators.input_limits import MAX_ACTION_CHARS, MAX_REPLY_CHARS
from simulators.message import Choice
from simulators.persona import Persona
from simulators.serving.auth import ApiKeyMiddleware, is_loopback
from simulators.serving.port_binding import listen_on_node
from simulators.serving.user_client import ServeUser
from simulators.user import SimulatorError, UserCall, UserReply
from simulators.users.rule_user import RuleUser

MAX_ONGOING_REQUESTS = 256
"""Requests that one replica works on at a time; further ones wait with their callers."""
HEALTH_CHECK: Mapping[str, Any] = {"health_check_period_s": 1.0, "health_check_timeout_s": 2.0}
"""Serve restarts a replica after three failed checks in a row; at Serve's default of 30 s a hung user would
last minutes."""
DEPLOYMENT = "Simulator"
"""The deployment's name in Serve."""
MAX_NAME_CHARS = 100
MAX_HISTORY = 100
"""Earlier (question, reply) pairs in one request."""
TRAITS = frozenset(trait.name for trait in dataclasses.fields(Persona))


class SimulatorReplica:
    """One replica: replies to calls by the gyms' rules."""

    def __init__(self, gyms: Mapping[str, Gym] | None):
        listen_on_node()
        self._user = RuleUser(gyms)

    async def reply(self, calls: Sequence[UserCall]) -> list[UserReply | SimulatorError]:
        """One reply or error per call, in order."""
        return [self._reply(call) for call in calls]

    def _reply(self, call: UserCall) -> UserReply | SimulatorError:
        try:
            return self._user.reply_sync(call)
        except SimulatorError as error:
            return error


def _check_traits(persona: dict[str, float]) -> dict[str, float]:
    for name in persona.keys() - TRAITS:
        raise ValueError(f"{name!r} is no trait of a persona: the traits are {', '.join(sorted(TRAITS))}")
    return persona


QuestionText = Annotated[str, Field(max_length=MAX_ACTION_CHARS)]
ReplyText = Annotated[str, Field(max_length=MAX_REPLY_CHARS)]
TraitValue = Annotated[float, Field(ge=0, le=1)]


class ReplyRequest(BaseModel):
    """The body of POST /reply."""

    model_config = ConfigDict(extra="forbid")

    gym: str = Field(max_length=MAX_NAME_CHARS)
    scenario: dict[str, Any]
    question: QuestionText
    choice: Choice = "action"
    view: dict[str, Any] = {}
    persona: Annotated[dict[str, TraitValue], AfterValidator(_check_traits)] = {}
    history: list[tuple[QuestionText, ReplyText]] = Field(default=[], max_length=MAX_HISTORY)
    seed: int = Field(default=0, ge=0, lt=2**63)


class ReplyResponse(BaseModel):
    """The response of POST /reply."""

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


def start_serve(*, host: str, port: int, location: str) -> None:
    """Starts Serve unless it runs already. Raises ValueError if a running Serve listens on more than `host`,
    which cannot be changed."""
    serve.start(
        http_options={"host": host, "port": port, "location": location},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    client = _get_global_client()
    assert client is not None, "it has just been started"
    listens = client.http_config.host or host
    if location != "NoServer" and is_loopback(host) and not is_loopback(listens):
        raise ValueError(
            f"Serve runs on this cluster already, and listens on {listens}, where others would reach "
            "the users of this run without a key: end it with `serve shutdown`, or have another cluster"
        )


def make_ingress(expected: str) -> Any:
    """The HTTP API as a deployment class. `expected` is the hash of the required key, see
    simulators/serving/auth.py; empty: no key is required."""
    http = FastAPI(title="Simulated users")
    http.add_middleware(ApiKeyMiddleware, expected=expected)

    @serve.ingress(http)
    class Ingress:
        def __init__(self, simulator: DeploymentHandle, config: SimulatorConfig):
            listen_on_node()
            self._user = ServeUser(simulator, config)

        @http.post("/reply")
        async def reply(self, request: ReplyRequest) -> ReplyResponse:
            """The simulated user's reply; status 502 with one line of text if it gave none."""
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

    return Ingress


def build_app(
    config: SimulatorConfig,
    *,
    http: bool = True,
    expected: str = "",
    gyms: Mapping[str, Gym] | None = None,
    resources: Mapping[str, float] | None = None,
) -> serve.Application:
    """The application: `SimulatorReplica`, with `http` behind the HTTP API, which requires the key with the
    hash `expected`. `gyms` is for tests; `resources` are custom Ray resources of each replica, which restrict
    its nodes."""
    simulator = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=config.num_replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        **HEALTH_CHECK,
        ray_actor_options={"num_cpus": config.num_cpus_per_replica, "resources": dict(resources or {})},
    )(SimulatorReplica).bind(gyms)
    if not http:
        return simulator
    ingress = serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0}, **HEALTH_CHECK)(
        make_ingress(expected)
    )
    return ingress.bind(simulator, config)
