"""Recipe parsing: TOML files and `--key value` overrides to a config, a config to TOML, and validation errors
to one line each.

Knows pydantic models in general and none of this project's keys.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

ModelT = TypeVar("ModelT", bound=BaseModel)
MAX_RECIPE_BYTES = 2**20


class BadInput(Exception):
    """The user's input cannot run. Its text is one line: value, rule, cure."""


def nearest(name: str, known: Sequence[str]) -> str:
    """The most similar known name; the last part counts most, so that `lr` finds `learner.lr`."""

    def similarity(candidate: str) -> float:
        tail, candidate_tail = name.rpartition(".")[2], candidate.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        return max(whole, 0.95 * difflib.SequenceMatcher(None, tail, candidate_tail).ratio() + 0.05 * whole)

    return max(known, key=similarity)


def sections_of(annotation: object) -> list[type[BaseModel]]:
    """The config classes that a field may hold: one, several for a union on `type`, or none."""
    if get_origin(annotation) is Annotated:
        return sections_of(get_args(annotation)[0])
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]


def known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every key of a recipe, dotted, in order: of a union on `type` its name and the keys of all types."""
    keys: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        sections = sections_of(info.annotation)
        if len(sections) != 1 and name != "type":
            keys[prefix + name] = info
        for section in sections:
            for key, inner in known_keys(section, f"{prefix}{name}.").items():
                keys.setdefault(key, inner)  # several types may have it: the first is the default type
    return keys


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises `BadInput`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise BadInput(
                f"{path}: more than {MAX_RECIPE_BYTES} bytes: too large for a recipe: give another file"
            )
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        siblings = [str(p) for p in sorted(path.parent.glob("*.toml"))]
        cure = (
            f"did you mean {nearest(str(path), siblings)}?" if siblings else "give the path of a .toml file"
        )
        raise BadInput(f"{path}: no such recipe: {cure}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}): give a readable .toml file") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise BadInput(f"{path}: nested too deeply: a recipe is tables of plain values") from None


def apply_overrides(data: dict[str, Any], overrides: Mapping[str, str], *, model: type[BaseModel]) -> None:
    """Sets dotted keys in `data`, in place. Values are parsed as TOML if possible, else taken as text."""
    keys = known_keys(model)
    for key, text in sorted(
        overrides.items(), key=lambda item: item[0].count(".")
    ):  # tables before their keys
        table_key, _, last = key.rpartition(".")
        info = keys.get(key) or keys.get(table_key)
        is_type = info is not None and last == "type" and len(sections_of(info.annotation)) > 1
        if info is None or not (key in keys or is_type or get_origin(info.annotation) is dict):
            raise BadInput(f"{key}: unknown key: did you mean {nearest(key, list(keys))}?")
        section, path = data, ""
        for name in key.split(".")[:-1]:
            path = f"{path}.{name}" if path else name
            if isinstance(section.get(name), str) and path in keys and sections_of(keys[path].annotation):
                section[name] = {"type": section[name]}  # a bare name stands for its type
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise BadInput(f"{name}={section!r}: must be a table: write [{name}] in the recipe")
        section[key.rpartition(".")[2]] = _parse_value(text, info.annotation)


def _parse_value(text: str, annotation: object) -> object:
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType, Literal) else (annotation,)
    if type(None) in choices and text == "none":
        return None
    if any(choice is str or isinstance(choice, str) for choice in choices):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def validate(data: Mapping[str, Any], *, model: type[ModelT]) -> ModelT:
    """The config. Raises `BadInput` with the first mistake and the number of the others."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors()
        more = f" ({len(details) - 1} more after this one)" if len(details) > 1 else ""
        raise BadInput(_one_line(details[0], model=model) + more) from None


_RULES = {
    "int_type": "must be a whole number", "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number", "float_type": "must be a number",
    "float_parsing": "must be a number", "finite_number": "must be a finite number",
    "bool_type": "must be true or false", "bool_parsing": "must be true or false",
    "string_type": "must be text", "list_type": "must be a list", "tuple_type": "must be a list",
}  # fmt: skip


def _one_line(detail: ErrorDetails, *, model: type[BaseModel]) -> str:
    key, of_type, section, info = _locate(detail["loc"], model)
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden" and of_type:
        own = ", ".join(name for name in section.model_fields if name != "type") or "none"
        return f"{key}: type={of_type} has no such key: its keys are: {own}"
    if kind == "extra_forbidden":
        return f"{key}: unknown key: did you mean {nearest(key, list(known_keys(model)))}?"
    if kind == "union_tag_invalid":
        context = detail.get("ctx", {})
        tag, known = context["tag"], context["expected_tags"].replace("'", "").split(", ")
        return f"{key}={tag!r}: unknown: did you mean {nearest(tag, known)}? Known are {', '.join(known)}"
    if kind == "missing":
        return f"{key}: missing: write it in the recipe or give --{key} VALUE"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key}={value!r}: must be a table: write [{key}] in the recipe, or --{key}.KEY VALUE"
    if kind == "value_error":
        text = detail["msg"].removeprefix("Value error, ")
        return text if not key else f"{key}={value!r}: {text}" if _is_plain(value) else f"{key}: {text}"
    rule = _RULES.get(kind) or re.sub(r"^Input should be", "must be", detail["msg"])
    default = info.default if info else None
    cure = f": the default is {default!r}" if _is_plain(default) else ""
    return f"{key}={value!r}: {rule}{cure}"


def _locate(
    loc: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[str, str, type[BaseModel], FieldInfo | None]:
    """Location of an error: dotted key, `type` of its section if that is a union, section, and field."""
    names: list[str] = []
    of_type, section, info, annotation = "", model, None, model
    for part in loc:
        kinds = sections_of(annotation)
        tagged = [kind for kind in kinds if len(kinds) > 1 and part in _types(kind)]
        if tagged:
            of_type, annotation = str(part), tagged[0]
        elif not str(part).endswith("Config"):
            names.append(str(part))
            if kinds:
                section, info = kinds[0], kinds[0].model_fields.get(str(part))
                annotation = info.annotation if info else None
            else:
                inner = get_args(annotation) or (None,)
                annotation = inner[-1] if get_origin(annotation) is dict else inner[0]
    return ".".join(names), of_type, section, info


def _types(kind: type[BaseModel]) -> tuple[object, ...]:
    return get_args(kind.model_fields["type"].annotation) if "type" in kind.model_fields else ()


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A nested mapping as TOML; keys that are None are left out, since None is only ever a default."""
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in plain.items()]
    text = f"[{prefix}]\n" if prefix and (lines or not table) else ""
    text += "".join(line + "\n" for line in lines)
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = to_toml(value, f"{prefix}.{_key(name)}" if prefix else _key(name))
            text += ("\n" if text else "") + inner
    return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return str(value)
        case int() | float():
            return repr(value)
        case Mapping():
            inner = (f"{_key(str(k))} = {_value(v)}" for k, v in value.items() if v is not None)
            return f"{{ {', '.join(inner)} }}"
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case _:
            # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
