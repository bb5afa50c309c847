"""Boats, cars and trucks. Leaves of a group differ only in their part; everything else varies alike."""

from __future__ import annotations

import numpy as np

from training.rendered.shapes import (
    Palette,
    Shape,
    blend,
    box,
    curve,
    darker,
    ellipse,
    lighter,
    limb,
    polygon,
)

GLASS = (198, 226, 238)
TYRE = (38, 38, 44)
METAL = (214, 214, 210)
LAMP = (255, 238, 170)


def wheel(x: float, y: float, radius: float) -> list[Shape]:
    return [
        Shape(ellipse(x, y, radius), TYRE, "wheel"),
        Shape(ellipse(x, y, 0.58 * radius), METAL, "wheel"),
        Shape(ellipse(x, y, 0.2 * radius), TYRE, "wheel", outlined=False),
    ]


def boat(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A boat from the side. Freighter: stacked containers; Sailboat: sails; Steamer: funnels."""
    shapes: list[Shape] = []
    if leaf == "Sailboat":
        mast, top = rng.uniform(0, 6), -rng.uniform(46, 54)
        shapes.append(Shape(box(mast - 1.6, top - 4, mast + 1.6, 10), blend(palette.accent, TYRE, 0.5), "sail"))
        belly = rng.uniform(3, 8)
        jib = np.concatenate(
            [curve([(mast + 4, top + 5), (mast + 17 + belly, -20), (mast + 37, 5)]), polygon((mast + 4, 4))]
        )
        main = np.concatenate(
            [curve([(mast - 4, top), (mast - 15 - belly, -22), (mast - 33, 3)]), polygon((mast - 4, 4))]
        )
        shapes.append(Shape(jib, lighter(palette.second, 0.35), "sail"))
        shapes.append(Shape(main, palette.second, "sail"))
        shapes.append(Shape(limb([(mast - 24, -8), (mast - 4, -8)], 3.5), palette.accent, "sail", outlined=False))
    elif leaf == "Steamer":
        height, lean = rng.uniform(30, 36), rng.uniform(3, 7)
        for x in (-11.0, 9.0):
            funnel = polygon((x, 2), (x + 14, 2), (x + 12 - lean, 2 - height), (x + 1 - lean, 2 - height))
            shapes.append(Shape(funnel, palette.second, "funnel"))
            low, high = 0.6 * height - 2, 0.85 * height - 2
            band = polygon(
                (x - 0.6 * lean, -low),
                (x + 12.8 - 0.6 * lean, -low),
                (x + 12.3 - 0.85 * lean, -high),
                (x + 0.8 - 0.85 * lean, -high),
            )
            shapes.append(Shape(band, palette.accent, "funnel"))
            for puff, radius in ((0.0, 4.0), (-7.0, 5.5)):
                smoke = ellipse(x + 5 - lean + puff, -4 - height + 0.5 * puff, radius)
                shapes.append(Shape(smoke, lighter(METAL, 0.3), "funnel"))
    else:
        columns, across, tall = int(rng.integers(3, 5)), rng.uniform(14, 16), rng.uniform(10, 11.5)
        left = -16.0
        for column in range(columns):
            for row in range(int(rng.integers(2, 4))):
                colour = (palette.second, palette.accent, lighter(palette.second))[int(rng.integers(3))]
                x, y = left + column * across, 4 - row * tall
                shapes.append(Shape(box(x, y - tall, x + across, y), colour, "container"))
                for rib in (0.3, 0.5, 0.7):
                    line = box(x + rib * across - 0.6, y - tall + 2.5, x + rib * across + 0.6, y - 2.5)
                    shapes.append(Shape(line, darker(colour, 0.4), "container", outlined=False))

    house = rng.uniform(-33, -30)
    shapes.append(Shape(box(house - 5, -12, house + 13, 6, 2), lighter(palette.main, 0.55), "deckhouse"))
    shapes.append(Shape(box(house - 7, -15, house + 15, -11, 1.5), palette.accent, "deckhouse"))
    shapes.append(Shape(box(house - 1, -8, house + 9, 0, 1), GLASS, "window"))

    bow = rng.uniform(46, 52)
    hull = np.concatenate([curve([(-46, 2), (-44, 18), (-36, 27)]), curve([(26, 27), (38, 18), (bow, 0)])])
    shapes.append(Shape(hull, palette.main, "hull"))
    keel = np.concatenate([curve([(-43, 19), (-40, 24), (-36, 27)]), curve([(26, 27), (33, 23), (37, 19)])])
    shapes.append(Shape(keel, darker(palette.main, 0.45), "hull"))
    shapes.append(Shape(limb([(-45, 3.5), (bow - 3, 2.5)], 3.6), palette.accent, "hull"))
    for x in np.linspace(-26, 24, int(rng.integers(3, 5))):
        shapes.append(Shape(ellipse(x, 12, 4.8), GLASS, "window"))
    return shapes


def car(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A car from the side. Racer: rear spoiler; Taxi: lit sign on the roof."""
    shapes: list[Shape] = []
    roof = -20 + rng.uniform(-2, 2)
    front, back = 12 + rng.uniform(-3, 4), -20 + rng.uniform(-3, 3)

    if leaf == "Taxi":
        left, width, tall = back + rng.uniform(5, 9), rng.uniform(20, 24), rng.uniform(12, 14)
        shapes.append(Shape(box(left - 2, roof - 5, left + width + 2, roof + 2, 1), palette.outline, "roof-sign"))
        shapes.append(Shape(box(left, roof - tall - 2, left + width, roof - 2, 3), palette.second, "roof-sign"))
        for column in range(4):
            for row in range(2):
                if (column + row) % 2 == 0:
                    x, y = left + 2 + column * (width - 4) / 4, roof - tall + 1 + row * (tall - 6) / 2
                    check = box(x, y, x + (width - 4) / 4, y + (tall - 6) / 2)
                    shapes.append(Shape(check, palette.outline, "roof-sign", outlined=False))
    elif leaf == "Racer":
        rise, width = rng.uniform(17, 21), rng.uniform(26, 30)
        for x in (-43.0, -34.0):
            shapes.append(Shape(limb([(x + 2, 0), (x, -rise)], 4.0), palette.outline, "spoiler"))
        blade = curve(
            [
                (-52, -rise - 5),
                (-42, -rise - 6),
                (-52 + width, -rise),
                (-52 + width, -rise + 3),
                (-42, -rise + 1),
            ],
            closed=True,
        )
        shapes.append(Shape(blade, palette.second, "spoiler"))
        plate = polygon((-55, -rise - 12), (-46, -rise - 11), (-43, -rise + 5), (-52, -rise + 5))
        shapes.append(Shape(plate, palette.accent, "spoiler"))

    cabin = curve(
        [
            (back - 13, 0),
            (back - 3, roof + 3),
            (back + 6, roof),
            (front - 3, roof),
            (front + 5, roof + 3),
            (front + 17, 0),
        ]
    )
    shapes.append(Shape(cabin, palette.main, "bodywork"))
    middle, sill = (front + back) / 2 + 1, -1.0
    rear_glass = polygon((back - 6, sill), (back + 2, roof + 5), (middle - 2, roof + 5), (middle - 2, sill))
    front_glass = polygon((middle + 2, sill), (middle + 2, roof + 5), (front + 2, roof + 5), (front + 11, sill))
    shapes.append(Shape(rear_glass, GLASS, "window"))
    shapes.append(Shape(front_glass, GLASS, "window"))

    low = curve(
        [
            (-45, 2),
            (-30, -2),
            (0, -2),
            (28, -1),
            (42, 3),
            (47, 10),
            (46, 18),
            (30, 19),
            (-30, 19),
            (-46, 17),
            (-47, 8),
        ],
        closed=True,
    )
    shapes.append(Shape(low, palette.main, "bodywork"))
    shapes.append(Shape(limb([(-44, 11), (45, 12)], 3.6), palette.accent, "bodywork", outlined=False))
    shapes.append(Shape(limb([(middle, 0), (middle, 17)], 1.4), palette.outline, "bodywork", outlined=False))
    shapes.append(Shape(limb([(middle + 4, 4), (middle + 9, 4)], 2.2), palette.outline, "bodywork", outlined=False))
    shapes.append(Shape(ellipse(44, 8, 3.6, 3.2), LAMP, "lamp"))
    radius = rng.uniform(10, 11.5)
    for x in (-27.0, 27.0):
        shapes.extend(wheel(x, 19, radius))
    return shapes


def truck(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A truck from the side. Mixer: striped drum; Tanker: long tank; Tipper: heaped bucket."""
    shapes: list[Shape] = []
    if leaf == "Tanker":
        top = -rng.uniform(15, 19)
        shapes.append(Shape(box(-25, top - 5, -13, top + 4, 2), palette.accent, "tank"))
        shapes.append(Shape(box(-48, top, 15, 12, 14), palette.second, "tank"))
        gleam = limb([(-38, top + 6), (4, top + 6)], 4)
        shapes.append(Shape(gleam, lighter(palette.second, 0.5), "tank", outlined=False))
        for x in (-33.0, -1.0):
            shapes.append(Shape(box(x - 2, top, x + 2, 12), palette.accent, "tank"))
    elif leaf == "Mixer":
        tip = rng.uniform(-1.5, 1.5)
        drum = curve(
            [
                (-46, -25 + tip),
                (-30, -29 + tip),
                (-10, -27),
                (9, -12),
                (11, 0),
                (3, 9),
                (-16, 10),
                (-34, -1),
                (-47, -16 + tip),
            ],
            closed=True,
        )
        shapes.append(Shape(drum, palette.second, "drum"))
        for x, top, low in ((-36.0, -26.5, -4.0), (-19.0, -26.5, 7.0), (-3.0, -20.5, 8.0)):
            stripe = limb([(x + 5, top), (x + 2, (top + low) / 2), (x - 4 + 0.2 * (x + 36), low)], 5.5)
            shapes.append(Shape(stripe, palette.accent, "drum", outlined=False))
        shapes.append(
            Shape(
                polygon((-50, -29 + tip), (-43, -28 + tip), (-43, -13 + tip), (-50, -12 + tip)),
                darker(palette.second, 0.4),
                "drum",
            )
        )
    else:
        rim = -rng.uniform(11, 15)
        for x in (-34.0, -24.0, -13.0, -3.0):
            heap = ellipse(x, rim + 1, rng.uniform(9, 11), rng.uniform(9, 14))
            shapes.append(Shape(heap, palette.accent, "tipper"))
        bucket = polygon((-50, rim), (16, rim), (9, 12), (-38, 12))
        shapes.append(Shape(bucket, palette.second, "tipper"))
        for x in (-30.0, -15.0, 0.0):
            rib = polygon((x - 3, rim), (x + 3, rim), (x + 2, 12), (x - 2, 12))
            shapes.append(Shape(rib, darker(palette.second, 0.35), "tipper"))
        shapes.append(Shape(limb([(-49, rim), (15, rim)], 4), darker(palette.second, 0.2), "tipper"))

    shapes.append(Shape(box(-46, 11, 46, 19, 1), darker(palette.outline, 0.1), "chassis"))
    roof, nose = -rng.uniform(19, 23), rng.uniform(0, 5)
    cab = curve(
        [
            (20, 16),
            (20, 0),
            (20, roof + 3),
            (24, roof),
            (35, roof),
            (40, roof + 4),
            (44 + nose, -2),
            (48 + nose, 4),
            (48 + nose, 16),
        ]
    )
    shapes.append(Shape(cab, palette.main, "cab"))
    glass = polygon((26, roof + 5), (36, roof + 5), (42 + 0.6 * nose, -3), (26, -3))
    shapes.append(Shape(glass, GLASS, "window"))
    shapes.append(Shape(limb([(21, 6), (46 + nose, 6)], 3.0), palette.accent, "cab", outlined=False))
    shapes.append(Shape(ellipse(45 + nose, 11, 3), LAMP, "lamp"))
    radius = rng.uniform(9.5, 11)
    for x in (-33.0, -11.0, 31.0):
        shapes.extend(wheel(x, 21, radius))
    return shapes
