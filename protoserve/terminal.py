"""A prediction and a bundle as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from protoserve.bundle import Bundle
from protoserve.schema import Prediction
from protoserve.taxonomy import ROOT

if TYPE_CHECKING:
    from rich.console import RenderableType


def prediction_tree(image: Path, prediction: Prediction) -> Tree:
    """The predicted path with each level's probability, other nodes and evidence."""
    size = prediction.image
    tree = branch = Tree(
        Text.assemble(
            (str(image), "bold"),
            f"  {size.width} × {size.height} pixels  ",
            (f"{prediction.model.name} {_short(prediction.model.version)}", "dim"),
        )
    )
    for level in prediction.levels:
        line = Text.assemble((level.label, "bold green"), f"  {level.probability:.1%}")
        if level.forced:
            line.append("  (an only child)", "dim")
        elif level.level > 1:
            line.append(f"  ({level.conditional:.1%} given {prediction.path[level.level - 2]})", "dim")
        if level.alternatives:
            others = ", ".join(f"{other.label} {other.probability:.1%}" for other in level.alternatives)
            line.append(f"  else {others}", "dim")
        branch = branch.add(line)
        if level.logit is not None and level.evidence:
            shown = sum(evidence.contribution for evidence in level.evidence)
            rest = f"{shown:+.2f} shown, {level.logit - shown:+.2f} from other prototypes"
            branch.add(Text(f"score {level.logit:.2f} = {rest}", "dim"))
        for evidence in level.evidence:
            line = Text.assemble(
                (f"{evidence.contribution:+.2f}", "cyan"),
                f" = {evidence.similarity:.2f} × {evidence.weight:.2f}  {_place(evidence.box)} looks like ",
                (f"prototype {evidence.prototype}", "bold"),
            )
            if evidence.source is not None:
                line.append(f", {_place(evidence.source.box)} of {evidence.source.image}")
            branch.add(line)
    return tree


def _place(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"({left}, {top})–({right}, {bottom})"


def _short(version: str) -> str:
    """`sha256:` and the first 12 digits, which tell bundles apart."""
    return version[:19]


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """What `inspect --json` prints: the manifest, with counts in place of the prototypes' records."""
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
        "targets": manifest.files,
        "files": {file.relative_to(bundle.directory).as_posix(): file.stat().st_size for file in files},
        "temperature": manifest.temperature,
        "novelty": manifest.novelty,
        "metrics": manifest.metrics,
        "provenance": manifest.provenance,
    }


def bundle_report(bundle: Bundle) -> Iterator[RenderableType]:
    """The same for people, part by part."""
    document = bundle_document(bundle)
    taxonomy, counts = bundle.taxonomy, document["taxonomy"]["prototypes"]
    rule, graph = bundle.manifest.input, bundle.manifest.graph
    yield Text.assemble((document["name"], "bold"), f"  {document['kind']}, format {document['format']}")
    yield Text(document["version"], "dim")
    yield Text(
        f"input {rule.width} × {rule.height} pixels, {rule.resize}; {graph.rows} × {graph.columns} cells; "
        f"{graph.prototypes} prototypes, evidence for up to {graph.top_k} per level"
    )
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


def _add_values(tree: Tree, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _add_values(tree.add(Text(key)), value)
        else:
            tree.add(Text(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}"))
