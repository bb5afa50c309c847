"""Write the global analysis into a run's folder: `analysis.json`, and a strip of patches per prototype.

Patches are cut out when the run finishes, so that the report does not need the data set.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console

from protoserve.cores import usable_cores
from protoserve.data.dataset import Dataset
from protoserve.files import write_bytes, write_text
from protoserve.images.geometry import Cells, InputRule, geometry_of
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import PrototypeSource
from protoserve.run.folder import Run
from protoserve.run.records import AnalysedNode, AnalysedPrototype, Analysis, Patch, PatchSource, Purity
from protoserve.schema import Box
from protoserve.similarity_statistics import SimilarityStatistics
from protoserve.taxonomy import ROOT
from training.progress import tracked
from training.prototypes.nearest_patches import NearestPatches, own_patches

FORMAT = 1
# Side of a tile in pixels, and the side of its image region relative to the patch, so that its surroundings are
# visible.
TILE, CONTEXT = 80, 2.0
# Prototypes to process at once. An image that several of them share is decoded once.
BLOCK = 256


class EarlierPatches(NamedTuple):
    """A prototype of an earlier analysis, and the file with the strip of its patches."""

    prototype: AnalysedPrototype
    strip: Path


def write_patches(
    run: Run,
    head: PrototypeHead,
    fit: Dataset,
    nearest: NearestPatches,
    sources: Sequence[PrototypeSource],
    statistics: SimilarityStatistics,
    *,
    rule: InputRule,
    cells: Cells,
    purity_of: int,
    console: Console,
    earlier: Mapping[int, EarlierPatches] = MappingProxyType({}),
) -> None:
    """Write `analysis.json` (see `Analysis`) and `patches/NNNN.webp`.

    `nearest` holds each prototype's nearest patches in the images of `fit`, found by the stage `analyse`. `sources` are
    the cells that the prototypes were cut from, and `statistics` describe their similarities to all images of `fit`.
    `cells` are those of the feature map. Purity is computed over the `purity_of` nearest patches. Prototypes whose
    nearest patches are those of `earlier` take their strips from there.
    """
    taxonomy = head.taxonomy
    own = own_patches(head, nearest, fit.leaves)
    weight = head.centred_own_weight().tolist()
    purity_of = min(purity_of, own.shape[1])
    (run.directory / "patches").mkdir(exist_ok=True)
    prototypes: list[AnalysedPrototype] = []
    # Decoding, scaling and encoding pictures leave Python's lock to other threads.
    with (
        tracked(console, "pictures of nearest patches", len(sources)) as advance,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        for start in range(0, len(sources), BLOCK):
            block = np.arange(start, min(len(sources), start + BLOCK))
            same = {number: earlier[number] for number in block.tolist() if _is_same(earlier, number, fit, nearest)}
            drawn = block[[number not in same for number in block.tolist()]]
            cut_boxes, cut_tiles = _cut_out(fit, nearest.image[drawn], nearest.cell[drawn], rule, cells, pool)
            boxes = dict(zip(drawn.tolist(), cut_boxes, strict=True))
            strips = dict(zip(drawn.tolist(), pool.map(_strip, cut_tiles), strict=True))
            for number, known in same.items():
                boxes[number] = [patch.box for patch in known.prototype.patches]
                strips[number] = known.strip.read_bytes()
            for prototype in block.tolist():
                child = int(head.grouping.prototype_child[prototype])
                parent = ROOT if head.kind == "flat" else int(taxonomy.parent[child])
                source = sources[prototype]
                write_bytes(run.patches(prototype), strips[prototype])
                patches = [
                    Patch(
                        image=fit.images[image],
                        leaf=taxonomy.names[taxonomy.leaves[fit.leaves[image]]],
                        cell=int(nearest.cell[prototype, rank]),
                        box=boxes[prototype][rank],
                        distance=float(nearest.distance[prototype, rank]),
                        own=bool(own[prototype, rank]),
                    )
                    for rank, image in enumerate(nearest.image[prototype].tolist())
                ]
                prototypes.append(
                    AnalysedPrototype(
                        id=prototype,
                        child=taxonomy.names[child],
                        parent="" if parent == ROOT else taxonomy.names[parent],
                        weight=weight[prototype],
                        source=PatchSource(image=source.image, box=source.box, cell=source.cell),
                        purity=Purity(own=int(own[prototype, :purity_of].sum()), nearest=purity_of),
                        separation=statistics.of_prototype(prototype),
                        patches=patches,
                    )
                )
                advance(1)
    analysis = Analysis(
        format=FORMAT,
        kind=head.kind,
        images=len(fit),
        rows=cells.rows,
        columns=cells.columns,
        tile=TILE,
        nodes=[
            AnalysedNode(name=name, label=node[-1]) for name, node in zip(taxonomy.names, taxonomy.nodes, strict=True)
        ],
        prototypes=prototypes,
    )
    write_text(run.directory / "analysis.json", json.dumps(analysis.model_dump()) + "\n")


def _is_same(earlier: Mapping[int, EarlierPatches], prototype: int, fit: Dataset, nearest: NearestPatches) -> bool:
    """Whether the nearest patches of a prototype are those of the earlier analysis, and their strip is there."""
    if prototype not in earlier or not earlier[prototype].strip.is_file():
        return False
    known = [(patch.image, patch.cell) for patch in earlier[prototype].prototype.patches]
    images = [fit.images[image] for image in nearest.image[prototype].tolist()]
    return known == list(zip(images, nearest.cell[prototype].tolist(), strict=True))


def _cut_out(
    dataset: Dataset,
    image: NDArray[np.int64],
    cell: NDArray[np.int64],
    rule: InputRule,
    cells: Cells,
    pool: Executor,
) -> tuple[list[list[Box]], NDArray[np.uint8]]:
    """The boxes of patches [prototypes, K] in image pixels, and their tiles uint8 [prototypes, K, TILE, TILE, 3].
    Decodes every image once, in the threads of `pool`."""
    boxes: list[list[Box]] = [[(0, 0, 0, 0)] * image.shape[1] for _ in image]
    tiles = np.empty((*image.shape, TILE, TILE, 3), dtype=np.uint8)
    if not len(image):
        return boxes, tiles
    order = np.argsort(image, axis=None, kind="stable")
    images, starts = np.unique(image.reshape(-1)[order], return_index=True)

    def cut_from(image_index: int, patches: NDArray[np.int64]) -> None:
        picture = dataset.picture(image_index).picture
        geometry = geometry_of(picture.width, picture.height, rule)
        for prototype, rank in zip(*np.unravel_index(patches, image.shape), strict=True):
            box = geometry.cell_box(int(cell[prototype, rank]), cells)
            boxes[prototype][rank] = box
            tiles[prototype, rank] = np.asarray(patch_picture(picture, box))

    # Iterating raises what a thread raised.
    for _ in pool.map(cut_from, images.tolist(), np.split(order, starts[1:])):
        pass
    return boxes, tiles


def patch_picture(picture: Image.Image, box: Box) -> Image.Image:
    """A tile of `TILE` × `TILE` pixels that shows the surroundings of `box` (left, top, right, bottom in image pixels)
    and its outline.

    It shows a square inside the picture, which is smaller if the picture is small.
    """
    left, top, right, bottom = box
    side = min(max(1, round(CONTEXT * max(right - left, bottom - top))), *picture.size)
    corner = [
        max(0, min(extent - side, round((low + high - side) / 2)))
        for low, high, extent in ((left, right, picture.width), (top, bottom, picture.height))
    ]
    window = (corner[0], corner[1], corner[0] + side, corner[1] + side)
    tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS, box=window)
    scale = TILE / side
    outline = [
        min(TILE - 1, max(0, round((edge - start) * scale) - (side_index > 1)))
        for side_index, (edge, start) in enumerate(zip(box, (*corner, *corner), strict=True))
    ]
    pen = ImageDraw.Draw(tile)
    pen.rectangle((outline[0], outline[1], outline[2], outline[3]), outline=(0, 0, 0))
    inner = (outline[0] + 1, outline[1] + 1, outline[2] - 1, outline[3] - 1)
    if inner[0] < inner[2] and inner[1] < inner[3]:
        pen.rectangle(inner, outline=(255, 214, 0))
    return tile


def _strip(tiles: NDArray[np.uint8]) -> bytes:
    """The tiles [K, TILE, TILE, 3] side by side, as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(tiles), axis=1)).save(buffer, "WEBP", quality=68, method=4)
    return buffer.getvalue()
