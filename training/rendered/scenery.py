"""Backgrounds, and clutter behind and in front of the figure. Nothing here depends on the class."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from training.rendered.canvas import SUPERSAMPLING, Pixels
from training.rendered.shapes import Colour, Palette, Points, box, curve, ellipse, limb, polygon, turned


def colour_from(hue: float, saturation: float, value: float) -> Colour:
    """RGB 0..255 from hue, saturation and value, each 0..1; hue wraps around, value is clipped."""
    clear = min(max(value, 0.0), 1.0)
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1.0, saturation, clear))
    return red, green, blue


def choose_palette(rng: np.random.Generator, background: Pixels) -> Palette:
    """Random colours that stand out from the background's mean colour and from each other."""
    taken = [background.reshape(-1, 3).mean(axis=0)]
    chosen: list[Colour] = []
    for distance in (105.0, 85.0, 85.0):
        # If no candidate is far enough, the farthest is taken.
        tries = [colour_from(rng.uniform(), rng.uniform(0.3, 0.75), rng.uniform(0.45, 0.98)) for _ in range(12)]
        gaps = [min(math.dist(colour, other) for other in taken) for colour in tries]
        far_enough = [colour for colour, gap in zip(tries, gaps, strict=True) if gap >= distance]
        chosen.append(far_enough[0] if far_enough else tries[int(np.argmax(gaps))])
        taken.append(np.array(chosen[-1], dtype=np.float64))
    outline = colour_from(rng.uniform(), rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.22))
    main, second, accent = chosen
    return Palette(main, second, accent, outline)


def grain(rng: np.random.Generator, size: int, cells: int) -> Pixels:
    """Smooth noise, float [size, size], about -1..1, with `cells` bumps across."""
    coarse = Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64) / 127.5 - 1.0


def _gradient(rng: np.random.Generator, side: int, hue: float, value: float) -> Image.Image:
    corners = [
        colour_from(hue + rng.normal(0, 0.05), rng.uniform(0.1, 0.45), value + rng.uniform(-0.15, 0.15))
        for _ in range(4)
    ]
    small = np.array(corners, dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)


def _landscape(rng: np.random.Generator, side: int, hue: float, value: float) -> Image.Image:
    image = _gradient(rng, side, hue, value)
    draw = ImageDraw.Draw(image)
    if rng.uniform() < 0.6:
        x, y, radius = (
            rng.uniform(0.1, 0.9) * side,
            rng.uniform(0.08, 0.3) * side,
            rng.uniform(0.05, 0.11) * side,
        )
        draw.polygon(ellipse(x, y, radius).ravel().tolist(), fill=colour_from(rng.uniform(0.08, 0.16), 0.3, 0.98))
    ground = rng.uniform()
    for depth in range(3):
        level = (0.42 + 0.17 * depth + rng.uniform(-0.05, 0.05)) * side
        knots = [(x * side, level + rng.uniform(-0.07, 0.07) * side) for x in np.linspace(-0.1, 1.1, 6)]
        hill = np.concatenate([curve(knots), polygon((1.2 * side, 1.1 * side), (-0.2 * side, 1.1 * side))])
        fill = colour_from(ground + 0.03 * depth, rng.uniform(0.2, 0.45), value - 0.07 * depth)
        draw.polygon(hill.ravel().tolist(), fill=fill)
    return image


def _tiles(rng: np.random.Generator, side: int, hue: float, value: float) -> Image.Image:
    image = Image.new("RGB", (side, side), colour_from(hue, rng.uniform(0.1, 0.4), value))
    draw = ImageDraw.Draw(image)
    other = colour_from(hue + rng.normal(0, 0.04), rng.uniform(0.1, 0.45), value - rng.uniform(0.05, 0.12))
    pitch, turn, checked = rng.uniform(0.09, 0.2) * side, rng.uniform(0, 90), rng.uniform() < 0.5
    reach = int(np.ceil(0.8 * side / pitch))
    for column in range(-reach, reach + 1):
        for row in range(-reach, reach + 1):
            if (column + row) % 2 == 0 if checked else column % 2 == 0:
                x, y = side / 2 + column * pitch, side / 2 + row * pitch
                tile = turned(box(x, y, x + pitch, y + pitch), turn, (side / 2, side / 2))
                draw.polygon(tile.ravel().tolist(), fill=other)
    return image


