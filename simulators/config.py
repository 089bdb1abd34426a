"""Config section `simulator`: simulated users, their weights, personas, endpoints and hosted models. It
imports no Ray, so that a recipe is checked quickly."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from simulators.llm_client.config import ChatConfig
from simulators.plug_ins import PlugInName
from simulators.user import RULES

FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


AbsolutePathText = Annotated[str, AfterValidator(_absolute)]
"""A path, absolute from the start: processes of a cluster work in folders of their own."""


def _check_replicas(num: int, most: int | None) -> None:
    if most is not None and most < num:
        raise ValueError(
            f"max_replicas={most} is less than num_replicas={num}: raise it, or leave it out for a fixed "
            "number"
        )


class NamedUserConfig(BaseModel):
    """Settings of every kind of simulated user."""

    model_config = FROZEN

    name: str
    """The simulator's name in rows, reports and evaluation arguments."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Share of the training dialogues that it plays. 0: excluded from training; can be named in an
    evaluation."""
    record: AbsolutePathText | None = None
    """Folder in which its replies are recorded for a later replay."""

    @field_validator("name")
    @classmethod
    def _name_is_one_word(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError("a simulator's name stands in URLs: use letters, digits, '.', '_' and '-' only")
        return name


class RulesUserConfig(NamedUserConfig):
    """The gyms' own rules, without a model."""

    type: Literal["rules"] = "rules"
    name: str = RULES
    """Always `rules`."""
    delay_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Mean artificial delay of a reply, to rehearse a slow user model."""

    @field_validator("name")
    @classmethod
    def _name_is_fixed(cls, name: str) -> str:
        if name != RULES:
            raise ValueError(f"the rule-based user is always named {RULES!r}: leave the name out")
        return name


class LlmServeConfig(NamedUserConfig):
    """A Hugging Face model, hosted by the run on Ray Serve and vLLM."""

    type: Literal["llm"] = "llm"
    model: str
    """A folder, or a hub name."""
    num_replicas: int = Field(default=1, ge=1)
    """Minimum number of replicas."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Autoscaling limit: replicas are added under load, up to this number. Unset: fixed at num_replicas."""
    num_cpus: int = Field(default=1, ge=1)
    """CPUs of one replica."""
    num_gpus: int = Field(default=0, ge=0)
    """GPUs of one replica, used by tensor parallelism. 0: runs on CPUs."""
    max_model_len: int = Field(default=8192, ge=256)
    """Longest prompt and reply together, in tokens."""
    kv_cache_gib: int = Field(default=2, ge=1)
    """Memory of the KV cache of a replica on CPUs; on a GPU vLLM uses the free memory."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=512, ge=1)
    """Maximum length of a reply, reasoning included."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Timeout of one attempt of a call."""
    max_retries: int = Field(default=8, ge=0)
    """Retries. With the backoff they outlast the restart of one of several replicas."""
    max_concurrency: int = Field(default=256, ge=1)
    """Maximum number of concurrent calls, over all processes of the run."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Timeout for the first replicas to be ready, download included."""

    @model_validator(mode="after")
    def _replicas_grow(self) -> "LlmServeConfig":
        _check_replicas(self.num_replicas, self.max_replicas)
        return self


class EndpointConfig(NamedUserConfig, ChatConfig):
    """An OpenAI-compatible chat endpoint. The API key stays in the environment."""

    type: Literal["endpoint"] = "endpoint"


class ReplayConfig(NamedUserConfig):
    """Replies of an earlier run, recorded with `record`: repeats the run without the model."""

    type: Literal["replay"] = "replay"
    path: AbsolutePathText
    """Folder of the recording, or one file of it."""

    @model_validator(mode="after")
    def _is_not_recorded_again(self) -> "ReplayConfig":
        if self.record is not None:
            raise ValueError("a replayed user is recorded already: leave `record` out")
        return self


class CustomUserConfig(NamedUserConfig):
    """A user of your own: see docs/extend.md."""

    type: Literal["custom"] = "custom"
    factory: PlugInName
    """`module:name` of a function or class that takes `name`, `gyms` and `rules` as keyword arguments and
    returns a `User`."""


UserConfig = Annotated[
    RulesUserConfig | LlmServeConfig | EndpointConfig | ReplayConfig | CustomUserConfig,
    Field(discriminator="type"),
]


