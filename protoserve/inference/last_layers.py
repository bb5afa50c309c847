"""A bundle's last layers on the host: centred evidence from similarities alone, where a graph does not give it.

An ensemble sums the logits of several graphs, and a graph of format 1 knows no evidence against a node. For both, the
evidence comes from the graphs' similarities and the bundles' `weights.npy`, in numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.folder import Bundle
from protoserve.errors import BundleError
from protoserve.graph_signature import MISSING_RANK, Explanation
from protoserve.novelty import NoveltyTable
from protoserve.taxonomy import Taxonomy, competing_groups

Arrays: TypeAlias = Explanation[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class GroupLayer:
    """The last layer of one group of competing nodes: `prototypes` int64 [n], the bundle's own numbers; `weight`
    float64 [members, n]; and `usual` float64 [n], the similarities that contributions are counted from."""

    prototypes: NDArray[np.int64]
    weight: NDArray[np.float64]
    usual: NDArray[np.float64]

    @cached_property
    def prior(self) -> NDArray[np.float64]:
        """[members] the logits where every similarity is usual."""
        return np.asarray(self.weight @ self.usual)

    def scaled(self, factor: float) -> GroupLayer:
        """The same with all weights times `factor`."""
        return GroupLayer(self.prototypes, self.weight * factor, self.usual)


@dataclass(frozen=True)
class LastLayers:
    """All of a bundle's last layers, one per group.

    They are `centred` where the bundle knows the prototypes' usual similarities: then each weight is less its mean over
    the group's members, and `common_weight` float32 [prototypes] is that mean. Otherwise they are as trained, `usual`
    and `prior` are 0, and `common_weight` is None.
    """

    groups: tuple[GroupLayer, ...]
    centred: bool
    common_weight: NDArray[np.float32] | None


def read_last_layers(bundle: Bundle, table: NoveltyTable) -> LastLayers | None:
    """Read a bundle's `weights.npy`; None where it was exported without them.

    Raises BundleError when the file does not fit the bundle's prototypes.
    """
    manifest, index = bundle.manifest, bundle.taxonomy.index
    weights = read_weights(bundle)
    if weights is None:
        return None
    group_of = {node: number for number, group in enumerate(table.groups) for node in group.children}
    groups = np.array([group_of[index[record.child]] for record in manifest.prototypes], dtype=np.int64)
    sizes = table.sizes[groups]
    centred = manifest.graph.centred or any(record.usual is not None for record in manifest.prototypes)
    usual = np.array([record.usual or 0.0 for record in manifest.prototypes])
    starts = np.cumsum(sizes) - sizes
    common = np.zeros(len(groups), dtype=np.float32)
    layers = []
    for number, size in enumerate(table.sizes.tolist()):
        prototypes = np.flatnonzero(groups == number)
        weight = weights[starts[prototypes][None, :] + np.arange(size)[:, None]].astype(np.float64)
        if centred:
            common[prototypes] = weight.mean(axis=0)
            weight = weight - weight.mean(axis=0)
        layers.append(GroupLayer(prototypes, weight, usual[prototypes]))
    return LastLayers(tuple(layers), centred, common if centred else None)


def read_weights(bundle: Bundle) -> NDArray[np.float32] | None:
    """Read a bundle's `weights.npy`, each prototype's weights for all nodes of its group in turn: float32 [weights];
    None where it was exported without them.

    Raises BundleError when the file does not fit the bundle's prototypes.
    """
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    if manifest.weights is None:
        return None
    groups = competing_groups(taxonomy, bundle.kind)
    size_of = {node: len(group.children) for group in groups for node in group.children}
    count = sum(size_of[taxonomy.index[record.child]] for record in manifest.prototypes)
    file = bundle.directory / manifest.weights
    try:
        weights: NDArray[np.float32] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise BundleError(f"{file}: not an array of weights ({error}); export the bundle again") from error
    if weights.shape != (count,) or weights.dtype != np.float32:
        raise BundleError(
            f"{file}: holds {weights.dtype} {list(weights.shape)}, but the prototypes need float32 [{count}]; "
            "export the bundle again"
        )
    if not np.isfinite(weights).all():
        raise BundleError(f"{file}: holds weights that are not finite numbers; export the bundle again")
    return weights


@dataclass(frozen=True)
class MemberLayers:
    """One graph whose evidence is joined with others': its last layers `groups`, and `start`, the number of its first
    prototype among those of all."""

    groups: tuple[GroupLayer, ...]
    start: int = 0


class HostEvidence:
    """Evidence on a path from the similarities of one graph or several; `grid` is the maps' rows and columns."""

    def __init__(
        self,
        taxonomy: Taxonomy,
        table: NoveltyTable,
        members: Sequence[MemberLayers],
        top_k: int,
        grid: tuple[int, int],
    ) -> None:
        self.table, self.members, self.top_k, self.grid = table, tuple(members), top_k, grid
        # The group in which each node competes, −1 for none, and its place among the group's members.
        self.group_of = np.full(len(taxonomy.nodes), -1, dtype=np.int64)
        self.member_of = np.zeros(len(taxonomy.nodes), dtype=np.int64)
        self._children = tuple(np.array(group.children, dtype=np.int64) for group in table.groups)
        for number, children in enumerate(self._children):
            self.group_of[children] = number
            self.member_of[children] = np.arange(len(children))

    def layer_of(self, node: int) -> GroupLayer:
        """Return the last layer of a competing node's group, where all evidence comes from one graph."""
        [member] = self.members
        return member.groups[int(self.group_of[node])]

    def logits(self, graphs: Sequence[Arrays]) -> NDArray[np.float64]:
        """[images, nodes] every node's logit; 0 for a node that competes with no other."""
        logit = np.zeros((len(graphs[0].path), len(self.group_of)))
        for member, graph in zip(self.members, graphs, strict=True):
            for children, layer in zip(self._children, member.groups, strict=True):
                logit[:, children] += graph.similarity[:, layer.prototypes].astype(np.float64) @ layer.weight.T
        return logit

    @cached_property
    def group_of_prototype(self) -> NDArray[np.int64]:
        """The group of every prototype, where all evidence comes from one graph: int64 [prototypes]."""
        [member] = self.members
        found = np.empty(sum(len(layer.prototypes) for layer in member.groups), dtype=np.int64)
        for number, layer in enumerate(member.groups):
            found[layer.prototypes] = number
        return found

    def renewed_logits(self, graph: Arrays, groups: Iterable[int]) -> NDArray[np.float64]:
        """[images, nodes] the graph's logits; those of the nodes of some `groups` from its similarities, where all
        evidence comes from one graph."""
        logit = graph.logit.astype(np.float64)
        [member] = self.members
        for group in groups:
            layer = member.groups[group]
            logit[:, self._children[group]] = graph.similarity[:, layer.prototypes].astype(np.float64) @ layer.weight.T
        return logit

    def renewed(self, graph: Arrays, path: NDArray[np.int64], told: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """The outputs that say why, for the nodes of `path`: made here where `told` bool [images, levels], elsewhere
        the graph's own; nothing if none is told. `told` must hold where the path is not the graph's."""
        if not told.any():
            return {}
        new = np.nonzero(told)
        found = {}
        for name, array in self.on_path([graph], np.where(told, path, -1)).items():
            found[name] = getattr(graph, name).copy()
            found[name][new] = array[new]
        return found

    def on_path(self, graphs: Sequence[Arrays], path: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The outputs that say why, for the nodes of `path` int64 [images, levels], −1 for none.

        A prototype's map is there where its graph drew one, for the same node; elsewhere it is NaN.
        """
        shape = (*path.shape, self.top_k)
        found: dict[str, NDArray[Any]] = {"positive_contribution": np.zeros(path.shape, dtype=np.float32)}
        for kind in ("evidence", "against"):
            for name in ("prototype", "cell"):
                found[f"{kind}_{name}"] = np.full(shape, -1, dtype=np.int64)
            for name in ("similarity", "weight", "contribution"):
                found[f"{kind}_{name}"] = np.zeros(shape, dtype=np.float32)
        found["evidence_map"] = np.full((*shape, *self.grid), np.nan, dtype=np.float32)
        for image, level in zip(*np.nonzero(path >= 0), strict=True):
            node = path[image, level]
            if self.group_of[node] >= 0:
                self._fill(found, graphs, image, level, node)
        return found

    def _fill(
        self, found: dict[str, NDArray[Any]], graphs: Sequence[Arrays], image: int, level: int, node: int
    ) -> None:
        group, row = self.group_of[node], self.member_of[node]
        layers = [member.groups[group] for member in self.members]
        pairs = [(graph, layer.prototypes) for graph, layer in zip(graphs, layers, strict=True)]
        sizes = [len(layer.prototypes) for layer in layers]
        owner = np.repeat(np.arange(len(layers)), sizes)
        own = _joined([layer.prototypes for layer in layers])
        similarity = _joined([graph.similarity[image, of] for graph, of in pairs]).astype(np.float64)
        cell = _joined([graph.cell[image, of] for graph, of in pairs])
        weight = _joined([layer.weight[row] for layer in layers])
        unusual = similarity - _joined([layer.usual for layer in layers])
        contribution = weight * unusual
        prototype = _joined(
            [layer.prototypes + member.start for layer, member in zip(layers, self.members, strict=True)]
        )
        # As in `protoserve.networks.pieces.ranking`.
        order = np.where(unusual > 0, contribution, MISSING_RANK * contribution)
        found["positive_contribution"][image, level] = np.maximum(contribution, 0.0).sum()
        columns = {
            "prototype": prototype,
            "cell": cell,
            "similarity": similarity,
            "weight": weight,
            "contribution": contribution,
        }
        for kind, ranking in (("evidence", -order), ("against", order)):
            best = np.argsort(ranking, kind="stable")[: self.top_k]
            for name, values in columns.items():
                found[f"{kind}_{name}"][image, level, : len(best)] = values[best]
            if kind == "evidence":
                self._take_maps(found["evidence_map"][image, level], graphs, (image, level, node), owner, own, best)

    @staticmethod
    def _take_maps(
        maps: NDArray[np.float32],
        graphs: Sequence[Arrays],
        place: tuple[int, int, int],
        owner: NDArray[np.int64],
        own: NDArray[np.int64],
        best: NDArray[np.int64],
    ) -> None:
        """Copy the maps of the `best` prototypes, those that their graphs drew for the same image, level and node."""
        image, level, node = place
        for number, graph in enumerate(graphs):
            if graph.path[image, level] != node:
                continue
            same = (own[best][:, None] == graph.evidence_prototype[image, level]) & (owner[best] == number)[:, None]
            ranks, drawn = np.nonzero(same)
            rows, columns = graph.evidence_map.shape[3:]
            maps[ranks, :rows, :columns] = graph.evidence_map[image, level, drawn]


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join arrays; a lone one stays as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
