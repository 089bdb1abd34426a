"""The world: tasks, environments and simulated users. Knows messages, never token ids; imports no other
room."""

from simulators.gymnasium_env import register_envs
from simulators.make import make_env

__all__ = ["make_env"]

register_envs()
