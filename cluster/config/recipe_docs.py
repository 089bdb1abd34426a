"""Generator of docs/recipes.md from the config classes: `python -m cluster.config.recipe_docs > PAGE`.

Types, defaults and bounds are what pydantic checks, descriptions are the docstrings under the fields, so the
page cannot differ from the program.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.config.run_config import RunConfig
from rewards.reward_functions import REWARDS

INTRO = """\
# Recipes: every key

A recipe is a TOML file with the keys that differ from the defaults below; `recipes/` holds examples. The
order of precedence is: defaults, recipe, command line. On the command line a key is `--SECTION.KEY VALUE` or
`SECTION.KEY=VALUE`, with the value as in TOML, text without quotes, and `none` for *unset*. `userrl check
RECIPE` prints the resulting plan without starting anything. `config.toml` in a run folder is the run's
recipe with all defaults filled in.

A section whose heading names a `type` exists for that type only. The bare name stands for a table of this
type with its defaults: `loss = "gspo"` in a recipe, `--learner.loss gspo` on the command line.

Besides the bounds below, some rules span sections (a turn must fit into the engine's context, for example).
A violation is refused in one line before anything starts. This page is generated from the code by
`make reference`.
"""
NAMES: Mapping[str, Mapping[str, object]] = {
    "reward.weights": REWARDS,
}
"""Keys whose text is one of a table's names."""
PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
UNITS = (
    (r".*_s", "seconds"),
    (r".*_gib", "GiB"),
    (r".*tokens|max_model_len|vocab_size", "tokens"),
    (r".*_steps", "steps"),
    (r".*cpus.*", "CPUs"),
    (r"num_gpus.*|tensor_parallel_size", "GPUs"),
    (r"gpu_memory_utilization", "share"),
    (r".*_engines", "engines"),
    (r".*_actors", "rollout actors"),
    (r".*_replicas", "replicas"),
    (r".*_learners", "learners"),
    (r".*_threads", "threads"),
    (r".*dialogues.*|num_demonstrations|best_per_gym", "dialogues"),
    (r".*tasks_per_gym", "tasks"),
    (r"groups_per_step", "groups"),
    (r"group_size", "trajectories"),
    (r"max_num_seqs", "sequences"),
    (r"batch_size", "samples"),
    (r"max_turns", "turns"),
    (r"max_calls|max_retries|max_concurrency", "calls"),
    (r"target", "nats"),
    (r"keep", "checkpoints"),
)
"""Of a number, by its key."""
HEAD = "| key | type | default | unit | bounds | meaning |\n|---|---|---|---|---|---|"
BOUNDS = (("ge", "≥ {}"), ("gt", "> {}"), ("le", "≤ {}"), ("lt", "< {}"), ("multiple_of", "a multiple of {}"))


def reference() -> str:
    """The whole page."""
    return "\n".join([INTRO, *_sections(RunConfig, path="")])


def _sections(model: type[BaseModel], *, path: str, title: str = "", text: str = "") -> Iterator[str]:
    """The model's own section, where it has keys, and those inside it."""
    rows, inner = [], []
    for name, info in model.model_fields.items():
        where = f"{path}.{name}" if path else name
        forms = list(_models(info.annotation))
        if len(forms) == 1 and forms[0][0] == "table":
            inner.append((forms[0][1], where, f"[{where}]", _prose(info.description)))
            continue
        rows += [] if name == "type" else [_row(name, info, where=where)]
        for form, kind in forms:
            if form == "named" and "type" in kind.model_fields:
                continue  # the row names the union, which has sections of its own
            place = f"{where}.NAME" if form == "named" else where
            head = f"[[{where}]]" if form == "list" else f"[{place}]"
            of_type = f", type = {' or '.join(map(_toml, _types(kind)))}" if _types(kind) else ""
            inner.append((kind, place, head + of_type, ""))
    if rows:
        heading = f"## `{title or path}`"
        yield "\n".join([heading, "", f"{text} {_prose(model.__doc__)}".strip(), "", HEAD, *rows, ""])
    for kind, where, head, said in inner:
        yield from _sections(kind, path=where, title=head, text=said)


def _row(name: str, info: FieldInfo, *, where: str) -> str:
    kind = _type(info.annotation)
    if where in NAMES:
        names = ", ".join(f"`{known}`" for known in NAMES[where])
        kind = names if kind == "text" else f"{kind}, by name: {names}"
    cells = (f"`{name}`", kind, _default(info), _unit(name, info), _bounds(info), _prose(info.description))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _types(kind: type[BaseModel]) -> tuple[str, ...]:
    """The values of `type` for which a union holds this class."""
    return get_args(kind.model_fields["type"].annotation) if "type" in kind.model_fields else ()


def _models(annotation: Any, *, form: str = "table") -> Iterator[tuple[str, type[BaseModel]]]:
    """Config classes that a field holds: as a table, a list of tables, or tables by names of one's own."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield form, annotation
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _models(part, form=form)
    elif origin is Annotated:
        yield from _models(parts[0], form=form)
    elif origin in (tuple, list):
        yield from _models(parts[0], form="list")
    elif origin is dict:
        yield from _models(parts[1], form="named")


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ", ".join(f"`{name}`" for name in _types(annotation))
    if origin in (Union, UnionType):
        return ", ".join(_type(part) for part in parts if part is not NoneType)
    if origin in (tuple, list):
        return f"list of {_plural(parts[0])}"
    if origin is dict:
        return f"table of {_plural(parts[1])}"
    return PLAIN[annotation]


def _plural(annotation: Any) -> str:
    return "tables" if list(_models(annotation)) else f"{_type(annotation)}s".replace("texts", "text")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    return "unset" if info.default is None else f"`{_toml(info.default)}`"


def _toml(value: object) -> str:
    match value:
        case BaseModel():
            return f'{{ type = "{getattr(value, "type", "")}" }}'
        case Mapping():
            parts = ", ".join(f"{key} = {_toml(part)}" for key, part in value.items())
            return f"{{ {parts} }}" if parts else "{}"
        case tuple():
            return f"[{', '.join(_toml(part) for part in value)}]"
        case float():
            return f"{value:g}"
        case _:
            return json.dumps(value)


def _unit(name: str, info: FieldInfo) -> str:
    is_number = _type(info.annotation) in (PLAIN[int], PLAIN[float])
    return next((unit for pattern, unit in UNITS if is_number and re.fullmatch(pattern, name)), "")


def _bounds(info: FieldInfo) -> str:
    found = [
        text.format(f"{bound:g}" if abs(bound) < 2**20 else f"{bound:,}")
        for item in info.metadata
        for name, text in BOUNDS
        if (bound := getattr(item, name, None)) is not None
    ]
    return ", ".join(found)


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())


if __name__ == "__main__":
    sys.stdout.write(reference())
