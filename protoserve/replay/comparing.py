"""Compares an answer with the same answer made again, field by field.

Only the fields that the stored answer has are compared, because later versions add some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

# What depends on where the answer was asked for.
_IGNORED: Final = frozenset({"href"})
# Lists of records → the field that identifies a record, and the field by which they are chosen and ordered.
_KEYED: Final = {
    "levels": ("level", None),
    "evidence": ("prototype", "contribution"),
    "against": ("prototype", "contribution"),
    "alternatives": ("node", "probability"),
}


def differences(stored: Mapping[str, Any], again: Mapping[str, Any], tolerance: float) -> list[str]:
    """Say where two answers, as JSON, differ; empty where they don't.

    Numbers may differ by `tolerance`, or by that share of a number above 1. Of prototypes and alternatives, either may
    be shown where two are equal within the tolerance.

    >>> differences({"path": ["Fruit"], "logit": 2.0}, {"path": ["Tool"], "logit": 2.00001}, 1e-4)
    ["path 1: was 'Fruit', is 'Tool'"]
    """
    return _of_record("", stored, again, tolerance)


def _of_record(place: str, stored: Mapping[str, Any], again: Mapping[str, Any], tolerance: float) -> list[str]:
    found: list[str] = []
    for name, value in stored.items():
        if name in _IGNORED:
            continue
        here = f"{place}, {name}" if place else name
        if name not in again:
            found.append(f"{here}: is no longer given")
        elif name in _KEYED and isinstance(value, list) and isinstance(again[name], list):
            found += _of_keyed(here, name, value, again[name], tolerance)
        else:
            found += _of_value(here, value, again[name], tolerance)
    return found


def _of_keyed(place: str, name: str, stored: Sequence[Any], again: Sequence[Any], tolerance: float) -> list[str]:
    key, order = _KEYED[name]
    present = {record[key]: record for record in again}
    found = []
    for record in stored:
        here = f"{place} {record[key]}"
        if record[key] in present:
            found += _of_record(here, record, present[record[key]], tolerance)
            continue
        # The least that is shown now may stand in for one that is equal to it.
        values = [abs(other[order]) for other in again] if order is not None else []
        if not values or len(again) != len(stored) or not _near(abs(record[order]), min(values), tolerance):
            found.append(f"{here}: is no longer shown")
    if len(stored) != len(again):
        found.append(f"{place}: were {len(stored)}, are {len(again)}")
    return found


def _of_value(place: str, stored: Any, again: Any, tolerance: float) -> list[str]:
    if isinstance(stored, Mapping) and isinstance(again, Mapping):
        return _of_record(place, stored, again, tolerance)
    if isinstance(stored, list) and isinstance(again, list) and len(stored) == len(again):
        pairs = enumerate(zip(stored, again, strict=True), start=1)
        return [line for number, pair in pairs for line in _of_value(f"{place} {number}", *pair, tolerance)]
    if _is_number(stored) and _is_number(again):
        same = _near(stored, again, tolerance) if isinstance(stored, float) or isinstance(again, float) else None
        if same or (same is None and stored == again):
            return []
    elif stored == again:
        return []
    return [f"{place}: was {stored!r}, is {again!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(one: float, other: float, tolerance: float) -> bool:
    return abs(one - other) <= tolerance * max(1.0, abs(one))
