"""The built-in gyms by name: one file each, one line here."""

from simulators.gym import Gym
from simulators.gyms import function, intention, persuade, search, tau, telepathy, travel, turtle

GYMS: dict[str, Gym] = {
    "function": function.GYM,
    "intention": intention.GYM,
    "persuade": persuade.GYM,
    "search": search.GYM,
    "tau": tau.GYM,
    "telepathy": telepathy.GYM,
    "travel": travel.GYM,
    "turtle": turtle.GYM,
}