def _bubbles(rng: np.random.Generator, side: int, hue: float, value: float) -> Image.Image:
    image = _gradient(rng, side, hue, value)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 16))):
        x, y, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0.03, 0.14) * side
        fill = colour_from(hue + rng.normal(0, 0.06), rng.uniform(0.1, 0.4), value + rng.uniform(-0.1, 0.1))
        draw.polygon(ellipse(x, y, radius).ravel().tolist(), fill=fill)
    return image


_BACKGROUNDS: tuple[Callable[[np.random.Generator, int, float, float], Image.Image], ...] = (
    _gradient,
    _landscape,
    _landscape,
    _tiles,
    _bubbles,
)


def _bit_of_clutter(rng: np.random.Generator, x: float, y: float, span: float) -> Points:
    kind = int(rng.integers(5))
    if kind == 0:
        shape = ellipse(x, y, span / 2, span * rng.uniform(0.3, 0.5))
    elif kind == 1:
        shape = polygon((x - span / 2, y + span / 2), (x, y - span / 2), (x + span / 2, y + span / 2))
    elif kind == 2:
        shape = box(x - span / 2, y - span / 3, x + span / 2, y + span / 3, span / 10)
    elif kind == 3:
        shape = limb([(x - span, y), (x, y - span / 3), (x + span, y)], span / 4, span / 6)
    else:
        bumps = [
            (
                x + span * rng.uniform(0.35, 0.6) * np.cos(angle),
                y + span * rng.uniform(0.35, 0.6) * np.sin(angle),
            )
            for angle in np.linspace(0, 2 * np.pi, 7, endpoint=False)
        ]
        shape = curve(bumps, closed=True)
    return turned(shape, rng.uniform(0, 360), (x, y))


def backdrop(rng: np.random.Generator, size: int) -> Pixels:
    """A background with a few dull shapes on it, float [size, size, 3], 0..255."""
    side, hue, value = size * SUPERSAMPLING, rng.uniform(), rng.uniform(0.5, 0.95)
    image = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))](rng, side, hue, value)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        bit = _bit_of_clutter(rng, x, y, rng.uniform(0.08, 0.22) * side)
        fill = colour_from(hue + rng.normal(0, 0.15), rng.uniform(0.1, 0.6), value + rng.uniform(-0.3, 0.15))
        draw.polygon(bit.ravel().tolist(), fill=fill)
    scene = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float64)
    rough = rng.uniform(0, 9) * grain(rng, size, int(rng.integers(5, 12))) + rng.uniform(0, 9) * grain(rng, size, 40)
    textured: Pixels = scene + rough[:, :, None]
    return textured


def occluder(rng: np.random.Generator, size: int) -> tuple[list[Points], Colour]:
    """An object to put in front of the figure: its polygons in pixels of the picture, and its colour."""
    fill = colour_from(rng.uniform(), rng.uniform(0.2, 0.6), rng.uniform(0.4, 0.9))
    x, y = rng.uniform(0, size), rng.uniform(0.1 * size, size)
    if rng.uniform() < 0.5:
        tall, foot = rng.uniform(0.16, 0.34) * size, 1.03 * size
        blades = [(-0.16, 0.7), (0.14, 0.75), (0.0, 1.0)]
        return [
            limb(
                [
                    (x + 0.2 * lean * tall, foot),
                    (x + lean * tall, foot - 0.6 * share * tall),
                    (x + 3 * lean * tall, foot - share * tall),
                ],
                0.05 * size,
                0.035 * size,
                0.008 * size,
            )
            for lean, share in ((lean + rng.uniform(-0.05, 0.05), share) for lean, share in blades)
        ], fill
    return [_bit_of_clutter(rng, x, y, rng.uniform(0.08, 0.16) * size)], fill
