"""Factory of a run's simulated user: connects the users of the recipe, and mixes them by weight."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil

import httpx

from simulators.config import (
    CustomUserConfig,
    EndpointConfig,
    LlmServeConfig,
    ReplayConfig,
    RulesUserConfig,
    SimulatorConfig,
    UserConfig,
)
from simulators.gym import Gym
from simulators.llm_client.client import ChatClient, ChatConfig
from simulators.plug_ins import plug_in
from simulators.user import User
from simulators.users.delayed_user import DelayedUser
from simulators.users.llm_user import LlmUser
from simulators.users.mixed_user import MixedUser
from simulators.users.record_replay import RecordingUser, ReplayUser
from simulators.users.web_search_user import WebSearchUser


def connect_users(
    config: SimulatorConfig,
    *,
    rules: User,
    gyms: Mapping[str, Gym],
    names: Sequence[str] | None = None,
    llm_urls: Mapping[str, str] | None = None,
    make_transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    num_processes: int = 1,
) -> User:
    """The recipe's mix, or with `names` exactly these in equal parts (also those of weight 0).

    `rules` is the rule-based user. `llm_urls`: simulator name to the base URL of each hosted model;
    `make_transport` creates the HTTP transport to them, None: the network. `num_processes` processes share
    the run's budget and concurrency. Raises ValueError, in one line, for an unknown name, a missing API key,
    a hosted model that is not up, an invalid recording.
    """
    users, weights = _chosen(config, names)
    if config.web_search is not None:
        rules = WebSearchUser(rules, **config.web_search.model_dump())
    connected = {
        user.name: _connect(
            user,
            rules=rules,
            gyms=gyms,
            urls=llm_urls or {},
            make_transport=make_transport,
            num_processes=num_processes,
        )
        for user in users
    }
    return next(iter(connected.values())) if len(connected) == 1 else MixedUser(connected, weights=weights)


def chat_config(user: ChatConfig | LlmServeConfig, *, url: str = "", num_processes: int = 1) -> ChatConfig:
    """Client settings of a user's or a judge's model: one process's share of the run's limits. `url` is that
    of a hosted model."""
    if isinstance(user, LlmServeConfig):
        chat = ChatConfig(
            base_url=url,
            model=user.name,
            api_key_env="",
            max_concurrency=user.max_concurrency,
            timeout_s=user.timeout_s,
            max_retries=user.max_retries,
            temperature=user.temperature,
            max_tokens=user.max_tokens,
        )
    else:
        chat = ChatConfig(**user.model_dump(include=set(ChatConfig.model_fields)))
    return chat.model_copy(
        update={
            "max_concurrency": ceil(chat.max_concurrency / num_processes),
            "max_calls": _share(chat.max_calls, num_processes),
            "max_total_tokens": _share(chat.max_total_tokens, num_processes),
        }
    )


def _share(limit: int | None, num_processes: int) -> int | None:
    """Rounded down, so that all shares stay within the limit; at least 1."""
    return None if limit is None else max(1, limit // num_processes)


def _chosen(
    config: SimulatorConfig, names: Sequence[str] | None
) -> tuple[list[UserConfig], dict[str, float]]:
    if names is None:
        playing = [user for user in config.users if user.weight > 0]
        return playing, {user.name: user.weight for user in playing}
    if not names:
        raise ValueError("no simulator is named: name at least one, such as rules")
    return [config.named(name) for name in dict.fromkeys(names)], dict.fromkeys(names, 1.0)


def _connect(
    user: UserConfig,
    *,
    rules: User,
    gyms: Mapping[str, Gym],
    urls: Mapping[str, str],
    make_transport: Callable[[], httpx.AsyncBaseTransport] | None,
    num_processes: int,
) -> User:
    connected: User
    match user:
        case RulesUserConfig():
            connected = DelayedUser(rules, delay_s=user.delay_s) if user.delay_s else rules
        case ReplayConfig():
            connected = ReplayUser(user.path, gyms=gyms, name=user.name)
        case CustomUserConfig():
            connected = plug_in(user.factory)(name=user.name, gyms=gyms, rules=rules)
        case EndpointConfig():
            chat = ChatClient(chat_config(user, num_processes=num_processes))
            connected = LlmUser(gyms, chat, rules=rules, name=user.name)
        case LlmServeConfig():
            if user.name not in urls:
                raise ValueError(
                    f"simulator={user.name!r}: its model is not hosted: start the run's own services, or "
                    "use an endpoint (type = 'endpoint')"
                )
            chat = ChatClient(
                chat_config(user, url=urls[user.name], num_processes=num_processes), transport=make_transport
            )
            connected = LlmUser(gyms, chat, rules=rules, name=user.name)
    return RecordingUser(connected, user.record, gyms=gyms) if user.record else connected
