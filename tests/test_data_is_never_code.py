"""No data becomes code: read from the five rooms' own syntax trees. What is trusted: docs/safety.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("simulators", "actors", "rewards", "learners", "cluster")
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "imp"),
    *("ray.cloudpickle", "torch.serialization", "pandas"),
}
"""Packages that read code out of data, or can."""
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
FUNCTIONS = {
    *("torch.load", "np.load", "numpy.load", "os.system", "os.popen", "importlib.import_module"),
    *("pa.register_extension_type", "pyarrow.register_extension_type", "pa.deserialize"),
    *("torch.hub.load", "torch.jit.load", "runpy.run_path", "runpy.run_module"),
}
KEYWORDS = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False, "shell": True}
"""Arguments that turn data into code, with the value that does."""
NAMES = {"ExtensionType", "PyExtensionType", "FileSystemReader", "FileSystemWriter", "Unpickler"}
"""Arrow types that a file may bring with it; torch's own checkpoint files, whose index is a pickle."""
CHECKPOINT_CALLS = {"load": "storage_reader", "save": "storage_writer", "async_save": "storage_writer"}
"""torch.distributed.checkpoint's, with the argument without which they read and write pickles."""
ALLOWED = {
    # CUDA's own handles, from this run's learner to this run's engine, by a call between two Ray actors.
    "actors/weights/weight_receiver.py: pickle",
    "actors/weights/gpu_weight_sender.py: pickle",
    # A gym of one's own: its module is code, named in the recipe by whoever starts the run. docs/safety.md.
    "simulators/plug_ins.py: importlib.import_module",
}


def offences(code: str, *, path: str) -> list[str]:
    """`path: what`, for everything in the code that could make code of data."""
    tree = ast.parse(code)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed.checkpoint")
        for alias in node.names
    }
    found = [what for node in ast.walk(tree) for what in _in(node, checkpoint_names=imported)]
    return [f"{path}: {what}" for what in dict.fromkeys(found)]


def _in(node: ast.AST, *, checkpoint_names: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_banned(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield from (name for name in (node.module, whole) if _is_banned(name) or name in FUNCTIONS)
            if alias.name in NAMES:
                yield alias.name
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield node.attr
    elif isinstance(node, ast.Call):
        yield from _in_call(node, checkpoint_names=checkpoint_names)


def _in_call(call: ast.Call, *, checkpoint_names: set[str]) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg for keyword in call.keywords}
    if name in BUILTINS or name in FUNCTIONS or name.endswith(".read_pickle"):
        yield name
    for keyword in call.keywords:
        bad = KEYWORDS.get(keyword.arg or "")
        if bad is not None and not (isinstance(keyword.value, ast.Constant) and keyword.value.value != bad):
            yield f"{keyword.arg}="
    wanted = CHECKPOINT_CALLS.get(name)
    if wanted and name in checkpoint_names and wanted not in given:
        yield f"{name} without {wanted}"


def _is_banned(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in MODULES)


@pytest.mark.medium
@pytest.mark.parametrize("room", ROOMS)
def test_no_data_becomes_code(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = [
        what
        for file in files
        for what in offences(file.read_text(encoding="utf-8"), path=file.relative_to(ROOT).as_posix())
    ]
    assert sorted(set(found) - ALLOWED) == []


def test_what_is_allowed_is_still_there() -> None:
    used = {what.partition(": ")[0] for what in ALLOWED}
    for path in used:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert ALLOWED & set(offences(code, path=path)), f"{path}: take the exception out"


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "pickle"),
        ("from ray import cloudpickle", "ray.cloudpickle"),
        ("import yaml.loader", "yaml.loader"),
        ("def f(x):\n    return eval(x)", "eval"),
        ("import torch\nx = torch.load('a')", "torch.load"),
        ("import numpy as np\nnp.load('a')", "np.load"),
        ("f('a', allow_pickle=True)", "allow_pickle="),
        ("f('a', trust_remote_code=flag)", "trust_remote_code="),
        ("f('a', weights_only=False)", "weights_only="),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell="),
        ("class A(pa.ExtensionType): ...", "ExtensionType"),
        (
            "from torch.distributed.checkpoint.state_dict_loader import load\nload(state, checkpoint_id='a')",
            "load without storage_reader",
        ),
    ],
)
def test_the_reading_itself_finds_what_it_should(code: str, what: str) -> None:
    assert offences(code, path="a.py") == [f"a.py: {what}"]


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile('a')",
        "from safetensors.torch import load\nload(data)",
        "f('a', weights_only=True)",
        "policy.eval()",
        "self.load(path)",
    ],
)
def test_what_only_looks_like_it_is_let_be(code: str) -> None:
    assert offences(code, path="a.py") == []


def test_arrow_has_no_types_that_are_pickles() -> None:
    """Older versions read a pickle out of any file that named this type."""
    assert not hasattr(pa, "PyExtensionType")
