"""The answer of an ensemble: its members' logits, summed before the softmax, and the evidence of all of them.

Chen et al. 2019 add the logits of several networks. Here this is done for every group of competing nodes, each
member's logits over its own temperature; then come the softmax and, for hierarchical members, the products along the
paths. So an ensemble's logit is the sum of contributions weight / temperature × similarity of all members' prototypes.
numpy alone, on what the members' graphs return.
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

# The least probability of which a logarithm is taken, as in the graphs.
LEAST_PROBABILITY = 1e-37


@dataclass(frozen=True)
class GroupEvidence:
    """Of one group of competing nodes and one member: `prototypes` int64 [n], the member's own numbers, and `weight`
    float64 [nodes of the group, n], over the member's temperature."""

    prototypes: NDArray[np.int64]
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """What joining needs of a member: `start`, the ensemble's number of its first prototype; `temperature` float64
    [groups]; its evidence per group; and its novelty thresholds, if it has some."""

    start: int
    temperature: NDArray[np.float64]
    evidence: tuple[GroupEvidence, ...]
    thresholds: Thresholds | None


class EnsembleEngine:
    """The members' engines, one after the other, as one `Engine`."""

    def __init__(self, ensemble: Ensemble, device: Device = "auto", threads: int | None = None) -> None:
        self.engines = tuple(Engine(member, device=device, threads=threads) for member in ensemble.members)
        self.joining = Joining(ensemble)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where they run."""
        return self.engines[0].device

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Answer for uint8 RGB images [N, height, width, 3] at model size, N ≥ 1; raises as `Engine.run` does."""
        return self.joining.outputs([engine.run(images) for engine in self.engines])


def open_engine(model: Model, device: Device = "auto", threads: int | None = None) -> Engine | EnsembleEngine:
    """The engine of a bundle or an ensemble; raises as `Engine` does."""
    kind = EnsembleEngine if isinstance(model, Ensemble) else Engine
    return kind(model, device=device, threads=threads)  # type: ignore[arg-type]


