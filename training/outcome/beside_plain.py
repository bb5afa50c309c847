"""Say how far the prototypes are from the plain classifier that was trained beside them on the same features."""

from __future__ import annotations

from protoserve.run.records import Metrics

# Points of accuracy, at any level, by which the prototypes may be below the plain classifier without a warning.
TOLERANCE = 1.0


def beside_plain(metrics: Metrics) -> list[str]:
    """Return the accuracies of the plain classifier and of the prototypes on the selection images, and a warning where
    the prototypes are more than `TOLERANCE` points below it and more than one picture decides it. Returns nothing for
    a run without prototypes or without a plain classifier."""
    plain, own = metrics.plain, metrics.selection
    if plain is None or own is None:
        return []
    levels = [level for level in plain.accuracy if level in own.accuracy]
    told = ", ".join(f"{_spoken(level)} {plain.accuracy[level]:.1%} ({own.accuracy[level]:.1%})" for level in levels)
    lines = [
        f"a plain classifier on the same features has, on the {plain.images} selection images: {told}; the prototypes "
        "in brackets"
    ]
    loss = {level: plain.accuracy[level] - own.accuracy[level] for level in levels}
    far = {level: lost for level, lost in loss.items() if 100 * lost > TOLERANCE and lost * plain.images > 1.5}
    if far:
        worst = max(far, key=lambda level: far[level])
        lines.append(
            f"warning: the prototypes are {100 * far[worst]:.1f} points below the plain classifier at "
            f"{_spoken(worst)}. Try another crop (--set image.share=1 or 0.7), more prototypes (--prototypes auto), or "
            "a backbone that learns (protoserve train finetuned)"
        )
    return lines


def _spoken(level: str) -> str:
    return "leaves" if level == "leaf" else level.replace("_", " ")
