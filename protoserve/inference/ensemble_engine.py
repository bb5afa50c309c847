"""The engine of an ensemble: sums its members' logits before the softmax and merges their evidence.

Chen et al. 2019 add the logits of several networks. This module does so in every group of competing nodes, after
dividing each member's logits by its own temperature. Then it computes the softmax and, for hierarchical members, the
products along the paths. So an ensemble's logit is the sum of the contributions of all members' prototypes:
weight / temperature × similarity. It needs only numpy and the outputs of the members' graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import Bundle
from protoserve.device import Device
from protoserve.errors import BundleError
from protoserve.inference.engine import Engine, Outputs
from protoserve.inference.evidence import EvidenceTable
from protoserve.novelty import NoveltyTable, Thresholds, parent_names

# Smaller probabilities are raised to this before the logarithm, as in the graphs.
MIN_PROBABILITY = 1e-37


@dataclass(frozen=True)
class GroupEvidence:
    """The evidence of one member in one group of competing nodes.

    `prototypes` int64 [n] are the member's own ids; `weight` float64 [nodes of the group, n] is already divided by the
    member's temperature.
    """

    prototypes: NDArray[np.int64]
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """The properties of a member that combining needs.

    `first_prototype` is the ensemble's id of its first prototype; `temperature` is float64 [groups]; `evidence` has one
    entry per group; `thresholds` are its novelty thresholds, None if it has none.
    """

    first_prototype: int
    temperature: NDArray[np.float64]
    evidence: tuple[GroupEvidence, ...]
    thresholds: Thresholds | None


class EnsembleEngine:
    """Has the interface of `Engine`; runs the members' engines one after the other and combines their outputs."""

    def __init__(self, ensemble: Ensemble, device: Device = "auto", threads: int | None = None) -> None:
        self.engines = tuple(Engine(member, device=device, threads=threads) for member in ensemble.members)
        self.combiner = OutputCombiner(ensemble)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device that the members run on."""
        return self.engines[0].device

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Run all members on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1; raises as `Engine.run`."""
        return self.combiner.combine([engine.run(images) for engine in self.engines])


def open_engine(model: Model, device: Device = "auto", threads: int | None = None) -> Engine | EnsembleEngine:
    """Open the engine of a bundle or an ensemble; raises as `Engine` does."""
    if isinstance(model, Ensemble):
        return EnsembleEngine(model, device=device, threads=threads)
    return Engine(model, device=device, threads=threads)


