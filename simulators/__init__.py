"""Tasks, environments (gyms) and simulated users. Works with messages, never with token ids; imports no other
room."""

from simulators.env_factory import make_env
from simulators.gymnasium_env import register_envs

__all__ = ["make_env"]

register_envs()
