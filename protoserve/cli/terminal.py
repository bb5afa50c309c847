"""Predictions and scores as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from protoserve.cli.promise_report import answers_table
from protoserve.cli.wording import answer_lines, contrast_sum, sum_line, terms
from protoserve.names import one_line
from protoserve.pages.words import likeness
from protoserve.run.records import Evaluation, Scores
from protoserve.schema import Evidence, Prediction

if TYPE_CHECKING:
    from rich.console import RenderableType


def prediction_tree(image: Path, prediction: Prediction) -> Tree:
    """Make a tree of the predicted path with each level's probability, other nodes and evidence.

    Evidence for a node comes first, then evidence against it; the line above them shows that all parts of the score add
    up.
    """
    size = prediction.image
    tree = branch = Tree(
        Text.assemble(
            (one_line(str(image)), "bold"),
            f"  {size.width} × {size.height} pixels  ",
            (f"{prediction.model.name} {_short(prediction.model.version)}", "dim"),
        )
    )
    for text, style in answer_lines(prediction):
        tree.add(Text(text, style))
    for level in prediction.levels:
        line = Text.assemble((level.label, "bold yellow" if level.known is False else "bold green"))
        line.append(f"  {level.probability:.1%}")
        if level.known is False:
            first_unknown = prediction.known_through_level == level.level - 1
            siblings = f"the classes of {prediction.path[level.level - 2]}" if level.level > 1 else "these classes"
            line.append(f"  unknown: like none of {siblings}" if first_unknown else "  unknown", "yellow")
        if level.forced:
            line.append("  (an only child)", "dim")
        elif level.level > 1:
            line.append(f"  ({level.conditional:.1%} given {prediction.path[level.level - 2]})", "dim")
        if level.alternatives:
            others = ", ".join(f"{other.label} {other.probability:.1%}" for other in level.alternatives)
            line.append(f"  else {others}", "dim")
        branch = branch.add(line)
        if level.evidence or level.against:
            branch.add(Text(sum_line(level), "dim"))
        for evidence in level.evidence:
            branch.add(_evidence_line(evidence, "cyan"))
        for evidence in level.against:
            branch.add(_evidence_line(evidence, "red"))
    for line in contrast_lines(prediction):
        tree.add(line)
    return tree


def contrast_lines(prediction: Prediction) -> Iterator[Text]:
    """Say which prototypes were left out, and why the prediction is not the node of its `contrast`."""
    if prediction.without:
        yield Text(f"as if without the prototypes {', '.join(map(str, prediction.without))}", "yellow")
    contrast = prediction.contrast
    if contrast is None:
        return
    if contrast.relation != "beside":
        why = "it is on the predicted path" if contrast.relation == "predicted" else "the answer ends above it"
        yield Text(f"why not {contrast.node}? {why}", "bold")
        return
    path = ", ".join(f"{node.label} {node.probability:.1%}" for node in contrast.path)
    yield Text.assemble((f"why not {contrast.node}?", "bold"), f"  {path}")
    yield Text(contrast_sum(contrast), "dim")
    for piece in (*contrast.evidence, *contrast.missing):
        line = Text.assemble((f"{piece.difference:+.2f}", "cyan" if piece.difference > 0 else "red"))
        line.append(f" = {piece.predicted:+.2f} - {piece.instead:+.2f}  ")
        line.append(f"{_corners(piece.box)} {'is like' if piece.found else 'is the most like, but less than usual,'} ")
        line.append(f"prototype {piece.prototype}", "bold")
        if piece.member is not None:
            line.append(f" of member {piece.member}", "dim")
        line.append(f" of {one_line(piece.child)}, {_corners(piece.source.box)} of {one_line(piece.source.image)}")
        yield line


def _evidence_line(evidence: Evidence, colour: str) -> Text:
    """One piece of evidence: its contribution and factors, where it is, and the prototype's training patch."""
    line = Text.assemble(
        (f"{evidence.contribution:+.2f}", colour),
        f" = {terms(evidence)}  {_corners(evidence.box)} {likeness(evidence)} ",
        (f"prototype {evidence.prototype}", "bold"),
    )
    if evidence.member is not None:
        line.append(f" of member {evidence.member}", "dim")
    if evidence.source is not None:
        line.append(f", {_corners(evidence.source.box)} of {one_line(evidence.source.image)}")
    return line


