"""An extension in words names each change, its cost and what nobody measured."""

from __future__ import annotations

from typing import Any

from protoserve.run.provenance import ClassChange
from training.extending.cost import Cost
from training.extending.extending import Extension
from training.extending.telling import extension_lines


def test_the_lines_say_what_changed_what_it_cost_and_how_long_it_took() -> None:
    common: dict[str, Any] = {"by": "ada", "at": "2026-01-01T00:00:00+00:00", "run": "photos"}
    changes = (
        ClassChange(action="add", node="A/w", folder="white", pictures=5, held_out=0, prototypes=8, **common),
        ClassChange(action="add", node="A/v", folder="van", pictures=9, held_out=1, prototypes=8, **common),
        ClassChange(action="remove", node="B", **common),
        ClassChange(action="merge", node="C", of=["D", "E"], **common),
        ClassChange(action="rename", node="F", of=["G"], **common),
    )
    lines = list(extension_lines(Extension(changes, {"leaf": Cost(0.9, 0.895)}, 200, 12.04, 3.26)))
    assert lines == [
        "added A/w: 5 pictures of white, 8 prototypes",
        "added A/v: 9 pictures of van, 1 of them to select, 8 prototypes",
        "removed B",
        "merged D, E → C",
        "renamed G → F",
        "old classes, 200 selection images:",
        "  leaf      90.00 % →  89.50 %  (-0.50 points)",
        "note: A/w has no selection images (data.hold_out), so nothing says how well it is found; evaluate the new run",
        "3.3 s, and 12.0 s for features and scores",
    ]


def test_the_document_has_the_same() -> None:
    document = Extension((), {"leaf": Cost(0.9, 0.895)}, 200, 12.04, 3.26).document()
    assert document["cost"]["leaf"]["before"] == 0.9
    assert round(document["cost"]["leaf"]["points"], 6) == 0.5
    assert (document["feature_seconds"], document["seconds"]) == (12.04, 3.26)
