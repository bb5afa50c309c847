"""Options of a request as text: `Fruit,Vegetables`, `Fruit/Apple:2`, `Fruit:3,Vegetables:0.5`, `12,17`.

Commas separate nodes. A node whose name has a comma can be named in a command by an option of its own, in Python, and
in a list of the bundle.
"""

from __future__ import annotations

from collections.abc import Iterable

from protoserve.errors import InputError


def names_of(text: str | None) -> tuple[str, ...]:
    """Split a comma list of nodes; None and spaces around commas are fine.

    >>> names_of("Fruit, Vegetables")
    ('Fruit', 'Vegetables')
    """
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def levels_of(parts: Iterable[str], option: str = "depth=") -> dict[str, int]:
    """Read `NODE:LEVEL`, or a lone level for the whole tree.

    Raises InputError, which names the `option`, for anything else.

    >>> levels_of(["Fruit/Apple:2", "3"])
    {'Fruit/Apple': 2, '': 3}
    """
    found = {}
    for part in parts:
        node, _, level = part.rpartition(":")
        if not level.isdecimal() or len(level) > 4:
            raise InputError(
                f"{option}{part[:80]}: write NODE:LEVEL, such as Fruit/Apple:2, or a level for the whole tree"
            )
        found[node] = int(level)
    return found


def weights_of(parts: Iterable[str], option: str = "prior=") -> dict[str, float]:
    """Read `NODE:WEIGHT`; raises InputError, which names the `option`, for anything else.

    >>> weights_of(["Fruit:3", "Vegetables:0.5"])
    {'Fruit': 3.0, 'Vegetables': 0.5}
    """
    found = {}
    for part in parts:
        node, colon, weight = part.rpartition(":")
        try:
            found[node] = float(weight)
        except ValueError:
            colon = ""
        if not colon or not node:
            raise InputError(f"{option}{part[:80]}: write NODE:WEIGHT, such as Fruit:3")
    return found


def numbers_of(text: str | None, option: str = "without=") -> tuple[int, ...]:
    """Read numbers of prototypes, separated by commas; raises InputError, which names the `option`, for anything else.

    >>> numbers_of("12,17")
    (12, 17)
    """
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        # Longer numbers are no prototypes, and slow to read.
        if not (part.isascii() and part.isdigit() and len(part) <= 9):
            raise InputError(
                f"{option}{text[:80]}: {part[:80]!r} is not the number of a prototype; give numbers separated by "
                "commas, such as 12,17"
            )
    return tuple(int(part) for part in parts)
