"""Names of classes as a data set gives them: one form, and no two that people can't tell apart."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping

from protoserve.errors import TaxonomyError, nearest
from protoserve.names import is_utf8, look, normal, one_line


def class_name(name: str, siblings: MutableMapping[str, str], place: str) -> str:
    """Return a class's name in Unicode's composed form, and note it among its `siblings`: look → name.

    Raises TaxonomyError, which names the `place`, for a name that is not UTF-8, and for one that looks like a
    sibling's: that differs only in its composition, in case, or in spaces and characters that can't be seen.
    """
    if not is_utf8(name):
        raise TaxonomyError(f"{one_line(place)}: the name is not UTF-8; rename it")
    twin = siblings.setdefault(look(name), name)
    if twin != name:
        raise TaxonomyError(f"{place}: {spelt(name, twin)}; rename one, or join their images")
    return normal(name)


def spelt(name: str, twin: str) -> str:
    """Say how two names differ that look the same.

    >>> spelt("Apple", "apple")
    "'Apple' looks like 'apple'"
    >>> spelt("Gala\\u200b", "Gala")
    "'Gala\\\\u200b' looks like 'Gala'"
    """
    # Letters beyond ASCII may be what differs, so both are written with escapes if the plain forms look the same.
    if name.casefold() == twin.casefold() or not (name.isprintable() and twin.isprintable()):
        return f"{name!r} looks like {twin!r}"
    return f"{name!r} looks like {twin!r} but is another name ({name!a} and {twin!a})"


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown class: the known one that looks the same, or the nearest one."""
    names = list(known)
    twin = next((other for other in names if look(other) == look(name)), None)
    return nearest(name, names) if twin is None else f"; {spelt(name, twin)}: write it as in train"
