"""A bundle or an ensemble as text for a terminal: on one screen, or all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text
from rich.tree import Tree

from protoserve.bundle.curation import told
from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import Manifest
from protoserve.cli.audit_report import evidence_lines
from protoserve.cli.promise_report import promise_lines
from protoserve.cli.terminal import scores_line
from protoserve.names import one_line
from protoserve.taxonomy import ROOT

if TYPE_CHECKING:
    from rich.console import RenderableType

# On one screen, as many classes of the first level, and switched prototypes, are listed.
_LISTED: Final = 6


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


def model_report(model: Model, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield a model as text for people, part by part: a bundle fits on one screen unless `everything` is asked for."""
    if isinstance(model, Bundle):
        yield from bundle_report(model, everything=everything)
        return
    yield Text.assemble((model.name, "bold"), f"  an ensemble of {len(model.members)} bundles")
    yield Text(model.version, "dim")
    for index, (first, member) in enumerate(zip(model.first_prototypes, model.members, strict=True)):
        yield Text(f"\nmember {index}, its prototypes numbered from {first}", "bold")
        yield from bundle_report(member, everything=everything)


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


def bundle_report(bundle: Bundle, *, everything: bool = False) -> Iterator[RenderableType]:
    """Yield the content of `bundle_document` as text for people, part by part.

    Without `everything`, leaves out the lower levels of the class tree, most files, older curations, and all of metrics
    and provenance but the accuracy.
    """
    document = bundle_document(bundle)
    rule, graph = bundle.manifest.input, bundle.manifest.graph
    yield Text.assemble((document["name"], "bold"), f"  {document['kind']}, format {document['format']}")
    yield Text(document["version"], "dim")
    seen = "" if graph.tile is None else f", each from {graph.tile} × {graph.tile} pixels alone"
    yield Text(
        f"input {rule.width} × {rule.height} pixels, {rule.resize}; {graph.rows} × {graph.columns} cells{seen}; "
        f"{graph.prototypes} prototypes, up to {graph.top_k} for each level's node and as many against it"
    )
    if (backbone := bundle.manifest.provenance.backbone) is not None:
        weights = "" if backbone.tag is None else f", weights {backbone.tag}"
        colours = " and ".join(
            ", ".join(f"{value:g}" for value in part) for part in (backbone.mean, backbone.deviation)
        )
        yield Text(f"backbone {backbone.name} ({backbone.library}){weights}; colours normalised by {colours}")
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
    for split, scores in list(bundle.metrics.of(("test", "validation", "selection")).items())[:1]:
        yield Text(f"accuracy on {split}: {scores_line(scores)}")
    yield from _curation_report(bundle, everything=everything)
    truth = bundle.manifest.truth
    yield from (Text(line, "yellow" if truth is None else "") for line in evidence_lines(truth))
    separation = bundle.manifest.metrics.separation
    if separation is not None:
        yield Text(
            f"{separation.telling} of {separation.prototypes} prototypes tell their class from its siblings, "
            f"{separation.always_on} are always on"
        )
    yield from (Text(line, style) for line, style in promise_lines(bundle.manifest, everything=everything))
    yield _class_tree(bundle, document["taxonomy"]["prototypes"], everything=everything)
    if not everything:
        targets = ", ".join(f"{name} {_size(document['files'][file])}" for name, file in document["targets"].items())
        yield Text(f"files: {targets}; {len(document['files'])} in all, {_size(sum(document['files'].values()))}")
        yield Text("--all shows the whole class tree, all files, metrics and provenance", "dim")
        return
    yield _file_list(bundle, document["files"])
    for part in ("metrics", "provenance"):
        branch = Tree(part)
        _add_values(branch, document[part])
        yield branch


def _class_tree(bundle: Bundle, counts: Mapping[str, int], *, everything: bool) -> Tree:
    """The class tree, or the largest of its first level with the number of leaves below each."""
    taxonomy = bundle.taxonomy
    tree = Tree(f"{len(taxonomy.nodes)} nodes, {len(taxonomy.leaves)} leaves, depth {taxonomy.depth}")
    if everything:
        branches: dict[int, Tree] = {ROOT: tree}
        for node, name in enumerate(taxonomy.names):
            own = f"  {counts[name]} prototypes" if counts[name] else ""
            line = Text.assemble(taxonomy.nodes[node][-1], (own, "dim"))
            branches[node] = branches[int(taxonomy.parent[node])].add(line)
        return tree
    leaves: dict[str, int] = {}
    for leaf in taxonomy.leaves:
        first = taxonomy.nodes[leaf][0]
        leaves[first] = leaves.get(first, 0) + 1
    largest = sorted(leaves.items(), key=lambda item: -item[1])
    for name, count in largest[:_LISTED]:
        tree.add(Text.assemble(name, (f"  {count} leaves" if count > 1 else "  1 leaf", "dim")))
    if rest := largest[_LISTED:]:
        tree.add(Text(f"and {len(rest)} more with {sum(count for _, count in rest)} leaves", "dim"))
    return tree


def _file_list(bundle: Bundle, files: Mapping[str, int]) -> Tree:
    """All files with their sizes in bytes; the prototypes' pictures in one line."""
    pictures = {record.picture for record in bundle.manifest.prototypes}
    listed = Tree(f"{len(files)} files, {sum(files.values()):,} bytes")
    for name, size in files.items():
        if name not in pictures:
            listed.add(Text(f"{name}  {size:,}"))
    listed.add(Text(f"{len(pictures)} prototype pictures  {sum(files[name] for name in pictures):,}"))
    return listed


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _curation_report(bundle: Bundle, *, everything: bool) -> Iterator[RenderableType]:
    """Yield the chain of a bundle's curation, oldest first, and what holds after it; nothing without any. Without
    `everything`, the last link, and the first prototypes."""
    links = bundle.manifest.curation
    if not links:
        return
    chain = Tree("curated" if everything or len(links) == 1 else f"curated {len(links)} times, the last time")
    for link in links if everything else links[-1:]:
        acts = [
            f"{act} {', '.join(map(str, prototypes))}"
            for act, prototypes in (("off", link.disabled), ("required", link.required), ("restored", link.restored))
            if prototypes
        ]
        acts += ["last layers refitted"] if link.refitted else []
        branch = chain.add(Text(f"{'; '.join(acts)}, {told(link)}"))
        branch.add(Text(f"from {link.before[:19]}", "dim"))
        if link.accuracy is not None:
            changes = (
                f"{level.replace('_', ' ')} {before:.1%} → {link.accuracy.after[level]:.1%}"
                for level, before in link.accuracy.before.items()
            )
            branch.add(Text(f"{', '.join(changes)} on {link.accuracy.images} images of {link.accuracy.split}"))
    yield chain
    switched = [
        f"prototype {prototype} of {bundle.prototypes[prototype].child} is {name}"
        for name, found in (("off", bundle.curation.off), ("required", bundle.curation.required))
        for prototype in sorted(found)
    ]
    listed = switched if everything else switched[:_LISTED]
    yield from (Text(line, "yellow") for line in listed)
    if left := len(switched) - len(listed):
        yield Text(f"and {left} more prototypes are off or required", "yellow")


def _add_values(tree: Tree, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _add_values(tree.add(Text(one_line(key))), value)
        else:
            tree.add(Text(one_line(f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}")))