class WebSearchConfig(BaseModel):
    """An HTTP endpoint that answers the search gym's published questions. The key stays in the
    environment."""

    model_config = FROZEN

    url: str
    """URL that takes POST requests with the query in `query_field`."""
    api_key_env: str = ""
    """Environment variable that holds the API key; empty if the endpoint requires none."""
    api_key_header: str = "X-API-KEY"
    """The HTTP header that carries the key."""
    query_field: str = "q"
    """The field of the request's JSON that holds the query."""
    results_field: str = "organic"
    """Path to the response's list of objects with `title` and `snippet`; dots separate nested fields."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """Validates the whole model: errors about one field repeat its value, which may be a secret here."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be the address of a search endpoint, such as https://host/search")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "url must hold neither a password nor a query: put the key into an environment variable and "
                "name it in api_key_env"
            )
        if self.api_key_env and not self.api_key_env.isidentifier():
            raise ValueError("api_key_env is the NAME of an environment variable, never the key itself")
        return self


class GaugeLimits(BaseModel):
    """Alert limits of the users' quality metrics."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    goal_leaks: float = Field(default=0.02, ge=0, le=1)
    """Share of replies that reveal a hidden value without having been asked for it."""
    front_loading: float = Field(default=0.8, ge=0, le=1)
    """Share of all facts that are in a dialogue's first reply."""
    agreeableness: float = Field(default=0.9, ge=0, le=1)
    """Share of yes-or-no questions and proposals that are answered with yes."""
    repetition: float = Field(default=0.5, ge=0, le=1)
    """Share of whole-sentence replies that repeat the reply to an earlier, different question."""
    contradictions: float = Field(default=0.02, ge=0, le=1)
    """Share of repeated facts that contradict the earlier statement."""
    early_stop: float = Field(default=0.1, ge=0, le=1)
    """Share of dialogues that the user ended without a reason."""
    min_cases: int = Field(default=20, ge=1)
    """Minimum number of cases for an alert."""


class SimulatorConfig(BaseModel):
    """The simulated users of a run, and how rule-based ones are hosted and called."""

    model_config = FROZEN

    users: tuple[UserConfig, ...] = (RulesUserConfig(),)
    """The simulated users, mixed by weight; one user plays each dialogue from beginning to end."""
    personas: Literal["plain", "varied"] = "plain"
    """Personas of the users: `varied` draws a way of talking for each task."""
    web_search: WebSearchConfig | None = None
    """Web search endpoint for the search gym's published questions. Unset: they cannot be searched."""
    alarms: GaugeLimits = GaugeLimits()
    """Limits of the users' quality metrics; a metric above its limit raises an alert."""
    num_replicas: int = Field(default=1, ge=1)
    """Serve replicas of the rule-based users."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Autoscaling limit: replicas are added, up to this number, while dialogues wait for them. Unset: fixed
    at num_replicas."""
    host: str = "127.0.0.1"
    """Address that `userrl serve` listens on. An API key is required for any but the loopback address."""
    api_key_env: str = "USERRL_SIMULATOR_KEY"
    """Environment variable that holds the API key; if it is set, the key is required on the loopback address,
    too."""
    num_cpus_per_replica: float = Field(default=0.1, ge=0)
    """CPUs that Ray reserves for each replica."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Timeout of one attempt of a call."""
    max_retries: int = Field(default=4, ge=0)
    """Retries after a replica died or timed out."""
    backoff_s: float = Field(default=0.25, gt=0)
    """Mean wait before the first retry; it doubles with every further one."""

    @model_validator(mode="after")
    def _replicas_grow(self) -> Self:
        _check_replicas(self.num_replicas, self.max_replicas)
        return self

    @model_validator(mode="after")
    def _holds_no_key(self) -> Self:
        """Validates the whole model: errors about one field repeat its value, which may be a key here."""
        if not self.api_key_env.isidentifier():
            raise ValueError("api_key_env is the NAME of an environment variable, never the key itself")
        return self

    @field_validator("users")
    @classmethod
    def _users_can_be_told_apart(cls, users: tuple[UserConfig, ...]) -> tuple[UserConfig, ...]:
        names = [user.name for user in users]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two users are named {twice[0]!r}: give each its own `name`")
        if any(user.name == RULES and user.type != "rules" for user in users):
            raise ValueError(f"only the rule-based user is named {RULES!r}: give the other another `name`")
        if not any(user.weight > 0 for user in users):
            raise ValueError("no user has a weight above 0, so none could play: give at least one a weight")
        return users

    def named(self, name: str) -> UserConfig:
        """The user of this name; the rule-based one needs no entry in a recipe. Raises ValueError with the
        nearest name if there is none."""
        known: dict[str, UserConfig] = {RULES: RulesUserConfig()} | {user.name: user for user in self.users}
        if name in known:
            return known[name]
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"simulator={name!r} is not known: did you mean {nearest!r}? The simulators are "
            f"{', '.join(known)}"
        )

    def llms(self) -> list[LlmServeConfig]:
        """Users with a model that the run hosts, if they are used."""
        return [user for user in self.users if isinstance(user, LlmServeConfig) and user.weight > 0]
