"""The gyms: one file each, one line here."""

from simulators.env import Gym
from simulators.gyms import function, telepathy, travel

GYMS: dict[str, Gym] = {
    "function": function.GYM,
    "telepathy": telepathy.GYM,
    "travel": travel.GYM,
}
