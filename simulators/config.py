"""Config section `simulator`: simulated users, their weights, personas, endpoints and hosted models. Light:
imports no Ray, so a recipe is checked in an instant."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from simulators.llm_client.config import ChatConfig
from simulators.user import RULES

FROZEN = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


AbsolutePathText = Annotated[str, AfterValidator(_absolute)]
"""A path, absolute from the start: processes of a cluster work in folders of their own."""


class NamedUserConfig(BaseModel):
    """What all kinds of simulated users have."""

    model_config = FROZEN

    name: str
    """The simulator's name: in rows, reports, and where one is named for an evaluation."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Share of the dialogues it plays. 0: kept out of training, to be named for an evaluation."""
    record: AbsolutePathText | None = None
    """Folder to which its replies are recorded, to be replayed later."""

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
    """Always this one."""
    delay_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Mean seconds that each reply takes, as if a model gave it: to rehearse with slow users."""

    @field_validator("name")
    @classmethod
    def _name_is_fixed(cls, name: str) -> str:
        if name != RULES:
            raise ValueError(f"the rule-based user is always named {RULES!r}: leave the name out")
        return name


class LlmServeConfig(NamedUserConfig):
    """A model from Hugging Face, hosted by the run itself on Ray Serve and vLLM."""

    type: Literal["llm"] = "llm"
    model: str
    """A folder, or a hub name."""
    num_replicas: int = Field(default=1, ge=1)
    """Replicas that are always up."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Under load their number grows up to this one. Not given: it stays as it is."""
    num_cpus: int = Field(default=1, ge=1)
    """CPUs of one replica."""
    num_gpus: int = Field(default=0, ge=0)
    """GPUs of one replica; the model is cut over them (tensor parallel). 0: it runs on CPUs."""
    max_model_len: int = Field(default=8192, ge=256)
    """Longest prompt and reply together, in tokens."""
    kv_cache_gib: int = Field(default=2, ge=1)
    """Memory for the attention cache of a replica on CPUs; on a GPU vLLM takes what is free."""
    temperature: float = Field(default=0.7, ge=0)
    """Sampling temperature."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest reply, reasoning included."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for one try of one call."""
    max_retries: int = Field(default=8, ge=0)
    """Tries after the first. With the backoff they outlast the restart of a replica beside one that runs."""
    max_concurrency: int = Field(default=256, ge=1)
    """Calls in flight at a time, over all processes of the run."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Longest wait for the first replicas, download included."""

    @model_validator(mode="after")
    def _replicas_grow(self) -> "LlmServeConfig":
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than num_replicas={self.num_replicas}: raise it, "
                "or leave it out for a fixed number"
            )
        return self


class EndpointConfig(NamedUserConfig, ChatConfig):
    """Any endpoint that speaks OpenAI's chat protocol. The key stays in the environment."""

    type: Literal["endpoint"] = "endpoint"


class ReplayConfig(NamedUserConfig):
    """Replies of an earlier run, recorded with `record`: the same run again without the model."""

    type: Literal["replay"] = "replay"
    path: AbsolutePathText
    """The folder, or one file of it."""

    @model_validator(mode="after")
    def _is_not_recorded_again(self) -> "ReplayConfig":
        if self.record is not None:
            raise ValueError("a replayed user is recorded already: leave `record` out")
        return self


UserConfig = Annotated[
    RulesUserConfig | LlmServeConfig | EndpointConfig | ReplayConfig, Field(discriminator="type")
]


class WebSearchConfig(BaseModel):
    """An HTTP endpoint that answers the search gym's published questions. The key stays in the
    environment."""

    model_config = FROZEN

    url: str
    """Takes POST with the query in `query_field`."""
    api_key_env: str = ""
    """The environment variable with the key; empty where the endpoint wants none."""
    api_key_header: str = "X-API-KEY"
    """The HTTP header that carries the key."""
    query_field: str = "q"
    """The field of the request's JSON that holds the query."""
    results_field: str = "organic"
    """Where the answer's list of objects with `title` and `snippet` is; dots lead inside."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """A check of the whole: errors about one field repeat its value, which may be a secret here."""
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
    """When the users of a run are alarming: a gauge above its limit, measured on enough cases."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    goal_leaks: float = Field(default=0.02, ge=0, le=1)
    """Share of replies that name a hidden value which nobody had asked for."""
    front_loading: float = Field(default=0.8, ge=0, le=1)
    """Share of all facts that stand in a dialogue's first reply."""
    agreeableness: float = Field(default=0.9, ge=0, le=1)
    """Share of yes-or-no questions and proposals that are answered with yes."""
    repetition: float = Field(default=0.5, ge=0, le=1)
    """Share of whole-sentence replies that an earlier, different question got, too."""
    contradictions: float = Field(default=0.02, ge=0, le=1)
    """Share of the properties told again that are told otherwise."""
    early_stop: float = Field(default=0.1, ge=0, le=1)
    """Share of dialogues that the user ended before it had reason to."""
    min_cases: int = Field(default=20, ge=1)
    """A share of fewer cases alarms nobody."""


class SimulatorConfig(BaseModel):
    """The simulated users of a run: who they are, and how the rule-based ones are hosted and called."""

    model_config = FROZEN

    users: tuple[UserConfig, ...] = (RulesUserConfig(),)
    """The kinds of users, mixed by weight; each dialogue has one from beginning to end."""
    personas: Literal["plain", "varied"] = "plain"
    """How these people talk: `varied` draws a manner of talking for each task."""
    web_search: WebSearchConfig | None = None
    """What searches the web for the search gym's published questions. Not given: they cannot be searched."""
    alarms: GaugeLimits = GaugeLimits()
    """Gauges of the users above these limits are reported at every step."""
    num_replicas: int = Field(default=1, ge=1)
    """Serve replicas that answer for the rule-based users."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Where dialogues wait for them their number grows up to this one. Not given: it stays as it is."""
    host: str = "127.0.0.1"
    """Where `userrl serve` listens. Beyond this machine it asks for a key."""
    api_key_env: str = "USERRL_SIMULATOR_KEY"
    """The environment variable with that key; where it is set, it is asked for on this machine, too."""
    num_cpus_per_replica: float = Field(default=0.1, ge=0)
    """CPUs that Ray reserves for each replica; rules need little."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for one try of one call."""
    max_retries: int = Field(default=4, ge=0)
    """Tries after the first, where a replica died or was too slow."""
    backoff_s: float = Field(default=0.25, gt=0)
    """Mean wait before the first retry; it doubles with every further one."""

    @model_validator(mode="after")
    def _replicas_grow(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than num_replicas={self.num_replicas}: raise it, "
                "or leave it out for a fixed number"
            )
        return self

    @model_validator(mode="after")
    def _holds_no_key(self) -> Self:
        """A check of the whole: errors about one field repeat its value, which may be a key here."""
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
        """The user of this name; the rule-based one needs no line in a recipe. Raises ValueError, with the
        nearest name, where there is none."""
        known: dict[str, UserConfig] = {RULES: RulesUserConfig()} | {user.name: user for user in self.users}
        if name in known:
            return known[name]
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"simulator={name!r} is not known: did you mean {nearest!r}? The simulators are "
            f"{', '.join(known)}"
        )

    def llms(self) -> list[LlmServeConfig]:
        """The users whose models the run hosts itself: those that play a part."""
        return [user for user in self.users if isinstance(user, LlmServeConfig) and user.weight > 0]
