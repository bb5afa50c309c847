"""The promise, the pictures behind novelty thresholds, and named lists, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from protoserve.bundle.manifest import ListRecord, Manifest
from protoserve.run.promise_records import AnswerScores


def promise_lines(manifest: Manifest, *, everything: bool = True) -> Iterator[tuple[str, str]]:
    """Yield lines about a bundle's promise, thresholds and lists, each with its style: yellow for what is missing.

    Without `everything`, parents and lists are counted and not named.
    """
    promise, novelty = manifest.promise, manifest.novelty
    if promise is None:
        yield "promises no precision, so its predictions have no answer; train and export the run again", "yellow"
    else:
        own = f"{promise.precision:g}"
        value = promise.thresholds.get(own)
        behind = f"({promise.images} calibration pictures, confidence {promise.confidence:g})"
        if value is None:
            yield f"can't promise its precision of {own}, so gives no answers at it {behind}", "yellow"
        else:
            yield (
                f"answers where the probability is {value:.3f} or more, to be right in {own} of the cases {behind}",
                "",
            )
        others = [
            f"{name} needs {promise.least_images[name]}" for name, least in promise.thresholds.items() if least is None
        ]
        if others:
            yield (
                f"precisions that the calibration pictures can't promise: {', '.join(others)} pictures or more",
                "yellow",
            )
    if novelty is not None and novelty.images:
        counts = novelty.images.values()
        behind = ", ".join(f"{parent or 'the root'} {images}" for parent, images in novelty.images.items())
        if not everything:
            behind = f"{min(counts)} to {max(counts)} for each of {len(counts)} parents"
        yield f"pictures behind the novelty thresholds: {behind}", ""
        if novelty.pooled:
            few = ", ".join(parent or "the root" for parent in novelty.pooled)
            if not everything:
                few = "1 parent" if len(novelty.pooled) == 1 else f"{len(novelty.pooled)} parents"
            yield f"too few of their own, so they share a threshold: {few}", "yellow"
    if manifest.lists and not everything:
        yield f"lists: {', '.join(manifest.lists)}", ""
        return
    for name, record in manifest.lists.items():
        yield f"list {name!r}: {list_line(record)}", ""


def list_line(record: ListRecord) -> str:
    """Write what a named list allows.

    >>> list_line(ListRecord(allow=["Fruit"], deny=["Fruit/Lemon"], depth={"Fruit": 2}, prior={"Fruit/Apple": 3.0}))
    'allow Fruit; deny Fruit/Lemon; depth Fruit:2; prior Fruit/Apple:3'
    """
    parts = {
        "allow": ", ".join(record.allow),
        "deny": ", ".join(record.deny),
        "depth": ", ".join(f"{node}:{level}" for node, level in record.depth.items()),
        "prior": ", ".join(f"{node}:{weight:g}" for node, weight in record.prior.items()),
    }
    return "; ".join(f"{name} {text}" for name, text in parts.items() if text) or "allow everything"


def answers_table(promise: Mapping[str, AnswerScores]) -> Table:
    """Make the table of the answers to a split by stated precision: coverage, and precision where it answered."""
    levels = [name for name in next(iter(promise.values())).answered if name != "all"]
    table = Table("promised", title="answers: share answered / right", title_justify="left", box=None, pad_edge=False)
    for column in (*(level.replace("_", " ") for level in levels), "all", "held on re-splits"):
        table.add_column(column, justify="right")
    for stated, scores in promise.items():
        again = scores.resplits
        held = "" if again is None else f"{again.held} of {again.rounds}"
        if again is not None and again.silent:
            held += f" ({again.silent} without answers)"
        table.add_row(stated, *(_cell(scores, level) for level in (*levels, "all")), held)
    return table


def _cell(scores: AnswerScores, level: str) -> str:
    answered = scores.answered[level]
    right = f"{scores.right[level] / answered:.1%}" if answered else "–"
    return f"{answered / max(1, scores.images):.1%} / {right}"
