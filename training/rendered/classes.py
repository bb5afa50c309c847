"""The taxonomy, the parts, and the parts that distinguish a node from its siblings."""

from __future__ import annotations

from typing import Final

LeafPath = tuple[str, str, str]

BACKGROUND: Final = 0

# The index of a part in masks is its position here, counted from 1. Only append: masks on disk use these indices.
PARTS: Final[tuple[str, ...]] = (
    # creatures
    "body",
    "head",
    "eye",
    "leg",
    "beak",
    "crest",
    "wing",
    "tail",
    "wing-case",
    "antenna",
    "spot",
    "mandible",
    "ear",
    "muzzle",
    "antler",
    "trunk",
    "mane",
    # vehicles
    "wheel",
    "window",
    "lamp",
    "chassis",
    "cab",
    "tank",
    "tipper",
    "drum",
    "bodywork",
    "roof-sign",
    "spoiler",
    "hull",
    "deckhouse",
    "sail",
    "funnel",
    "container",
)

# For every node, by its path: parts that all its pictures show and that suffice to distinguish it from its siblings.
DECISIVE_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "Creature": ("eye", "leg"),
    "Creature/Bird": ("beak", "wing"),
    "Creature/Bird/Cockatoo": ("crest",),
    "Creature/Bird/Peacock": ("tail",),
    "Creature/Bird/Toucan": ("beak",),
    "Creature/Beetle": ("wing-case", "antenna"),
    "Creature/Beetle/Ladybird": ("spot",),
    "Creature/Beetle/Stag-Beetle": ("mandible",),
    "Creature/Quadruped": ("leg", "ear"),
    "Creature/Quadruped/Deer": ("antler",),
    "Creature/Quadruped/Elephant": ("trunk", "ear"),
    "Creature/Quadruped/Lion": ("mane",),
    "Vehicle": ("wheel", "window"),
    "Vehicle/Boat": ("hull",),
    "Vehicle/Boat/Freighter": ("container",),
    "Vehicle/Boat/Sailboat": ("sail",),
    "Vehicle/Boat/Steamer": ("funnel",),
    "Vehicle/Car": ("bodywork",),
    "Vehicle/Car/Racer": ("spoiler",),
    "Vehicle/Car/Taxi": ("roof-sign",),
    "Vehicle/Truck": ("cab", "chassis"),
    "Vehicle/Truck/Mixer": ("drum",),
    "Vehicle/Truck/Tanker": ("tank",),
    "Vehicle/Truck/Tipper": ("tipper",),
}


def leaf_paths() -> tuple[LeafPath, ...]:
    """The leaves as their labels at levels 1 to 3, in the order of `DECISIVE_PARTS`.

    >>> leaf_paths()[0]
    ('Creature', 'Bird', 'Cockatoo')
    """
    split_paths = (node.split("/") for node in DECISIVE_PARTS)
    return tuple((path[0], path[1], path[2]) for path in split_paths if len(path) == 3)


def part_index(part: str) -> int:
    """The value of a part's pixels in masks, counted from 1.

    >>> part_index("body")
    1
    """
    return PARTS.index(part) + 1


def decisive_indices(leaf: LeafPath) -> tuple[tuple[int, ...], ...]:
    """The mask values of the decisive parts at each level of a leaf's path.

    >>> [len(level) for level in decisive_indices(("Creature", "Bird", "Toucan"))]
    [2, 2, 1]
    """
    nodes = ("/".join(leaf[:level]) for level in (1, 2, 3))
    return tuple(tuple(part_index(part) for part in DECISIVE_PARTS[node]) for node in nodes)
