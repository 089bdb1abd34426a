"""Loading of plug-ins: modules, and functions of modules, that a recipe names and every process of a run
imports."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator

REFERENCE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def import_module(module: str) -> ModuleType:
    """A module as `import` finds it: installed, or in the folder in which the command runs. Raises
    ValueError, one line, if there is none or its import fails."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last, so that no file here hides an installed package
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{module}: imports {error.name!r}, which is not installed") from error
        raise ValueError(
            f"{module}: no such module: give the name of a Python file in {here}, without .py, or of an "
            "installed package"
        ) from error
    except Exception as error:  # the plug-in's code can raise anything on import
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{module}: cannot be imported: {type(error).__name__}: {reason}") from error


def plug_in(reference: str) -> Callable[..., Any]:
    """The function or class of a reference. Raises ValueError, one line.

    Example: `plug_in("math:sqrt")(9)` is 3.0."""
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise ValueError(f"{reference!r}: not a reference: write module:function, such as my_rewards:polite")
    found = getattr(import_module(parts["module"]), parts["name"], None)
    if not callable(found):
        raise ValueError(f"{reference}: {parts['module']} has no function {parts['name']}: correct the name")
    return found


def module_of(reference: str) -> str:
    """The module's name in a reference."""
    return reference.partition(":")[0]


def _can_be_loaded(reference: str) -> str:
    plug_in(reference)
    return reference


PlugInName = Annotated[str, AfterValidator(_can_be_loaded)]
"""A reference `module:name` that has been loaded once."""
