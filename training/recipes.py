"""Recipes: the configurations that come with the package, found by their name from any folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protoserve.errors import InputError, nearest

FOLDER: Final = Path(__file__).parent / "configs"
# The recipes for other people's pictures come first in lists; the others repeat experiments on public data sets.
GENERAL: Final = ("frozen", "finetuned", "from-scratch", "frozen-dinov2")


@dataclass(frozen=True)
class Recipe:
    """A configuration of the package: its name, its file, and in a sentence or two what it is for."""

    name: str
    file: Path
    purpose: str


def recipes() -> tuple[Recipe, ...]:
    """Return all recipes, those for any pictures first. What a recipe is for stands in the comment at its top."""
    files = sorted(FOLDER.glob("*.yaml"), key=lambda file: (file.stem not in GENERAL, *_place(file.stem)))
    return tuple(Recipe(file.stem, file, _purpose(file)) for file in files)


def config_file(given: str) -> Path:
    """Return the file of a configuration: `given` is the path of a YAML file, or the name of a recipe.

    A file in the working folder goes before a recipe of the same name. Raises InputError, which names the nearest
    recipe, where there is neither.
    """
    file = Path(given)
    if file.is_file():
        return file
    found = {recipe.name: recipe.file for recipe in recipes()}
    if given in found:
        return found[given]
    raise InputError(
        f"{given}: neither a configuration file nor a recipe{nearest(file.stem, found)}; the recipes are "
        f"{', '.join(found)}"
    )


def _place(name: str) -> tuple[int, str]:
    return (GENERAL.index(name) if name in GENERAL else 0, name)


def _purpose(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#").strip() for line in comment)
