"""Birds, beetles and quadrupeds. Leaves of a group differ only in their part; everything else varies alike."""

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
    petal,
    polygon,
    turned,
)

EYE_WHITE = (250, 250, 244)
PUPIL = (24, 22, 30)


def eye(x: float, y: float, radius: float) -> list[Shape]:
    return [
        Shape(ellipse(x, y, radius), EYE_WHITE, "eye"),
        Shape(ellipse(x + 0.25 * radius, y + 0.05 * radius, 0.58 * radius), PUPIL, "eye", outlined=False),
        Shape(ellipse(x + 0.42 * radius, y - 0.25 * radius, 0.2 * radius), EYE_WHITE, "eye", outlined=False),
    ]


def bird(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A bird from the side. Cockatoo: crest; Peacock: tail fan; Toucan: great curved beak."""
    shapes: list[Shape] = []
    head_x, head_y = 21 + rng.uniform(-2, 3), -21 + rng.uniform(-4, 3)

    if leaf == "Peacock":
        feathers, spread = int(rng.integers(6, 9)), rng.uniform(120, 145)
        length, middle = rng.uniform(46, 54), rng.uniform(212, 226)
        for angle in np.linspace(middle - spread / 2, middle + spread / 2, feathers):
            shapes.append(Shape(petal(-8, 2, length, 19, angle), palette.second, "tail"))
            tip_x, tip_y = turned(polygon((-8 + 0.8 * length, 2)), angle, (-8, 2))[0]
            shapes.append(Shape(ellipse(tip_x, tip_y, 5.6), palette.accent, "tail", outlined=False))
            shapes.append(Shape(ellipse(tip_x, tip_y, 2.8), palette.outline, "tail", outlined=False))
    else:
        droop = rng.uniform(145, 168)
        for turn in (-9, 9):
            shapes.append(Shape(petal(-17, 5, rng.uniform(24, 32), 9, droop + turn), palette.second, "tail"))

    stance = rng.uniform(-3, 3)
    leg_colour = blend(palette.accent, palette.outline, 0.25)
    for hip, foot in ((-4.0, -5.0 + stance), (5.0, 6.0 + stance)):
        shapes.append(Shape(limb([(hip, 12), (foot, 33)], 4.2, 3.4), leg_colour, "leg"))
        shapes.append(Shape(limb([(foot - 3, 34), (foot + 8, 34)], 3.6, 3.0), leg_colour, "leg"))

    if leaf == "Cockatoo":
        feathers, length = int(rng.integers(4, 6)), rng.uniform(25, 30)
        for angle in np.linspace(190, 285, feathers) + rng.uniform(-8, 8):
            feather = petal(head_x - 1, head_y - 3, length, 10.5, angle)
            shapes.append(Shape(feather, palette.second, "crest"))

    body = curve(
        [(head_x - 8, head_y + 2), (head_x + 9, head_y + 7), (20, 4), (6, 16), (-14, 13), (-26, 2), (-8, -9)],
        closed=True,
    )
    shapes.append(Shape(body, palette.main, "body"))
    shapes.append(Shape(ellipse(9, 5, 8, 10, 25), lighter(palette.main), "body", outlined=False))

    beak_x, beak_y = head_x + 8, head_y
    if leaf == "Toucan":
        reach, depth = rng.uniform(30, 36), rng.uniform(15, 18)
        beak = curve(
            [
                (beak_x, beak_y - 0.5 * depth),
                (beak_x + 0.55 * reach, beak_y - 0.55 * depth),
                (beak_x + 0.95 * reach, beak_y),
                (beak_x + reach, beak_y + 0.6 * depth),
                (beak_x + 0.75 * reach, beak_y + 0.32 * depth),
                (beak_x, beak_y + 0.45 * depth),
            ],
            closed=True,
        )
        shapes.append(Shape(beak, palette.second, "beak"))
        tip = curve(
            [
                (beak_x + 0.78 * reach, beak_y - 0.36 * depth),
                (beak_x + 0.95 * reach, beak_y),
                (beak_x + reach, beak_y + 0.6 * depth),
                (beak_x + 0.78 * reach, beak_y + 0.3 * depth),
            ],
            closed=True,
        )
        shapes.append(Shape(tip, palette.accent, "beak", outlined=False))
        seam = limb([(beak_x, beak_y), (beak_x + 0.5 * reach, beak_y - 1), (beak_x + 0.92 * reach, beak_y + 2)], 1.6)
        shapes.append(Shape(seam, palette.outline, "beak", outlined=False))
    else:
        reach = rng.uniform(13, 16)
        beak = polygon((beak_x, beak_y - 5.5), (beak_x + reach, beak_y + 2.5), (beak_x, beak_y + 6))
        shapes.append(Shape(beak, palette.second, "beak"))
    shapes.append(Shape(ellipse(head_x, head_y, 12.5), palette.main, "head"))
    shapes.extend(eye(head_x + 3, head_y - 2.5, 5.2))

    lift = rng.uniform(-14, 10)
    wing = turned(curve([(10, -5), (7, 7), (-8, 11), (-27, 7), (-18, 0), (-4, -9)], closed=True), lift, (6, 0))
    shapes.append(Shape(wing, darker(palette.main, 0.22), "wing"))
    for drop in (1.5, 6.0):
        vane = turned(limb([(0, drop - 3), (-10, drop), (-19, drop + 1)], 1.6), lift, (6, 0))
        shapes.append(Shape(vane, palette.outline, "wing", outlined=False))
    return shapes


def beetle(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A beetle from above. Ladybird: spots on the wing cases; Stag-Beetle: mandibles."""
    shapes: list[Shape] = []
    girth = rng.uniform(18, 22)
    for side in (-1, 1):
        for root, knee, foot in ((15.0, 22.0, 31.0), (2.0, 0.0, -3.0), (-11.0, -22.0, -32.0)):
            step = rng.uniform(-4, 4)
            path = [(root, side * 10.0), (knee, side * (girth + 8.0)), (foot + step, side * (girth + 15.0))]
            shapes.append(Shape(limb(path, 5.0, 4.2, 3.2), darker(palette.main, 0.45), "leg"))
        splay = rng.uniform(25, 30)
        feeler = limb([(30, side * 7.0), (36, side * 16.0), (45, side * splay)], 2.8, 2.4, 2.8)
        shapes.append(Shape(feeler, darker(palette.main, 0.45), "antenna"))
        shapes.append(Shape(ellipse(45, side * splay, 3.6), darker(palette.main, 0.45), "antenna"))

    if leaf == "Stag-Beetle":
        reach, gape = rng.uniform(25, 30), rng.uniform(12, 14.5)
        for side in (-1, 1):
            tooth = polygon(
                (37 + 0.42 * reach, side * gape),
                (37 + 0.62 * reach, side * 4.5),
                (37 + 0.78 * reach, side * gape),
            )
            shapes.append(Shape(tooth, palette.second, "mandible"))
            jaw = limb(
                [
                    (33, side * 4.0),
                    (37 + 0.25 * reach, side * gape * 0.92),
                    (37 + 0.65 * reach, side * gape),
                    (37 + reach, side * gape * 0.5),
                ],
                9.5,
                8.0,
                6.5,
                2.5,
            )
            shapes.append(Shape(jaw, palette.second, "mandible"))

    shapes.append(Shape(ellipse(33, 0, 8.5, 9.5), darker(palette.main, 0.3), "head"))
    for side in (-1, 1):
        shapes.extend(eye(35, side * 6.8, 4.4))
    shapes.append(Shape(ellipse(20, 0, 9, 0.82 * girth), blend(palette.main, palette.outline, 0.35), "body"))

    shapes.append(Shape(ellipse(-10, 0, 27, girth), darker(palette.main, 0.5), "body"))
    opening = rng.uniform(0, 9)
    for side in (-1, 1):
        half = curve(
            [
                (16, side * 0.4),
                (14, side * 0.62 * girth),
                (0, side * 0.97 * girth),
                (-20, side * 0.93 * girth),
                (-35, side * 0.45 * girth),
                (-37, side * 1.5),
                (-12, side * 0.4),
            ],
            closed=True,
        )
        about = (17.0, 0.0)
        shapes.append(Shape(turned(half, -side * opening, about), palette.main, "wing-case"))
        if leaf == "Ladybird":
            for x, y in ((6.0, 0.48), (-9.0, 0.6), (-23.0, 0.42)):
                spot = ellipse(x, side * y * girth, rng.uniform(5.2, 6.2))
                shapes.append(Shape(turned(spot, -side * opening, about), palette.second, "spot"))
        else:
            for y in (0.3, 0.62):
                groove = limb([(10, side * y * girth), (-10, side * (y + 0.06) * girth), (-27, side * y * girth)], 1.5)
                shapes.append(
                    Shape(turned(groove, -side * opening, about), darker(palette.main, 0.3), "wing-case", False)
                )
    return shapes


def quadruped(rng: np.random.Generator, palette: Palette, leaf: str) -> list[Shape]:
    """A four-legged animal from the side. Deer: antlers; Elephant: trunk, ear flap; Lion: mane."""
    shapes: list[Shape] = []
    head_x, head_y = 31 + rng.uniform(-2, 2), -20 + rng.uniform(-3, 4)
    shade = darker(palette.main, 0.28)

    curl = rng.uniform(-8, 6)
    tail = [(-27.0, -6.0), (-36.0, -2.0 + curl / 2), (-39.0, 8.0 + curl)]
    shapes.append(Shape(limb(tail, 4.0, 3.0), shade, "tail"))
    shapes.append(Shape(ellipse(-39, 10 + curl, 3.6, 5.5, 10), palette.accent, "tail"))

    stride, bottom = rng.uniform(-5, 5), 35.0
    for hip, near in ((-17.0, False), (19.0, False), (-24.0, True), (11.0, True)):
        foot = hip + (stride if near else -stride)
        colour = palette.main if near else shade
        shapes.append(Shape(limb([(hip, 8), ((hip + foot) / 2, 22), (foot, bottom - 3)], 11, 8.5, 8), colour, "leg"))
        hoof = box(foot - 5, bottom - 6, foot + 6, bottom, 2)
        shapes.append(Shape(hoof, darker(palette.main, 0.6), "leg"))

    if leaf == "Deer":
        height = rng.uniform(28, 33)
        for side, depth in ((1, 0.25), (-1, 0.0)):
            antler = blend(palette.second, palette.outline, depth)
            x, y = head_x - 3 + 3 * side, head_y - 8
            beam = [
                (x, y),
                (x + 9 * side, y - 0.3 * height),
                (x + 15 * side, y - 0.65 * height),
                (x + 10 * side, y - height),
            ]
            for (fork_x, fork_y), run, rise in ((beam[1], -1.0, 12.0), (beam[2], 9.0, 9.0)):
                tine = [(fork_x, fork_y), (fork_x + side * run, fork_y - rise + rng.uniform(-2, 2))]
                shapes.append(Shape(limb(tine, 5.0, 3.2), antler, "antler"))
            shapes.append(Shape(limb(beam, 5.5, 5.5, 4.8, 3.0), antler, "antler"))

    body = curve(
        [(-29, -6), (-24, -13), (0, -13), (20, -17), (27, -6), (23, 10), (4, 14), (-20, 14), (-30, 6)],
        closed=True,
    )
    shapes.append(Shape(body, palette.main, "body"))
    shapes.append(Shape(ellipse(-2, 9, 17, 4), lighter(palette.main, 0.25), "body", outlined=False))

    if leaf == "Lion":
        locks, radius = int(rng.integers(10, 14)), rng.uniform(20, 23)
        for angle in np.linspace(0, 360, locks, endpoint=False) + rng.uniform(0, 30):
            shapes.append(Shape(petal(head_x, head_y, radius + 4, 15, angle), palette.second, "mane"))
        shapes.append(Shape(ellipse(head_x, head_y, radius - 4), palette.second, "mane", outlined=False))
    else:
        neck = curve([(14, -14), (head_x - 8, head_y - 3), (head_x + 6, head_y + 8), (25, 0)], closed=True)
        shapes.append(Shape(neck, palette.main, "body"))

    shapes.append(Shape(ellipse(head_x - 1, head_y - 9.5, 4.2, 7, 12), shade, "ear"))
    if leaf == "Elephant":
        sway = rng.uniform(-3, 5)
        trunk = limb(
            [
                (head_x + 5, head_y + 2),
                (head_x + 17, head_y + 9),
                (head_x + 18, head_y + 25),
                (head_x + 21 + sway, head_y + 36),
                (head_x + 30 + sway, head_y + 33),
            ],
            15,
            12,
            10,
            8.5,
            7,
        )
        shapes.append(Shape(trunk, palette.second, "trunk"))
        for y in (14.0, 20.0, 26.0):
            fold = limb([(head_x + 14, head_y + y), (head_x + 21, head_y + y - 1)], 1.4)
            shapes.append(Shape(fold, palette.outline, "trunk", outlined=False))
    else:
        shapes.append(Shape(ellipse(head_x + 11, head_y + 4.5, 9, 6.5, 12), lighter(palette.main, 0.3), "muzzle"))
        shapes.append(Shape(ellipse(head_x + 17.5, head_y + 3.2, 2.8), PUPIL, "muzzle", outlined=False))
    shapes.append(Shape(ellipse(head_x, head_y, 12.5, 11.5), palette.main, "head"))
    if leaf == "Elephant":
        tusk = limb([(head_x + 9, head_y + 9), (head_x + 14, head_y + 17), (head_x + 23, head_y + 16)], 4.5, 4, 2)
        shapes.append(Shape(tusk, EYE_WHITE, "trunk"))
        flap = curve(
            [
                (head_x - 3, head_y - 12),
                (head_x - 17, head_y - 15),
                (head_x - 23, head_y),
                (head_x - 16, head_y + 14),
                (head_x - 6, head_y + 8),
            ],
            closed=True,
        )
        shapes.append(Shape(flap, shade, "ear"))
    else:
        shapes.append(Shape(ellipse(head_x - 8, head_y - 10, 4.8, 8, -24), palette.main, "ear"))
        shapes.append(Shape(ellipse(head_x - 8, head_y - 10, 2.2, 5, -24), palette.accent, "ear", outlined=False))
    shapes.extend(eye(head_x + 4, head_y - 3, 4.8))
    return shapes
