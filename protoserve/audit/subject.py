"""The audited model: its engine, its last layers, and the boxes of its cells at model size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.folder import Bundle
from protoserve.errors import BundleError
from protoserve.graph_signature import OUTPUT_NAMES
from protoserve.images.geometry import Geometry
from protoserve.inference.engine import Outputs
from protoserve.inference.last_layers import GroupLayer, read_last_layers
from protoserve.novelty import NoveltyTable
from protoserve.schema import Box
from protoserve.taxonomy import Taxonomy

BATCH: Final = 32
# Log-probabilities below this count as this, so that no single picture decides a mean.
LOG_FLOOR: Final = -30.0


class SupportsRun(Protocol):
    """What the audit needs of an engine."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the graph on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1."""


@dataclass(frozen=True)
class Piece:
    """The evidence for one node on an image's predicted path: positive contributions only, the strongest first.

    `prototypes`, `cells` int64 [pieces]; `contributions` float32 [pieces]. `image` is the image's index.
    """

    image: int
    level: int
    node: int
    prototypes: NDArray[np.int64]
    cells: NDArray[np.int64]
    contributions: NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """The model as the audit sees it.

    `layers` are the last layers by group, `prior` float64 [nodes] the nodes' logits where all similarities are usual,
    and `box_in` maps a geometry and a cell to the cell's box in the picture of that geometry.
    """

    engine: SupportsRun
    taxonomy: Taxonomy
    table: NoveltyTable
    layers: tuple[GroupLayer, ...]
    prior: NDArray[np.float64]
    grid: tuple[int, int]
    size: tuple[int, int]
    """Height and width of the model's input in pixels."""
    box_in: Callable[[Geometry, int], Box]

    @classmethod
    def of(cls, bundle: Bundle, engine: SupportsRun) -> Subject:
        """Describe a bundle; raises BundleError if it was exported without its last-layer weights."""
        taxonomy, manifest = bundle.taxonomy, bundle.manifest
        children = [taxonomy.index[record.child] for record in manifest.prototypes]
        table = NoveltyTable.of(taxonomy, bundle.kind, children)
        layers = read_last_layers(bundle, table)
        if layers is None:
            raise BundleError(
                f"{bundle.directory}: holds no last-layer weights, so its contributions can't be checked; export the "
                "run again"
            )
        cells = manifest.graph.cells
        return cls(
            engine=engine,
            taxonomy=taxonomy,
            table=table,
            layers=layers.groups,
            prior=np.array([manifest.prior.get(name, 0.0) for name in taxonomy.names]),
            grid=bundle.grid,
            size=(bundle.input.height, bundle.input.width),
            box_in=lambda geometry, cell: geometry.cell_box(cell, cells),
        )

    @property
    def cells(self) -> int:
        """The number of cells of the feature map."""
        return self.grid[0] * self.grid[1]

    def box(self, cell: int) -> Box:
        """Return a cell's box in the model's input: left, top, right, bottom."""
        height, width = self.size
        return self.box_in(Geometry(width, height, width, height, 1.0, 1.0, 0.0, 0.0), cell)

    @cached_property
    def places(self) -> Mapping[int, tuple[int, int]]:
        """The group in which each node competes, and its place among the group's members; a node that competes with no
        other is missing."""
        return {
            node: (number, member)
            for number, group in enumerate(self.table.groups)
            for member, node in enumerate(group.children)
        }

    def contributions(
        self, node: int, similarity: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return all prototypes of a node's group and what each adds to the node's logit, both [n], from the
        similarities [prototypes] of one image: weight × (similarity − usual)."""
        number, member = self.places[node]
        layer = self.layers[number]
        return layer.prototypes, layer.weight[member] * (similarity[layer.prototypes].astype(np.float64) - layer.usual)

    def own_weights(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return every prototype's weight for its own node and its usual similarity, both float64
        [prototypes]."""
        weight, usual = np.zeros((2, len(self.table.prototype_child)))
        for layer in self.layers:
            children = self.table.prototype_child[layer.prototypes].tolist()
            members = [self.places[child][1] for child in children]
            weight[layer.prototypes] = layer.weight[members, np.arange(len(members))]
            usual[layer.prototypes] = layer.usual
        return weight, usual

    def run(self, images: NDArray[np.uint8], advance: Callable[[int], None] = lambda images: None) -> Outputs:
        """Run the graph on any number of images ≥ 1 in batches; calls `advance(images)` after each."""
        parts = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            parts.append(self.engine.run(batch))
            advance(len(batch))
        return Outputs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUT_NAMES})

    def log_probability(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the log-probabilities of all nodes, float64 [images, nodes], at least `LOG_FLOOR`."""
        batches = range(0, len(images), BATCH)
        parts = [self.engine.run(images[start : start + BATCH]).log_probability for start in batches]
        return np.maximum(np.concatenate(parts).astype(np.float64), LOG_FLOOR)


def pieces_of(outputs: Outputs) -> list[Piece]:
    """Return the evidence of every image and level that has any, image by image."""
    pieces = []
    for image, level in np.argwhere(outputs.path >= 0).tolist():
        contributions = outputs.evidence_contribution[image, level]
        shown = (outputs.evidence_prototype[image, level] >= 0) & (contributions > 0)
        if shown.any():
            pieces.append(
                Piece(
                    image=image,
                    level=level + 1,
                    node=int(outputs.path[image, level]),
                    prototypes=outputs.evidence_prototype[image, level][shown],
                    cells=outputs.evidence_cell[image, level][shown],
                    contributions=contributions[shown],
                )
            )
    return pieces


def levels_of(pieces: list[Piece]) -> list[int]:
    """Return the levels at which any image has evidence, in order."""
    return sorted({piece.level for piece in pieces})
