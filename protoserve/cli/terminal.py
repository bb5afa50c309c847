"""Predictions, scores and bundles as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from protoserve.bundle.curation import told
from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import Manifest
from protoserve.cli.audit_report import card_lines
from protoserve.cli.promise_report import answers_table, promise_lines
from protoserve.cli.wording import answer_lines, contrast_sum, likeness, sum_line, terms
from protoserve.names import one_line
from protoserve.run.records import Evaluation, Scores
from protoserve.schema import Evidence, Prediction
from protoserve.taxonomy import ROOT

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


def model_document(model: Model) -> dict[str, Any]:
    """Make the JSON document of `inspect`: `bundle_document` for a bundle; for an ensemble, its name, its version and
    its members' documents."""
    if isinstance(model, Bundle):
        return bundle_document(model)
    return {
        "name": model.name,
        "version": model.version,
        "members": [
            {"first_prototype": first, **bundle_document(member)}
            for first, member in zip(model.first_prototypes, model.members, strict=True)
        ],
    }


def model_report(model: Model) -> Iterator[RenderableType]:
    """Yield the content of `model_document` as text for people, part by part."""
    if isinstance(model, Bundle):
        yield from bundle_report(model)
        return
    yield Text.assemble((model.name, "bold"), f"  an ensemble of {len(model.members)} bundles")
    yield Text(model.version, "dim")
    for index, (first, member) in enumerate(zip(model.first_prototypes, model.members, strict=True)):
        yield Text(f"\nmember {index}, its prototypes numbered from {first}", "bold")
        yield from bundle_report(member)


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """Make the JSON document of a bundle: the manifest, with counts in place of the prototypes' records."""
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    counts = dict.fromkeys(taxonomy.names, 0)
    for record in manifest.prototypes:
        counts[record.child] += 1
    files = sorted(file for file in bundle.directory.rglob("*") if file.is_file())
    return {
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "kind": manifest.kind,
        "taxonomy": {
            "nodes": len(taxonomy.nodes),
            "leaves": len(taxonomy.leaves),
            "depth": taxonomy.depth,
            "prototypes": counts,
        },
        "input": manifest.input.model_dump(mode="json"),
        "graph": manifest.graph.model_dump(mode="json"),
        "usual": _usual(manifest),
        "curation": {
            "off": sorted(bundle.curation.off),
            "required": sorted(bundle.curation.required),
            "chain": [link.model_dump(mode="json") for link in manifest.curation],
        },
        "truth": None if manifest.truth is None else manifest.truth.model_dump(mode="json"),
        "targets": manifest.files,
        "files": {file.relative_to(bundle.directory).as_posix(): file.stat().st_size for file in files},
        "temperature": manifest.temperature,
        "novelty": None if manifest.novelty is None else manifest.novelty.model_dump(mode="json"),
        "promise": None if manifest.promise is None else manifest.promise.model_dump(mode="json"),
        "lists": {name: record.model_dump(mode="json") for name, record in manifest.lists.items()},
        "metrics": manifest.metrics.model_dump(),
        "provenance": manifest.provenance.model_dump(),
    }


def _usual(manifest: Manifest) -> dict[str, float] | None:
    """The range of the prototypes' usual similarities; None where they were not measured."""
    usual = [record.usual for record in manifest.prototypes if record.usual is not None]
    return {"smallest": min(usual), "mean": sum(usual) / len(usual), "largest": max(usual)} if usual else None