class OutputCombiner:
    """Combines the outputs of an ensemble's members; holds the tables for that."""

    def __init__(self, ensemble: Ensemble) -> None:
        taxonomy = ensemble.taxonomy
        self.taxonomy, self.top_k = taxonomy, ensemble.top_k
        self.rows, self.columns = ensemble.grid
        self.kind = ensemble.kind
        self.table = NoveltyTable.of(taxonomy, self.kind, [])
        self.members = tuple(
            _member(bundle, self.table, first)
            for bundle, first in zip(ensemble.members, ensemble.first_prototypes, strict=True)
        )
        # Each node's group (−1 for a node that does not compete) and its position in that group.
        self.node_group = np.full(len(taxonomy.nodes), -1, dtype=np.int64)
        self.node_position = np.zeros(len(taxonomy.nodes), dtype=np.int64)
        for index, group in enumerate(self.table.groups):
            self.node_group[list(group.children)] = index
            self.node_position[list(group.children)] = np.arange(len(group.children))

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Combine the members' `outputs` for the same images, one per member in order.

        A member's graph computes a prototype's map only for the nodes that the member itself predicts; other maps are
        NaN. A level is known if at least half of the members with thresholds know it.
        """
        images, nodes = outputs[0].log_probability.shape
        logit = np.zeros((images, nodes))
        for member, output in zip(self.members, outputs, strict=True):
            divisor = np.repeat(member.temperature, self.table.sizes)
            logit[:, self.table.members] += output.logit[:, self.table.members] / divisor
        log_probability = self._log_probability(logit)
        leaves = np.array(self.taxonomy.leaves)
        path = self.taxonomy.path_at_level[leaves[log_probability[:, leaves].argmax(axis=1)]]
        evidence = self._evidence(outputs, path)
        return Outputs(
            log_probability=log_probability.astype(np.float32),
            logit=logit.astype(np.float32),
            path=path,
            **evidence,
            similarity=np.concatenate([output.similarity for output in outputs], axis=1),
            cell=np.concatenate([output.cell for output in outputs], axis=1),
            known=self._known(outputs, path),
        )

    def _log_probability(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute the log-probabilities [N, V] of all nodes from their logits [N, V], divided by the temperature."""
        members, offsets, sizes = self.table.members, self.table.offsets, self.table.sizes
        competing = logit[:, members]
        competing = competing - np.repeat(np.maximum.reduceat(competing, offsets, axis=1), sizes, axis=1)
        total = np.add.reduceat(np.exp(competing), offsets, axis=1)
        conditional = np.zeros_like(logit)
        conditional[:, members] = competing - np.repeat(np.log(total), sizes, axis=1)
        if self.kind == "hierarchical":
            # The added column of zeros is read for levels below a leaf. An only child's conditional is 0, too.
            padded = np.pad(conditional, ((0, 0), (0, 1)))
            return np.asarray(padded[:, self.taxonomy.path_at_level].sum(axis=2))
        probability = np.zeros_like(logit)
        probability[:, members] = np.exp(conditional[:, members])
        depths = np.array([len(node) for node in self.taxonomy.nodes])
        for depth in range(self.taxonomy.depth, 1, -1):
            below = np.flatnonzero(depths == depth)
            np.add.at(probability.T, self.taxonomy.parent[below], probability.T[below])
        log_probability = np.log(np.maximum(probability, MIN_PROBABILITY))
        log_probability[:, members] = conditional[:, members]
        return log_probability

    def _evidence(self, outputs: Sequence[Outputs], path: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Select the best evidence of all members for the nodes of `path` [N, L]: the outputs `evidence_…` by name."""
        images, levels = path.shape
        shape = (images, levels, self.top_k)
        prototypes = np.full(shape, -1, dtype=np.int64)
        cells = np.full(shape, -1, dtype=np.int64)
        similarities, weights, contributions = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        maps = np.full((*shape, self.rows, self.columns), np.nan, dtype=np.float32)
        for image, level in zip(*np.nonzero(path >= 0), strict=True):
            node = path[image, level]
            group = self.node_group[node]
            if group < 0:
                continue
            # The candidates: each prototype of the group, its member, weight and similarity.
            member_index, member_prototype, weight, similarity = [], [], [], []
            for index, (member, output) in enumerate(zip(self.members, outputs, strict=True)):
                evidence = member.evidence[group]
                member_index.append(np.full(len(evidence.prototypes), index))
                member_prototype.append(evidence.prototypes)
                weight.append(evidence.weight[self.node_position[node]])
                similarity.append(output.similarity[image, evidence.prototypes].astype(np.float64))
            all_weights, all_similarities = np.concatenate(weight), np.concatenate(similarity)
            products = all_weights * all_similarities
            best = np.argsort(-products, kind="stable")[: self.top_k]
            shown = np.s_[image, level, : len(best)]
            similarities[shown], weights[shown] = all_similarities[best], all_weights[best]
            contributions[shown] = products[best]
            owners, own_ids = np.concatenate(member_index)[best], np.concatenate(member_prototype)[best]
            for rank, (index, prototype) in enumerate(zip(owners.tolist(), own_ids.tolist(), strict=True)):
                output = outputs[index]
                prototypes[image, level, rank] = self.members[index].first_prototype + prototype
                cells[image, level, rank] = output.cell[image, prototype]
                own_rank = np.flatnonzero(output.evidence_prototype[image, level] == prototype)
                if output.path[image, level] == node and len(own_rank):
                    rows, columns = output.evidence_map.shape[3:]
                    maps[image, level, rank, :rows, :columns] = output.evidence_map[image, level, own_rank[0]]
        return {
            "evidence_prototype": prototypes,
            "evidence_similarity": similarities,
            "evidence_weight": weights,
            "evidence_contribution": contributions,
            "evidence_cell": cells,
            "evidence_map": maps,
        }

    def _known(self, outputs: Sequence[Outputs], path: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Let the members with thresholds vote on the ensemble's path; returns [N, L], None if no member has any."""
        votes = [
            member.thresholds.of_outputs(path, output.log_probability, output.logit, output.similarity)
            for member, output in zip(self.members, outputs, strict=True)
            if member.thresholds is not None
        ]
        return np.mean(votes, axis=0) >= 0.5 if votes else None


def _member(bundle: Bundle, table: NoveltyTable, first_prototype: int) -> Member:
    """Read the properties of a member; raises BundleError if its weights don't fit its prototypes."""
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    temperature = [manifest.temperature.get(parent, 1.0) for parent in parent_names(table.groups, taxonomy)]
    node_group = {node: index for index, group in enumerate(table.groups) for node in group.children}
    groups = np.array([node_group[taxonomy.index[record.child]] for record in manifest.prototypes], dtype=np.int64)
    sizes = table.sizes[groups]
    assert manifest.weights is not None  # `ensemble_of` has checked it
    file = bundle.directory / manifest.weights
    weights = np.load(file, allow_pickle=False)
    if weights.shape != (sizes.sum(),) or weights.dtype != np.float32:
        raise BundleError(
            f"{file}: holds {weights.dtype} {list(weights.shape)}, but the prototypes need float32 [{sizes.sum()}]; "
            "export the bundle again"
        )
    offsets = np.cumsum(sizes) - sizes
    evidence = []
    for index, size in enumerate(table.sizes.tolist()):
        prototypes = np.flatnonzero(groups == index)
        own = weights[offsets[prototypes][None, :] + np.arange(size)[:, None]].astype(np.float64)
        evidence.append(GroupEvidence(prototypes, own / temperature[index]))
    return Member(first_prototype, np.array(temperature), tuple(evidence), EvidenceTable.of(bundle).thresholds)
