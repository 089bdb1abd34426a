"""Loading of gym plug-ins: Python modules named in a recipe whose gyms join the built-in ones in every
process.

Checks the module, the `GYM` in it and its name; the rules are checked by `simulators.gym_check`.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from simulators.gym import Gym
from simulators.gyms import GYMS
from simulators.plug_ins import import_module

NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = ("average", "held_out", "macro", "mean", "micro")
"""Reserved: these words stand in the place of a gym's name in metric keys and report rows."""


def known_gyms(modules: Sequence[str] = ()) -> dict[str, Gym]:
    """The built-in gyms by name, then the `GYM` of each of these modules, in order.

    A module is found as `import` finds it: installed, or in the folder in which the command runs. Raises
    ValueError, one line, for a module without a gym and for a name that is taken.

    Example: with `GYM = Gym(name="echo", ...)` in my_gym.py, `known_gyms(["my_gym"])["echo"]` is that gym.
    """
    gyms = dict(GYMS)
    for module in modules:
        gym = _gym_of(module)
        if gym.name in gyms or gym.name in TAKEN:
            raise ValueError(f"{module}: the name {gym.name!r} is taken: give this gym another name")
        gyms[gym.name] = gym
    return gyms


def module_path(module: str) -> Path:
    """The file of a module, or the folder of its whole package."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    assert spec is not None, f"{module} was imported before"
    folder = next(iter(spec.submodule_search_locations or ()), None)
    return Path(folder or str(spec.origin)).resolve()


def _gym_of(module: str) -> Gym:
    gym = getattr(import_module(module), "GYM", None)
    if not isinstance(gym, Gym):
        raise ValueError(
            f"{module}: has no gym: write GYM = Gym(...) at its foot, as docs/add-a-gym.md shows"
        )
    if not NAME.fullmatch(gym.name):
        raise ValueError(
            f"{module}: name={gym.name!r}: a gym's name stands in keys and file names: use small letters, "
            "digits and '_', a letter first"
        )
    return gym
