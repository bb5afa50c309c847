"""Evidence before and after the pixels outside its box are replaced, in pictures as senders send them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.parity import Runtime
from protoserve.bundle.folder import Bundle
from protoserve.images.decoding import decode
from protoserve.images.fitting import FittedImage, fit
from protoserve.images.geometry import InputRule

# An upright picture, uint8 [height, width, 3], and the EXIF orientation in which it is stored.
Sent: TypeAlias = tuple[NDArray[np.uint8], int]
# The transposition that stores an upright picture in each orientation.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def received(upright: NDArray[np.uint8], orientation: int, rule: InputRule) -> FittedImage:
    """The picture as the graph gets it from a PNG that EXIF turns upright."""
    picture = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored = picture.transpose(STORED[orientation]) if orientation in STORED else picture
    stored.save(stream, "PNG", exif=exif, compress_level=1)
    decoded = decode(stream.getvalue())
    assert (decoded.height, decoded.width) == upright.shape[:2]
    return fit(decoded, rule)


def changes_at_evidence(
    bundle: Bundle, run: Runtime, rule: InputRule, pictures: Iterable[Sent], *, inside: bool = False
) -> Iterator[tuple[float, float]]:
    """For every prototype that competes at the root, in every picture: how much its similarity at its best cell
    changes, and how much its greatest similarity falls, after all pixels outside its box (or inside) are replaced at
    random. The bundle must return all these prototypes as evidence."""
    graph = bundle.manifest.graph
    roots = [record.id for record in bundle.prototypes if record.parent == ""]
    generator = np.random.default_rng(1)
    for upright, orientation in pictures:
        before = received(upright, orientation, rule)
        outputs = run(before.array[None])
        prototypes, cells = (outputs[f"evidence_{name}"][0, 0].tolist() for name in ("prototype", "cell"))
        assert sorted(number for number in prototypes if number >= 0) == roots
        replaced = []
        for cell in cells[: len(roots)]:
            left, top, right, bottom = before.geometry.cell_box(cell, graph.cells)
            box = np.zeros((*upright.shape[:2], 1), dtype=bool)
            box[top:bottom, left:right] = True
            noise = generator.integers(0, 256, upright.shape, dtype=np.uint8)
            replaced.append(received(np.where(box == inside, noise, upright), orientation, rule).array)
        after = run(np.stack(replaced))
        for piece, (prototype, cell) in enumerate(zip(prototypes[: len(roots)], cells, strict=False)):
            place = after["evidence_prototype"][piece, 0].tolist().index(prototype)
            found = after["evidence_map"][piece, 0, place].flat[cell]
            expected = outputs["evidence_map"][0, 0, piece].flat[cell]
            fall = outputs["similarity"][0, prototype] - after["similarity"][piece, prototype]
            yield abs(float(found - expected)), float(fall)
