"""Outlines of parts as polygons, in drawing units.

A figure faces right and is about 100 units wide; x points right and y down. `canvas.place` chooses its pose in the
picture. Points are float64 [points, 2].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """The colours of one figure, RGB 0..255. Which part has which colour is the same for every class.

    `second` is for decisive parts, `main` for the parts that carry them, `accent` for markings on either.
    """

    main: Colour
    second: Colour
    accent: Colour
    outline: Colour


@dataclass(frozen=True)
class Shape:
    """A filled polygon of a part. Later shapes of a figure cover earlier ones."""

    points: Points
    fill: Colour
    part: str
    outlined: bool = True


def blend(first: Colour, other: Colour, share: float) -> Colour:
    """The colour `share` (0..1) of the way from `first` to `other`.

    >>> blend((0, 0, 0), (200, 100, 50), 0.5)
    (100, 50, 25)
    """
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, other, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.3) -> Colour:
    return blend(colour, (0, 0, 0), share)


def lighter(colour: Colour, share: float = 0.4) -> Colour:
    return blend(colour, (255, 255, 255), share)


def turned(points: Points, degrees: float, about: tuple[float, float] = (0.0, 0.0)) -> Points:
    """Rotate points about a centre, clockwise as seen on screen (y points down)."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    # Not `@`: BLAS may sum in another order on another machine, and pictures must be the same byte for byte.
    x, y = points[:, 0] - about[0], points[:, 1] - about[1]
    return np.stack([about[0] + cosine * x - sine * y, about[1] + sine * x + cosine * y], axis=1)


def polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, degrees: float = 0.0) -> Points:
    """An ellipse, or a circle without `radius_y`, rotated clockwise by `degrees`."""
    angles = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
    across = radius_x if radius_y is None else radius_y
    points = np.stack([x + radius_x * np.cos(angles), y + across * np.sin(angles)], axis=1)
    return turned(points, degrees, (x, y))


def box(left: float, top: float, right: float, bottom: float, rounding: float = 0.0) -> Points:
    """A rectangle with corners rounded by a radius of `rounding` units."""
    if rounding == 0.0:
        return polygon((left, top), (right, top), (right, bottom), (left, bottom))
    radius = min(rounding, (right - left) / 2, (bottom - top) / 2)
    quarter = np.linspace(0.0, np.pi / 2, 6)
    near_x, far_x, near_y, far_y = left + radius, right - radius, top + radius, bottom - radius
    arcs = []
    for turns, (x, y) in enumerate(((far_x, far_y), (near_x, far_y), (near_x, near_y), (far_x, near_y))):
        angles = quarter + turns * np.pi / 2
        arcs.append(np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1))
    return np.concatenate(arcs)


def curve(path: Sequence[tuple[float, float]], *, closed: bool = False, steps: int = 6) -> Points:
    """A Catmull-Rom spline through the points of `path`, with `steps` points per segment."""
    knots = np.array(path, dtype=np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    before, start, end, after = (knots[i : len(knots) - 3 + i, None, :] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    pieces = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    points: Points = pieces.reshape(-1, 2)
    return points if closed else np.concatenate([points, knots[-2:-1]])


def limb(path: Sequence[tuple[float, float]], *widths: float) -> Points:
    """A stroke along a smooth line, with round ends; `widths`, in units, are at equal distances along it."""
    line = curve(path)
    along = np.linspace(0.0, len(widths) - 1.0, len(line))
    radius = (np.interp(along, np.arange(len(widths)), widths) / 2)[:, None]
    ahead = np.gradient(line, axis=0)
    ahead /= np.maximum(np.sqrt((ahead**2).sum(axis=1, keepdims=True)), 1e-9)
    side = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    swing = np.linspace(0.0, np.pi, 7)[1:-1, None]
    end_cap = line[-1] + radius[-1] * (np.cos(swing) * side[-1] + np.sin(swing) * ahead[-1])
    start_cap = line[0] - radius[0] * (np.cos(swing) * side[0] + np.sin(swing) * ahead[0])
    return np.concatenate([line + radius * side, end_cap, (line - radius * side)[::-1], start_cap])


def petal(x: float, y: float, length: float, width: float, degrees: float) -> Points:
    """A drop with its tip at (x, y) and its round end `length` units away; 0 degrees points right, 90 down."""
    outline = [(0.0, 0.0), (0.45, 0.36), (0.8, 0.5), (1.0, 0.0), (0.8, -0.5), (0.45, -0.36)]
    drop = curve([(x + length * along, y + width * across) for along, across in outline], closed=True)
    return turned(drop, degrees, (x, y))
