"""What a finished run keeps of its global analysis: `analysis.json`, and a strip of small pictures per prototype.

The report needs the run alone; so the patches are cut out while the data set is at hand.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from protoserve.files import write_bytes, write_text
from protoserve.images.geometry import geometry_of
from protoserve.networks.model_file import PrototypeSource
from protoserve.run.folder import Run
from protoserve.schema import Box
from protoserve.taxonomy import ROOT
from training.loop.trainer import Trainer
from training.progress import tracked
from training.prototypes.nearest_patches import NearestPatches, own_patches, own_weights
from training.stages.autoencoder import AutoencoderTrainer

FORMAT = 1
# Pixels of a patch's picture, and how many times the patch's own side it shows, so that one sees where it lies.
TILE, CONTEXT = 80, 2.0
# Prototypes whose pictures are in memory at once; an image that several of them share is then decoded once.
BLOCK = 256


def write_patches(trainer: Trainer | AutoencoderTrainer, run: Run, sources: list[PrototypeSource]) -> None:
    """Write `analysis.json` and `patches/NNNN.webp` from what the stage `analyse` found.

    `analysis.json` holds per prototype its child and parent, the weight between it and its child, how many of its
    nearest patches are of its class, and the patches, nearest first: image, leaf, cell, box in the image's pixels,
    squared distance, and whether the patch is of the prototype's class.
    """
    head, fit, kept = trainer.prototype_network.head, trainer.splits.fit, trainer.state.kept
    taxonomy = head.taxonomy
    found = NearestPatches(*(kept[f"patch_{name}"].cpu().numpy() for name in NearestPatches._fields))
    own = own_patches(head, found, fit.leaves)
    weight = own_weights(head).cpu().tolist()
    purity_of = min(trainer.config.prune.nearest, own.shape[1])
    rows, columns = sources[0].rows, sources[0].columns
    (run.directory / "patches").mkdir(exist_ok=True)
    prototypes: list[dict[str, Any]] = []
    with tracked(trainer.console, "pictures of nearest patches", len(sources)) as advance:
        for start in range(0, len(sources), BLOCK):
            block = np.arange(start, min(len(sources), start + BLOCK))
            boxes, tiles = _cut_out(trainer, found.image[block], found.cell[block], rows, columns)
            for place, number in enumerate(block.tolist()):
                child = int(head.prototype_child[number])
                parent = ROOT if head.kind == "flat" else int(taxonomy.parent[child])
                write_bytes(run.patches(number), _strip(tiles[place]))
                prototypes.append(
                    {
                        "id": number,
                        "child": taxonomy.names[child],
                        "parent": "" if parent == ROOT else taxonomy.names[parent],
                        "weight": weight[number],
                        "source": {"image": sources[number].image, "box": list(sources[number].box)},
                        "purity": {"own": int(own[number, :purity_of].sum()), "nearest": purity_of},
                        "patches": [
                            {
                                "image": fit.images[image],
                                "leaf": taxonomy.names[taxonomy.leaves[fit.leaves[image]]],
                                "cell": int(found.cell[number, rank]),
                                "box": list(boxes[place][rank]),
                                "distance": float(found.distance[number, rank]),
                                "own": bool(own[number, rank]),
                            }
                            for rank, image in enumerate(found.image[number].tolist())
                        ],
                    }
                )
                advance(1)
    content = {
        "format": FORMAT,
        "kind": head.kind,
        "images": len(fit),
        "rows": rows,
        "columns": columns,
        "tile": TILE,
        "nodes": [{"name": name, "label": node[-1]} for name, node in zip(taxonomy.names, taxonomy.nodes, strict=True)],
        "prototypes": prototypes,
    }
    write_text(run.directory / "analysis.json", json.dumps(content) + "\n")


def _cut_out(
    trainer: Trainer | AutoencoderTrainer, image: NDArray[np.int64], cell: NDArray[np.int64], rows: int, columns: int
) -> tuple[list[list[Box]], NDArray[np.uint8]]:
    """The boxes of patches [prototypes, K] in their images' pixels, and their pictures uint8 [prototypes, K, TILE,
    TILE, 3]; every image is decoded once."""
    boxes: list[list[Box]] = [[(0, 0, 0, 0)] * image.shape[1] for _ in image]
    tiles = np.empty((*image.shape, TILE, TILE, 3), dtype=np.uint8)
    order = np.argsort(image, axis=None, kind="stable")
    numbers, starts = np.unique(image.reshape(-1)[order], return_index=True)
    for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        picture = trainer.splits.fit.picture(number).picture
        geometry = geometry_of(picture.width, picture.height, trainer.config.image)
        for prototype, rank in zip(*np.unravel_index(places, image.shape), strict=True):
            box = geometry.cell_box(int(cell[prototype, rank]), rows, columns, trainer.config.model.smoothing)
            boxes[prototype][rank] = box
            tiles[prototype, rank] = np.asarray(patch_picture(picture, box))
    return boxes, tiles


def patch_picture(picture: Image.Image, box: Box) -> Image.Image:
    """A square of `TILE` pixels around `box` (left, top, right, bottom in the picture's pixels), which is outlined. It
    shows a part of the picture that lies inside it, and less of it where the picture is small."""
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
        min(TILE - 1, max(0, round((edge - start) * scale) - (place > 1)))
        for place, (edge, start) in enumerate(zip(box, (*corner, *corner), strict=True))
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
