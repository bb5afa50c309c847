"""Rasterise polygons, with supersampling for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from training.rendered.classes import BACKGROUND, part_index
from training.rendered.shapes import Colour, Points, Shape

SUPERSAMPLING = 4
OUTLINE_SHARE = 0.014  # of the picture's side

Pixels = npt.NDArray[np.float64]
PartMask = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Placement:
    """The map from drawing units to pixels of the final picture: pixel = units · `matrix` + `offset`."""

    matrix: Points
    offset: tuple[float, float]

    def apply(self, points: Points) -> Points:
        # Not `@`: BLAS may sum in another order on another machine, and pictures must be the same byte for byte.
        x, y = points[:, 0:1], points[:, 1:2]
        placed: Points = x * self.matrix[0] + y * self.matrix[1] + np.array(self.offset)
        return placed


@dataclass(frozen=True)
class Layer:
    """A painted figure, not yet composited on a background.

    `colour`: float [size, size, 3], 0..255; `coverage`: float [size, size], 0..1;
    `parts`: uint8 [size, size], the index of the topmost part, 0 for none.
    """

    colour: Pixels
    coverage: Pixels
    parts: PartMask


def place(rng: np.random.Generator, shapes: Sequence[Shape], size: int) -> Placement:
    """A random pose that keeps the whole figure inside a picture of `size` pixels.

    The random scale sets the extent of the figure, not the length of a drawing unit, so that the extent does not reveal
    a class with a protruding part.
    """
    angle, shear = np.deg2rad(rng.uniform(-18, 18)), rng.uniform(-0.14, 0.14)
    stretch, mirror = rng.uniform(0.91, 1.1), rng.choice([-1.0, 1.0])
    cosine, sine = np.cos(angle), np.sin(angle)
    along = np.array([cosine, sine]) * stretch * mirror
    down = np.array([-sine, cosine]) / stretch + shear * np.array([cosine, sine])
    turned = Placement(np.stack([along, down]), (0.0, 0.0))
    corners = turned.apply(np.concatenate([shape.points for shape in shapes]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = size * rng.uniform(0.68, 0.94) / float((high - low).max())
    room = size - scale * (high - low)
    margin = np.minimum(0.02 * size, room / 2)
    corner = margin + rng.uniform(0, 1, 2) * (room - 2 * margin)
    offset = corner - scale * low
    return Placement(turned.matrix * scale, (float(offset[0]), float(offset[1])))


def paint(shapes: Sequence[Shape], placement: Placement, size: int, outline: Colour) -> Layer:
    """Draw shapes in order, each with an outline if it is `outlined`.

    Unpainted pixels of the layer have the colour of the outline, so that partly covered edge pixels blend with the
    outline instead of showing a halo.
    """
    side = size * SUPERSAMPLING
    # Everything is drawn once, as an index of its colour and of its part: drawing takes most of a picture's time.
    drawn = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(drawn)
    colours, parts = [outline], [BACKGROUND]
    width = max(1, round(OUTLINE_SHARE * side))
    for shape in shapes:
        placed = (placement.apply(shape.points) * SUPERSAMPLING).ravel().tolist()
        draw.polygon(placed, fill=len(colours))
        colours.append(shape.fill)
        if shape.outlined:
            draw.line(placed + placed[:4], fill=len(colours), width=width, joint="curve")
            colours.append(outline)
        parts += [part_index(shape.part)] * (len(colours) - len(parts))
    if len(colours) > 256:
        raise ValueError(f"{len(shapes)} shapes; a figure can have 127")
    part_image = drawn.point(parts + [BACKGROUND] * (256 - len(parts)))
    painted = drawn.point([0] + [255] * 255)
    drawn.putpalette([value for colour in colours for value in colour])
    colour_image = drawn.convert("RGB")
    centre = slice(SUPERSAMPLING // 2, None, SUPERSAMPLING)
    return Layer(
        colour=np.asarray(colour_image.reduce(SUPERSAMPLING), dtype=np.float64),
        coverage=np.asarray(painted.reduce(SUPERSAMPLING), dtype=np.float64) / 255.0,
        parts=np.asarray(part_image)[centre, centre].copy(),
    )


def over(below: Pixels, layer: Layer) -> Pixels:
    """Composite a layer over a picture; float [size, size, 3]."""
    share = layer.coverage[:, :, None]
    return below * (1.0 - share) + layer.colour * share


def blurred(values: Pixels, radius: float) -> Pixels:
    """A Gaussian blur of float [size, size] values in 0..1, computed in 8 bits by Pillow."""
    image = Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255.0
