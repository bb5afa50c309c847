"""Generate docs/configuration.md from the configuration's classes: `python -m training.config_document`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from training.config import Config

BOUNDS_OF_LENGTH = ("min_length", "max_length")
INTRODUCTION = """\
# Configuration of a run

One YAML file describes a run; `protoserve train --list-recipes` lists those that come with the package, in
`training/configs`. Every key except `name` has a default. An unknown key, a duplicate key and a value out of range are
errors that name the key. `--set KEY=VALUE` replaces a value, for example `--set joint.epochs=20`; the first column
gives the keys.

`python -m training.config_document > docs/configuration.md` generates this page from the code.
"""


def configuration_document() -> str:
    """The page in Markdown: the meaning of each section and a table of its keys."""
    lines = [INTRODUCTION, "## A run", "", *_table("", Config)]
    for prefix, section in _sections("", Config):
        # A docstring is wrapped for the code; a paragraph of Markdown is one line.
        lines += ["", f"## `{prefix}`", "", " ".join((section.__doc__ or "").split()), "", *_table(prefix, section)]
    return "\n".join(lines) + "\n"


def _sections(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Each section below a model with its dotted path, in order, followed by its own subsections."""
    for name, field in model.model_fields.items():
        if (section := _section(field)) is not None:
            path = f"{prefix}.{name}" if prefix else name
            yield path, section
            yield from _sections(path, section)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(prefix: str, model: type[BaseModel]) -> list[str]:
    rows = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if _section(field) is None:
            key = f"{prefix}.{name}" if prefix else name
            default = "required" if field.is_required() else f"`{_value(field.default)}`"
            words = (f"`{key}`", _kind(field.annotation), default, _range(field), field.description or "")
            rows.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    return rows


def _value(value: Any) -> str:
    """A value in YAML notation."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _kind(annotation: Any) -> str:
    """A type in words: choices by their values, unions with `or`."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        item, *others = get_args(annotation)
        count = "list" if Ellipsis in others else f"{1 + len(others)} values"
        return f"{count} of {_kind(item)}"
    if get_origin(annotation) is not None and (parts := get_args(annotation)):
        # The first argument of Annotated is its type; every argument of a union is.
        kinds = parts[:1] if hasattr(annotation, "__metadata__") else parts
        return " or ".join(map(_kind, kinds))
    if annotation is type(None):
        return "null"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}[annotation]


def _range(field: FieldInfo) -> str:
    """The bounds of a field: `≥ 0, < 1`."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    metadata = [*field.metadata, *_of_choices(field.annotation)]
    bounds = {name: getattr(part, name) for part in metadata for name in signs if hasattr(part, name)}
    shown = [f"{signs[name]} {bound}" for name, bound in bounds.items()]
    lengths = {name: getattr(part, name) for part in field.metadata for name in BOUNDS_OF_LENGTH if hasattr(part, name)}
    if len(lengths) == 2:
        shown.append(f"{lengths['min_length']} to {lengths['max_length']} values")
    return ", ".join(shown)


def _of_choices(annotation: Any) -> Iterator[Any]:
    """The metadata of the members of a union that have some, such as `Annotated[float, Field(ge=0)]`."""
    for choice in get_args(annotation):
        for described in getattr(choice, "__metadata__", ()):
            yield from described.metadata if isinstance(described, FieldInfo) else (described,)


if __name__ == "__main__":
    sys.stdout.write(configuration_document())
