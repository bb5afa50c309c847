"""Draw one picture: background, figure, light, occluders, camera noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.rendered.canvas import Layer, PartMask, Pixels, Placement, blurred, over, paint, place
from training.rendered.classes import BACKGROUND, LeafPath, decisive_indices
from training.rendered.creatures import beetle, bird, quadruped
from training.rendered.scenery import backdrop, choose_palette, grain, occluder
from training.rendered.shapes import Palette, Shape
from training.rendered.vehicles import boat, car, truck

_FIGURES: dict[str, Callable[[np.random.Generator, Palette, str], list[Shape]]] = {
    "Bird": bird,
    "Beetle": beetle,
    "Quadruped": quadruped,
    "Boat": boat,
    "Car": car,
    "Truck": truck,
}
_AS_DRAWN = np.eye(2)
# The least distance in RGB between the mean colour of a background and the colours of a figure from another scene.
CONTRAST = 85.0


@dataclass(frozen=True)
class Picture:
    """A picture and the mask of its parts.

    `pixels`: uint8 [size, size, 3], RGB; `parts`: uint8 [size, size], the index of the visible part, 0 for none.
    """

    pixels: npt.NDArray[np.uint8]
    parts: PartMask


def draw_picture(
    leaf: LeafPath,
    *,
    seed: int,
    split: str,
    index: int,
    size: int,
    scene: int = 1,
    without: str | None = None,
    background: int = 1,
) -> Picture:
    """Draw picture number `index` of a leaf and split.

    Its random numbers depend only on the arguments, not on other pictures. Another `scene`, counted from 1, shows the
    same figure in the same colours and pose; background, occluders, exposure and noise are drawn anew.

    Two interventions change one thing and keep all else: `without` leaves out a part of the figure, such as "beak", and
    another `background`, counted from 1, puts another one behind figure and occluders. Raises ValueError for a part
    that the figure does not have.

    >>> draw_picture(("Vehicle", "Car", "Taxi"), seed=0, split="train", index=1, size=96).pixels.shape
    (96, 96, 3)
    """
    name = f"{seed}|{split}|{'/'.join(leaf)}|{index}"
    rng = _generator(name)
    behind = backdrop(rng, size)
    palette = choose_palette(rng, behind)
    shapes = _FIGURES[leaf[1]](rng, palette, leaf[2])
    placement = place(rng, shapes, size)
    whole = figure = paint(shapes, placement, size, palette.outline)
    if without is not None:
        kept = [shape for shape in shapes if shape.part != without]
        if len(kept) == len(shapes):
            raise ValueError(f"{'/'.join(leaf)} has no part {without!r}")
        figure = paint(kept, placement, size, palette.outline)

    light = rng.uniform(0, 2 * np.pi)
    depth, strength = rng.uniform(0.1, 0.4), rng.uniform(0.25, 0.6)
    if scene > 1:
        rng = _generator(f"{name}|{scene}")
        behind = contrasting_backdrop(rng, size, palette)
    if background > 1:
        behind = contrasting_backdrop(_generator(f"{name}|background {background}"), size, palette)
    drawn = behind * (1.0 - _shadow(figure, light, depth))[:, :, None]
    drawn = over(drawn, _modelled(figure, light, strength))
    drawn, parts = with_occluders(rng, drawn, figure.parts, leaf, palette, whole.parts)
    return Picture(_photographed(rng, drawn), parts)


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")))


def contrasting_backdrop(rng: np.random.Generator, size: int, palette: Palette) -> Pixels:
    """Draw up to six backgrounds and return the first that the colours of the figure stand out from, or else the one
    that they stand out from most."""
    best, best_gap = backdrop(rng, size), 0.0
    for attempt in range(6):
        behind = best if attempt == 0 else backdrop(rng, size)
        mean = behind.reshape(-1, 3).mean(axis=0)
        gap = min(math.dist(mean, colour) for colour in (palette.main, palette.second, palette.accent))
        if gap > best_gap:
            best, best_gap = behind, gap
        if best_gap >= CONTRAST:
            break
    return best


def _shadow(figure: Layer, light: float, depth: float) -> Pixels:
    """The share of the background's light that the figure's soft shadow removes, float [size, size], 0..`depth`."""
    size = figure.coverage.shape[0]
    shift = (round(0.03 * size * np.sin(light)), round(0.03 * size * np.cos(light)))
    return depth * np.roll(blurred(figure.coverage, 0.035 * size), shift, axis=(0, 1))


def _modelled(figure: Layer, light: float, strength: float) -> Layer:
    """Shade the figure's rim, brighter towards the light and darker away from it, so that it looks round."""
    height = blurred(figure.coverage, 0.05 * figure.coverage.shape[0])
    slope_y, slope_x = np.gradient(height)
    # The light comes from the side opposite to the shadow.
    facing = np.cos(light) * slope_x + np.sin(light) * slope_y
    shade = np.clip(1.0 + strength * facing * 0.12 * figure.coverage.shape[0], 0.6, 1.3)
    return Layer(figure.colour * shade[:, :, None], figure.coverage, figure.parts)


def with_occluders(
    rng: np.random.Generator,
    scene: Pixels,
    parts: PartMask,
    leaf: LeafPath,
    palette: Palette,
    whole: PartMask | None = None,
) -> tuple[Pixels, PartMask]:
    """Put up to three objects in front of the figure that hide neither the leaf's decisive part nor much else.

    `whole` are the parts of the whole figure where `parts` lack one, so that the objects are the same.
    """
    size = parts.shape[0]
    whole = parts if whole is None else whole
    deciding = [np.isin(whole, indices) for indices in decisive_indices(leaf)]
    first_seen = [int(seen.sum()) for seen in deciding]
    figure_area = int((whole != BACKGROUND).sum())
    for _ in range(int(rng.integers(0, 4))):
        pieces, colour = occluder(rng, size)
        # The part name does not matter, because the object's pixels become background in the mask.
        shapes = [Shape(points, colour, "body") for points in pieces]
        thing = paint(shapes, Placement(_AS_DRAWN, (0.0, 0.0)), size, palette.outline)
        # Count any coverage and a margin of a pixel, so that a decisive part keeps its outline.
        covered = blurred(thing.coverage, 1.0) > 0.02
        hides_leaf_part = bool((covered & deciding[2]).any())
        hides_too_much = (covered & (whole != BACKGROUND)).sum() > 0.12 * figure_area
        leaves_enough = all(
            (seen & ~covered).sum() >= 0.7 * area for seen, area in zip(deciding, first_seen, strict=True)
        )
        if hides_leaf_part or hides_too_much or not leaves_enough:
            continue
        scene = over(scene, thing)
        parts, whole = (
            np.where(thing.parts != BACKGROUND, np.uint8(BACKGROUND), seen).astype(np.uint8) for seen in (parts, whole)
        )
        deciding = [seen & ~covered for seen in deciding]
    return scene, parts


def _photographed(rng: np.random.Generator, scene: Pixels) -> npt.NDArray[np.uint8]:
    """Add uneven light, exposure, a colour cast and noise; uint8 [size, size, 3]."""
    size = scene.shape[0]
    uneven = 1.0 + rng.uniform(0, 0.14) * grain(rng, size, 3)
    cast = rng.uniform(0.85, 1.1) * rng.uniform(0.94, 1.06, 3)
    noise = rng.uniform(1.0, 8.0) * rng.standard_normal(scene.shape)
    exposed = scene * uneven[:, :, None] * cast + noise
    return np.rint(np.clip(exposed, 0, 255)).astype(np.uint8)
