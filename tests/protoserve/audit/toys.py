"""A model small enough to audit by hand: 32 × 32 pixels, 4 × 4 cells, two classes, four prototypes.

A picture is grey and has a square, one cell large, of its class's colour. Prototypes 0 and 1 belong to Red: the redness
of a cell, and a prototype that is always on. Prototypes 2 and 3 belong to Green: greenness and blueness.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.audit.sample import Sample, other_pictures
from protoserve.audit.subject import Subject
from protoserve.bundle.truth_card import PrototypeFlags
from protoserve.images.geometry import Cells, Geometry, InputRule, geometry_of
from protoserve.inference.engine import Outputs
from protoserve.inference.last_layers import GroupLayer
from protoserve.novelty import NoveltyTable
from protoserve.schema import Box
from protoserve.similarity_statistics import SimilarityStatistics
from protoserve.taxonomy import Taxonomy

Maps = Callable[[NDArray[np.uint8]], NDArray[np.float64]]

SIDE, CELL = 32, 8
GRID: Final = (4, 4)
RULE = InputRule(height=SIDE, width=SIDE, resize="stretch")
TAXONOMY = Taxonomy.from_paths(["Red", "Green"])
CHILDREN = [0, 0, 1, 1]
# Centred: the columns sum to 0.
WEIGHT = np.array([[4.0, 1.0, -4.0, -1.0], [-4.0, -1.0, 4.0, 1.0]])
USUAL = np.array([0.25, 1.0, 0.25, 0.0])
PRIOR = np.array([0.5, -0.5])
GREY = 100
# Statistics by which prototypes 0 and 2 tell their class, and 1 and 3 are always on.
STATISTICS = SimilarityStatistics(
    usual=USUAL, own=np.array([0.5, 1.0, 0.5, 0.0]), siblings=np.array([0.0, 1.0, 0.0, 0.0]), deviation=np.full(4, 0.1)
)
FLAGS = PrototypeFlags(prototypes=4, telling=2, always_on=[1, 3], border=[], duplicates=[], split="train", images=10)


def of_cells(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean colour of every cell in 0..1: float64 [images, 4, 4, 3]."""
    return np.asarray(images.reshape(-1, 4, CELL, 4, CELL, 3).mean(axis=(2, 4)) / 255)


def local_maps(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The similarities of all prototypes at all cells, float64 [images, 4, 4, 4]; each depends on its cell alone."""
    red, green, blue = np.moveaxis(of_cells(images), 3, 0)
    on = np.ones_like(red)
    maps = [np.maximum(red - green, 0), on, np.maximum(green - red, 0), np.maximum(blue - green, 0)]
    return np.stack(maps, axis=1)


@dataclass(frozen=True)
class ToyEngine:
    """Has the interface of `Engine`; `maps` are the similarities, `stated` changes the outputs before they are
    returned."""

    maps: Maps = local_maps
    stated: Callable[[Outputs], Outputs] = lambda outputs: outputs

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Answer as an exported graph would."""
        maps = self.maps(images).astype(np.float32)
        count = len(images)
        flat = maps.reshape(count, 4, -1)
        similarity, cell = flat.max(axis=2), flat.argmax(axis=2)
        logit = PRIOR + (similarity - USUAL) @ WEIGHT.T
        log_probability = logit - np.logaddexp(logit[:, :1], logit[:, 1:])
        path = logit.argmax(axis=1)
        contribution = WEIGHT[path] * (similarity - USUAL)
        rows = np.arange(count)[:, None]
        found: dict[str, Any] = {}
        for kind, order in (("evidence", np.argsort(-contribution)), ("against", np.argsort(contribution))):
            found |= {
                f"{kind}_prototype": order[:, None],
                f"{kind}_similarity": similarity[rows, order][:, None],
                f"{kind}_weight": WEIGHT[path][rows, order][:, None].astype(np.float32),
                f"{kind}_contribution": contribution[rows, order][:, None].astype(np.float32),
                f"{kind}_cell": cell[rows, order][:, None],
            }
        return self.stated(
            Outputs(
                log_probability=log_probability.astype(np.float32),
                logit=logit.astype(np.float32),
                path=path[:, None],
                evidence_map=maps[rows, found["evidence_prototype"][:, 0]][:, None],
                similarity=similarity,
                cell=cell,
                positive_contribution=np.maximum(contribution, 0).sum(axis=1, keepdims=True).astype(np.float32),
                **found,
            )
        )


def cell_box(geometry: Geometry, cell: int) -> Box:
    """The box of a cell, as a bundle states it."""
    return geometry.cell_box(cell, Cells(*GRID))


def subject(engine: ToyEngine | None = None, box_in: Callable[[Geometry, int], Box] = cell_box) -> Subject:
    """The toy model as the audit sees it."""
    return Subject(
        engine=engine or ToyEngine(),
        taxonomy=TAXONOMY,
        table=NoveltyTable.of(TAXONOMY, "hierarchical", CHILDREN),
        layers=(GroupLayer(np.arange(4), WEIGHT, USUAL),),
        prior=PRIOR,
        grid=GRID,
        size=(SIDE, SIDE),
        box_in=box_in,
    )


def picture(leaf: int, cell: int, strength: int = 155) -> NDArray[np.uint8]:
    """A grey picture with a square of the leaf's colour at a cell: uint8 [32, 32, 3]."""
    array = np.full((SIDE, SIDE, 3), GREY, dtype=np.uint8)
    row, column = divmod(cell, 4)
    array[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL, leaf] = GREY + strength
    return array


def sample(count: int = 12, arrays: NDArray[np.uint8] | None = None) -> Sample:
    """Pictures of both leaves in turn; the square of picture i is at cell (5 · i + 1) mod 16."""
    if arrays is None:
        arrays = np.stack([picture(image % 2, square_of(image)) for image in range(count)])
    leaves = np.arange(len(arrays)) % 2
    return Sample(
        names=tuple(f"test/{TAXONOMY.names[leaf]}/{image}.png" for image, leaf in enumerate(leaves.tolist())),
        arrays=arrays,
        geometries=(geometry_of(SIDE, SIDE, RULE),) * len(arrays),
        leaves=leaves,
        others=other_pictures(leaves, seed=0),
    )


def square_of(image: int) -> int:
    """The cell of a picture's square."""
    return (5 * image + 1) % 16


def with_shifted_cells(outputs: Outputs) -> Outputs:
    """A lie: every piece of evidence is stated two columns to the right, around the edge."""
    return replace(outputs, evidence_cell=_shifted(outputs.evidence_cell), cell=_shifted(outputs.cell))


def _shifted(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    return cells // 4 * 4 + (cells % 4 + 2) % 4


def with_shuffled_contributions(outputs: Outputs) -> Outputs:
    """A lie: the contributions of a level are stated for the wrong prototypes, each for the next."""
    return replace(outputs, evidence_prototype=np.roll(outputs.evidence_prototype, 1, axis=2))