def scores_line(scores: Scores) -> str:
    """Format the accuracies of a data set in one line."""
    accuracy = "  ".join(f"{level} {100 * value:.1f} %" for level, value in scores.accuracy.items())
    return f"{accuracy}  (macro {100 * scores.macro_accuracy:.1f} %, {scores.images} images)"


def scores_report(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Yield the scores of a model on a split, part by part."""
    table = Table("level", title=f"{evaluation.images} images", title_justify="left", box=None, pad_edge=False)
    for column in ("accuracy", "calibration error", "−log likelihood"):
        table.add_column(column, justify="right")
    for level, accuracy in evaluation.accuracy.items():
        table.add_row(
            level.replace("_", " "),
            f"{accuracy:.1%}",
            f"{evaluation.expected_calibration_error[level]:.3f}",
            f"{evaluation.negative_log_likelihood[level]:.3f}",
        )
    yield table
    severity, hierarchical = evaluation.mistake_severity, evaluation.hierarchical
    mistakes = "no mistakes" if severity is None else f"mistakes {severity:.2f} levels up on average"
    shares = {} if hierarchical is None else dict(hierarchical)
    yield Text(
        f"macro accuracy {evaluation.macro_accuracy:.1%}; {mistakes}, {evaluation.hierarchical_distance:.3f} over all "
        "images; hierarchical " + ", ".join(f"{name} {value:.1%}" for name, value in shares.items())
    )
    worst = sorted(evaluation.siblings.items(), key=lambda item: (item[1].accuracy, item[0]))[:3]
    lines = (f"{_parent(parent)} {score.accuracy:.1%} of {score.images}" for parent, score in worst)
    yield Text(f"hardest to tell apart: the children of {'; of '.join(lines)}")
    if evaluation.promise:
        yield answers_table(evaluation.promise)
    if evaluation.novel is not None:
        yield from _novelty_report(evaluation.novel)


def _novelty_report(novel: Mapping[str, Any]) -> Iterator[RenderableType]:
    table = Table(title=f"{novel['images']} novel images: AUROC / FPR at 95 %", title_justify="left", box=None)
    table.add_column("novel below")
    for column in ("novel", "known"):
        table.add_column(column, justify="right")
    scores = list(dict.fromkeys(score for entry in novel["parents"].values() for score in entry["scores"]))
    for column in (*scores, "rejected"):
        table.add_column(column, justify="right")
    for parent, entry in novel["parents"].items():
        figures = [
            "" if score["auroc"] is None else f"{score['auroc']:.3f} / {score['fpr95']:.2f}"
            for score in (entry["scores"][name] for name in scores)
        ]
        rejected = f"{entry['rejected']:.0%}" if "rejected" in entry else ""
        table.add_row(_parent(parent), str(entry["novel_images"]), str(entry["known_images"]), *figures, rejected)
    yield table
    if novel["right_level_1"] is not None:
        yield Text(f"under the right node of level 1: {novel['right_level_1']:.1%}")
    if "detected" in novel:
        yield Text(
            f"with the run's thresholds: {novel['detected']:.1%} of the novel images are unknown at the level of their "
            f"own class or above, {novel['known_throughout']:.1%} of the known images are known down to the leaf"
        )
    if novel["undecided"]:
        yield Text(f"{novel['undecided']} novel images lie below a parent with one child, so they have no score")


def _parent(name: str) -> str:
    return name or "the root"


def _corners(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"({left}, {top})–({right}, {bottom})"


def _short(version: str) -> str:
    """Shorten a version to `sha256:` and 12 digits."""
    return version[:19]