class Joining:
    """The tables of an ensemble, and how its members' outputs become one."""

    def __init__(self, ensemble: Ensemble) -> None:
        taxonomy = ensemble.taxonomy
        self.taxonomy, self.top_k = taxonomy, ensemble.top_k
        self.rows, self.columns = ensemble.grid
        self.kind = ensemble.kind
        self.table = NoveltyTable.of(taxonomy, self.kind, [])
        self.members = tuple(
            _member(bundle, self.table, start) for bundle, start in zip(ensemble.members, ensemble.starts, strict=True)
        )
        # Where each node stands among its group's members; a node that competes in none has the group −1.
        self.group_of = np.full(len(taxonomy.nodes), -1, dtype=np.int64)
        self.place_of = np.zeros(len(taxonomy.nodes), dtype=np.int64)
        for number, group in enumerate(self.table.groups):
            self.group_of[list(group.children)] = number
            self.place_of[list(group.children)] = np.arange(len(group.children))

    def outputs(self, members: Sequence[Outputs]) -> Outputs:
        """One answer of all members' answers to the same images.

        A prototype's map is there where its member predicted the same node; elsewhere its graph did not draw one,
        and it is NaN. A level is known where at least half of the members that have thresholds know it.
        """
        images, nodes = members[0].log_probability.shape
        logit = np.zeros((images, nodes))
        for member, found in zip(self.members, members, strict=True):
            divisor = np.repeat(member.temperature, self.table.sizes)
            logit[:, self.table.members] += found.logit[:, self.table.members] / divisor
        log_probability = self._log_probability(logit)
        leaves = np.array(self.taxonomy.leaves)
        path = self.taxonomy.path_at_level[leaves[log_probability[:, leaves].argmax(axis=1)]]
        evidence = self._evidence(members, path)
        return Outputs(
            log_probability=log_probability.astype(np.float32),
            logit=logit.astype(np.float32),
            path=path,
            **evidence,
            similarity=np.concatenate([found.similarity for found in members], axis=1),
            cell=np.concatenate([found.cell for found in members], axis=1),
            known=self._known(members, path),
        )

    def _log_probability(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, V] of all nodes from logits over temperature."""
        members, starts, sizes = self.table.members, self.table.starts, self.table.sizes
        competing = logit[:, members]
        competing = competing - np.repeat(np.maximum.reduceat(competing, starts, axis=1), sizes, axis=1)
        total = np.add.reduceat(np.exp(competing), starts, axis=1)
        conditional = np.zeros_like(logit)
        conditional[:, members] = competing - np.repeat(np.log(total), sizes, axis=1)
        if self.kind == "hierarchical":
            # A column of zeros for the places below a leaf's own level; an only child's conditional is 0, too.
            padded = np.pad(conditional, ((0, 0), (0, 1)))
            return np.asarray(padded[:, self.taxonomy.path_at_level].sum(axis=2))
        probability = np.zeros_like(logit)
        probability[:, members] = np.exp(conditional[:, members])
        depths = np.array([len(node) for node in self.taxonomy.nodes])
        for depth in range(self.taxonomy.depth, 1, -1):
            below = np.flatnonzero(depths == depth)
            np.add.at(probability.T, self.taxonomy.parent[below], probability.T[below])
        found = np.log(np.maximum(probability, LEAST_PROBABILITY))
        found[:, members] = conditional[:, members]
        return found

    def _evidence(self, members: Sequence[Outputs], path: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        images, levels = path.shape
        shape = (images, levels, self.top_k)
        prototypes = np.full(shape, -1, dtype=np.int64)
        cells = np.full(shape, -1, dtype=np.int64)
        similarities, weights, contributions = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        maps = np.full((*shape, self.rows, self.columns), np.nan, dtype=np.float32)
        for image, level in zip(*np.nonzero(path >= 0), strict=True):
            node = path[image, level]
            group = self.group_of[node]
            if group < 0:
                continue
            owners, own, weight, similarity = [], [], [], []
            for number, (member, found) in enumerate(zip(self.members, members, strict=True)):
                evidence = member.evidence[group]
                owners.append(np.full(len(evidence.prototypes), number))
                own.append(evidence.prototypes)
                weight.append(evidence.weight[self.place_of[node]])
                similarity.append(found.similarity[image, evidence.prototypes].astype(np.float64))
            all_weights, all_similarities = np.concatenate(weight), np.concatenate(similarity)
            products = all_weights * all_similarities
            best = np.argsort(-products, kind="stable")[: self.top_k]
            shown = np.s_[image, level, : len(best)]
            similarities[shown], weights[shown] = all_similarities[best], all_weights[best]
            contributions[shown] = products[best]
            chosen = zip(np.concatenate(owners)[best].tolist(), np.concatenate(own)[best].tolist(), strict=True)
            for rank, (number, prototype) in enumerate(chosen):
                found = members[number]
                prototypes[image, level, rank] = self.members[number].start + prototype
                cells[image, level, rank] = found.cell[image, prototype]
                drawn = np.flatnonzero(found.evidence_prototype[image, level] == prototype)
                if found.path[image, level] == node and len(drawn):
                    rows, columns = found.evidence_map.shape[3:]
                    maps[image, level, rank, :rows, :columns] = found.evidence_map[image, level, drawn[0]]
        return {
            "evidence_prototype": prototypes,
            "evidence_similarity": similarities,
            "evidence_weight": weights,
            "evidence_contribution": contributions,
            "evidence_cell": cells,
            "evidence_map": maps,
        }

    def _known(self, members: Sequence[Outputs], path: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """[N, L] the vote of the members that have thresholds, on the ensemble's path; None where none has."""
        votes = [
            member.thresholds.of_outputs(path, found.log_probability, found.logit, found.similarity)
            for member, found in zip(self.members, members, strict=True)
            if member.thresholds is not None
        ]
        return np.mean(votes, axis=0) >= 0.5 if votes else None


def _member(bundle: Bundle, table: NoveltyTable, start: int) -> Member:
    manifest, taxonomy = bundle.manifest, bundle.taxonomy
    temperature = [manifest.temperature.get(parent, 1.0) for parent in parent_names(table.groups, taxonomy)]
    group_of = {node: number for number, group in enumerate(table.groups) for node in group.children}
    groups = np.array([group_of[taxonomy.index[record.child]] for record in manifest.prototypes], dtype=np.int64)
    sizes = table.sizes[groups]
    assert manifest.weights is not None  # `ensemble_of` has looked
    file = bundle.directory / manifest.weights
    weights = np.load(file, allow_pickle=False)
    if weights.shape != (sizes.sum(),) or weights.dtype != np.float32:
        raise BundleError(
            f"{file}: holds {weights.dtype} {list(weights.shape)}, but the prototypes need float32 [{sizes.sum()}]; "
            "export the bundle again"
        )
    starts = np.cumsum(sizes) - sizes
    evidence = []
    for number, size in enumerate(table.sizes.tolist()):
        prototypes = np.flatnonzero(groups == number)
        own = weights[starts[prototypes][None, :] + np.arange(size)[:, None]].astype(np.float64)
        evidence.append(GroupEvidence(prototypes, own / temperature[number]))
    return Member(start, np.array(temperature), tuple(evidence), EvidenceTable.of(bundle).thresholds)