def bundle_report(bundle: Bundle) -> Iterator[RenderableType]:
    """Yield the content of `bundle_document` as text for people, part by part."""
    document = bundle_document(bundle)
    taxonomy, counts = bundle.taxonomy, document["taxonomy"]["prototypes"]
    rule, graph = bundle.manifest.input, bundle.manifest.graph
    yield Text.assemble((document["name"], "bold"), f"  {document['kind']}, format {document['format']}")
    yield Text(document["version"], "dim")
    seen = "" if graph.tile is None else f", each from {graph.tile} × {graph.tile} pixels alone"
    yield Text(
        f"input {rule.width} × {rule.height} pixels, {rule.resize}; {graph.rows} × {graph.columns} cells{seen}; "
        f"{graph.prototypes} prototypes, up to {graph.top_k} for each level's node and as many against it"
    )
    usual = document["usual"]
    if usual is None:
        yield Text(
            "contributions count from a similarity of 0: usual similarities were not measured; run 'protoserve centre'",
            "yellow",
        )
    else:
        own = "the graph" if graph.centred else "the host; files for the edge keep their own order"
        yield Text(
            f"contributions count from the usual similarity, {usual['smallest']:.2f} to {usual['largest']:.2f} (mean "
            f"{usual['mean']:.2f}); centred by {own}"
        )
    yield from _curation_report(bundle)
    if bundle.manifest.truth is None:
        yield Text("evidence not audited; run 'protoserve audit BUNDLE --data DIR --write'", "yellow")
    else:
        yield from (Text(line) for line in card_lines(bundle.manifest.truth))
    separation = bundle.manifest.metrics.separation
    if separation is not None:
        yield Text(
            f"{separation.telling} of {separation.prototypes} prototypes tell their class from its siblings, "
            f"{separation.always_on} are always on"
        )
    yield from (Text(line, style) for line, style in promise_lines(bundle.manifest))
    tree = Tree(f"{len(taxonomy.nodes)} nodes, {len(taxonomy.leaves)} leaves, depth {taxonomy.depth}")
    branches: dict[int, Tree] = {ROOT: tree}
    for node, name in enumerate(taxonomy.names):
        own = f"  {counts[name]} prototypes" if counts[name] else ""
        line = Text.assemble(taxonomy.nodes[node][-1], (own, "dim"))
        branches[node] = branches[int(taxonomy.parent[node])].add(line)
    yield tree
    files = document["files"]
    pictures = {record.picture for record in bundle.manifest.prototypes}
    listed = Tree(f"{len(files)} files, {sum(files.values()):,} bytes")
    for name, size in files.items():
        if name not in pictures:
            listed.add(Text(f"{name}  {size:,}"))
    listed.add(Text(f"{len(pictures)} prototype pictures  {sum(files[name] for name in pictures):,}"))
    yield listed
    for part in ("metrics", "provenance"):
        branch = Tree(part)
        _add_values(branch, document[part])
        yield branch


def _curation_report(bundle: Bundle) -> Iterator[RenderableType]:
    """Yield the chain of a bundle's curation, oldest first, and what holds after it; nothing without any."""
    if not bundle.manifest.curation:
        return
    chain = Tree("curated")
    for link in bundle.manifest.curation:
        acts = [
            f"{act} {', '.join(map(str, prototypes))}"
            for act, prototypes in (("off", link.disabled), ("required", link.required), ("restored", link.restored))
            if prototypes
        ]
        acts += ["last layers refitted"] if link.refitted else []
        branch = chain.add(Text(f"{'; '.join(acts)}, {told(link)}"))
        branch.add(Text(f"from {_short(link.before)}", "dim"))
        if link.accuracy is not None:
            changes = (
                f"{level.replace('_', ' ')} {before:.1%} → {link.accuracy.after[level]:.1%}"
                for level, before in link.accuracy.before.items()
            )
            branch.add(Text(f"{', '.join(changes)} on {link.accuracy.images} images of {link.accuracy.split}"))
    yield chain
    for name, links in (("off", bundle.curation.off), ("required", bundle.curation.required)):
        for prototype in sorted(links):
            yield Text(f"prototype {prototype} of {bundle.prototypes[prototype].child} is {name}", "yellow")


def _add_values(tree: Tree, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _add_values(tree.add(Text(one_line(key))), value)
        else:
            tree.add(Text(one_line(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")))
