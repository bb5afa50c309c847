"""Random last layers on random, uneven trees, as bundles without a graph, and what a graph would put out for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import GraphRecord, Manifest, PrototypeRecord
from protoserve.graph_signature import MISSING_RANK
from protoserve.images.geometry import Geometry, InputRule
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.taxonomy import Group, Kind, Taxonomy, competing_groups

ROWS, COLUMNS, TOP_K = 3, 4, 6
GEOMETRY = Geometry(400, 300, 100, 100, 4.0, 3.0, 0.0, 0.0)


@dataclass(frozen=True)
class RandomHead:
    """A bundle, and `weight` float64 [nodes, prototypes] as trained, 0 outside the groups; `usual` [prototypes]."""

    bundle: Bundle
    weight: NDArray[np.float64]
    usual: NDArray[np.float64]

    @property
    def centred(self) -> NDArray[np.float64]:
        """[nodes, prototypes] the weights less their mean over the group of each prototype's child."""
        found = np.zeros_like(self.weight)
        for group in competing_groups(self.bundle.taxonomy, self.bundle.kind):
            rows = self.weight[list(group.children)]
            found[list(group.children)] = rows - rows.mean(axis=0)
        return found

    def logits(self, similarity: NDArray[np.float64]) -> NDArray[np.float64]:
        """[nodes] prior + Σ contributions, by hand."""
        return np.asarray(self.centred @ similarity)

    def log_probability(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """[nodes] by the definition, one node after the other."""
        tree = self.bundle.taxonomy
        chance = np.ones(len(tree.nodes))
        for group in competing_groups(tree, self.bundle.kind):
            parent = tree.names[group.parent] if group.parent >= 0 and self.bundle.kind == "hierarchical" else ""
            values = logit[list(group.children)] / self.bundle.manifest.temperature.get(parent, 1.0)
            chance[list(group.children)] = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        leaf = np.zeros(len(tree.nodes))
        for node in tree.leaves:
            path = tree.path_at_level[node]
            path = path[path >= 0]
            leaf[node] = chance[path].prod() if self.bundle.kind == "hierarchical" else chance[node]
        total = [
            sum(leaf[other] for other in tree.leaves if node in tree.path_at_level[other]) for node in range(len(leaf))
        ]
        return np.log(np.maximum(total, 1e-37))

    def outputs(self, similarity: NDArray[np.float64]) -> Outputs:
        """What a graph would put out for pictures of these similarities [images, prototypes]; its maps are 0."""
        tree = self.bundle.taxonomy
        logit = np.stack([self.logits(row) for row in similarity])
        log_probability = np.stack([self.log_probability(row) for row in logit])
        leaves = np.array(tree.leaves)
        path = tree.path_at_level[leaves[log_probability[:, leaves].argmax(axis=1)]]
        shape = (*path.shape, TOP_K)
        numbers = {
            f"{kind}_{name}": np.full(shape, -1, dtype=np.int64)
            for kind in ("evidence", "against")
            for name in ("prototype", "cell")
        }
        values = {
            f"{kind}_{name}": np.zeros(shape, dtype=np.float32)
            for kind in ("evidence", "against")
            for name in ("similarity", "weight", "contribution")
        }
        cells = np.arange(similarity.size).reshape(similarity.shape) % (ROWS * COLUMNS)
        positive = np.zeros(path.shape, dtype=np.float32)
        for image, level in zip(*np.nonzero(path >= 0), strict=True):
            weight = self.centred[path[image, level]]
            unusual = similarity[image] - self.usual
            contribution = weight * unusual
            positive[image, level] = np.maximum(contribution, 0.0).sum()
            rank = np.where(unusual > 0, 1.0, MISSING_RANK) * contribution
            competing = [int(prototype) for prototype in np.argsort(-rank) if weight[prototype] != 0]
            for kind, best in (("evidence", competing[:TOP_K]), ("against", competing[::-1][:TOP_K])):
                place = (image, level, slice(len(best)))
                numbers[f"{kind}_prototype"][place] = best
                numbers[f"{kind}_cell"][place] = cells[image, best]
                values[f"{kind}_similarity"][place] = similarity[image, best]
                values[f"{kind}_weight"][place] = weight[best]
                values[f"{kind}_contribution"][place] = contribution[best]
        return Outputs(
            log_probability=log_probability.astype(np.float32),
            logit=logit.astype(np.float32),
            path=path,
            evidence_map=np.zeros((*shape, ROWS, COLUMNS), dtype=np.float32),
            similarity=similarity.astype(np.float32),
            cell=cells,
            positive_contribution=positive,
            **numbers,
            **values,
        )

    @property
    def table(self) -> EvidenceTable:
        """The bundle's table."""
        return EvidenceTable.of(self.bundle)


def random_tree(random: np.random.Generator) -> Taxonomy:
    """A tree of 2 to 4 levels with 3 or more leaves at different depths, with only children among them."""
    paths = {"A", "B/C"}
    for _ in range(int(random.integers(2, 12))):
        paths.add("/".join(f"{'XYZ'[int(random.integers(3))]}{depth}" for depth in range(int(random.integers(1, 5)))))
    leaves = sorted(path for path in paths if not any(other.startswith(path + "/") for other in paths))
    return Taxonomy.from_paths(leaves)


def random_head(seed: int, directory: Path, kind: Kind = "hierarchical", similarity: str = "log1p") -> RandomHead:
    """Make the bundle of a random head in `directory`."""
    random = np.random.default_rng(seed)
    tree = random_tree(random)
    groups = competing_groups(tree, kind)
    records, stored = [], []
    for group in groups:
        for child in group.children:
            for _ in range(int(random.integers(1, 4))):
                records.append((tree.names[child], "" if group.parent < 0 else tree.names[group.parent], group))
    weight = np.zeros((len(tree.nodes), len(records)))
    usual = random.uniform(0.0, 2.0, len(records)).astype(np.float32).astype(np.float64)
    for number, (_, _, group) in enumerate(records):
        weight[list(group.children), number] = random.normal(size=len(group.children)).astype(np.float32)
        stored.append(weight[list(group.children), number])
    head = RandomHead(Bundle(directory, _manifest(tree, kind, records, usual, similarity)), weight, usual)
    prior = head.centred @ usual
    named = {tree.names[node]: float(prior[node]) for group in groups for node in group.children}
    parents = ["" if group.parent < 0 else tree.names[group.parent] for group in groups]
    temperature = (
        {parent: float(random.uniform(0.5, 2.0)) for parent in parents} if kind == "hierarchical" else {"": 1.5}
    )
    np.save(directory / "weights.npy", np.concatenate(stored).astype(np.float32))
    manifest = head.bundle.manifest.model_copy(update={"prior": named, "temperature": temperature})
    return RandomHead(Bundle(directory, manifest), weight, usual)


def _manifest(
    tree: Taxonomy, kind: Kind, records: list[tuple[str, str, Group]], usual: NDArray[np.float64], similarity: str
) -> Manifest:
    return Manifest(
        format=2,
        name="random",
        version="sha256:0",
        kind=kind,
        taxonomy=tree.to_dict(),
        input=InputRule(height=100, width=100, resize="stretch"),
        graph=GraphRecord(
            rows=ROWS,
            columns=COLUMNS,
            prototypes=len(records),
            top_k=TOP_K,
            similarity=similarity,
            epsilon=1e-1,
            centred=True,
        ),
        files={"onnx": "model.onnx"},
        weights="weights.npy",
        prototypes=[
            PrototypeRecord(
                id=number,
                parent=parent,
                child=child,
                source_image=f"train/{number}.jpg",
                source_box=(0, 0, 10, 10),
                source_cell=(0, 0),
                weight=0.0,
                usual=float(usual[number]),
                picture=f"prototypes/{number:04d}.webp",
            )
            for number, (child, parent, _) in enumerate(records)
        ],
    )
