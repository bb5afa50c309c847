"""An extension in words: what changed, what it cost the old classes, how long it took."""

from __future__ import annotations

from collections.abc import Iterator

from protoserve.run.provenance import ClassChange
from training.extending.extending import Extension


def extension_lines(extension: Extension) -> Iterator[str]:
    """Yield the lines that `protoserve extend` prints."""
    for change in extension.changes:
        yield _change_line(change)
    if extension.cost:
        yield f"old classes, {extension.selection} selection images:"
    for level, cost in extension.cost.items():
        yield f"  {level:<9}{100 * cost.before:6.2f} % → {100 * cost.after:6.2f} %  ({-cost.points:+.2f} points)"
    for change in extension.changes:
        if change.action == "add" and not change.held_out:
            yield (
                f"note: {change.node} has no selection images (data.hold_out), so nothing says how well it is found; "
                "evaluate the new run"
            )
    yield f"{extension.seconds:.1f} s, and {extension.feature_seconds:.1f} s for features and scores"


def _change_line(change: ClassChange) -> str:
    if change.action == "add":
        held = f", {change.held_out} of them to select" if change.held_out else ""
        return (
            f"added {change.node}: {change.pictures} pictures of {change.folder}{held}, {change.prototypes} prototypes"
        )
    if change.action == "remove":
        return f"removed {change.node}"
    return f"{'merged' if change.action == 'merge' else 'renamed'} {', '.join(change.of)} → {change.node}"
