"""The test pictures again, each with one thing changed: without one part, or before another background.

So one sees what an answer depends on, as in FunnyBirds (Hesse, Schaub-Meyer, Roth 2023).
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from protoserve.errors import InputError
from training.rendered.classes import BACKGROUND, PARTS, LeafPath
from training.rendered.folder import INTERVENTIONS, pictures_of, settings_found, split_counts
from training.rendered.picture import draw_picture

SPLIT = "test"


def count_figures(per_leaf: int = 60) -> int:
    """The number of pictures that are changed, and of the calls of `advance`.

    >>> count_figures(60)
    240
    """
    return sum(1 for _ in _figures(per_leaf))


def render_interventions(directory: Path, advance: Callable[[], None] | None = None) -> None:
    """Draw the test pictures of the rendered data set in `directory` again, into its folder `interventions`: before
    another background in `background/`, and without each part that the picture shows in `without/PART/`.

    The folder appears completely or not at all; nothing is done if it exists. Calls `advance` after every figure,
    `count_figures(per_leaf)` times in total. Raises InputError if `directory` holds no rendered data set.
    """
    settings = settings_found(directory / "parts.json")
    if settings is None or not {"seed", "size", "per_leaf"} <= set(settings):
        raise InputError(f"{directory} holds no rendered data set: draw one with 'protoserve data render {directory}'")
    target = directory / INTERVENTIONS
    if target.is_dir():
        return
    draft = directory / f".{INTERVENTIONS}.partial-{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        for leaf, index, path in _figures(settings["per_leaf"]):
            _draw(draft, leaf, index, path, seed=settings["seed"], size=settings["size"])
            if advance is not None:
                advance()
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _figures(per_leaf: int) -> Iterator[tuple[LeafPath, int, Path]]:
    """The leaf, number and path of every test picture."""
    assert split_counts(per_leaf)[SPLIT]
    return ((leaf, index, path) for split, leaf, index, _, path in pictures_of(per_leaf, 1) if split == SPLIT)


def _draw(draft: Path, leaf: LeafPath, index: int, path: Path, *, seed: int, size: int) -> None:
    drawn = draw_picture(leaf, seed=seed, split=SPLIT, index=index, size=size)
    other = draw_picture(leaf, seed=seed, split=SPLIT, index=index, size=size, background=2)
    changed = {Path("background"): other.pixels}
    for value in np.unique(drawn.parts).tolist():
        if value != BACKGROUND:
            part = PARTS[value - 1]
            lacking = draw_picture(leaf, seed=seed, split=SPLIT, index=index, size=size, without=part)
            changed[Path("without") / part] = lacking.pixels
    for folder, pixels in changed.items():
        file = draft / folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
