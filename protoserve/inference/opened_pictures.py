"""The pictures that an answer is shown with, opened when somebody looks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.errors import ProtoServeError
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import ImageSource, decode
from protoserve.images.patch_view import patch_view
from protoserve.pages.crops import Pictures


def pictures_of(decoded: DecodedImage, bundle: Model) -> Pictures:
    """Return the pictures for an answer to a decoded picture.

    The patches are close views of the prototypes' training patches; `Pictures.patch` raises BundleError where the
    bundle's folder has changed.
    """
    return Pictures(decoded.picture, lambda prototype: read_patch(bundle, prototype))


def read_patch(bundle: Model, prototype: int) -> bytes:
    """Return a square around a prototype's training patch, as WebP; an autoencoder's prototype is a whole picture.

    Raises BundleError if the bundle's folder has changed since it was opened.
    """
    content = bundle.read_picture(prototype)
    if bundle.kind == "autoencoder":
        return content
    member = bundle.members[bundle.member_of(prototype) or 0] if isinstance(bundle, Ensemble) else bundle
    cells = member.manifest.graph.cells
    row, column = bundle.prototypes[prototype].source_cell
    return patch_view(content, bundle.input, cells, row * cells.columns + column)


def pictures_at_hand(image: ImageSource, sha256: str | None, bundle: Model) -> Callable[[], Pictures | None]:
    """Return a function that opens an answer's pictures, or returns None if the picture is gone or, by its `sha256`,
    another one by now. Patches are left out where the bundle's folder has changed.

    Pixels are referred to weakly, so that a thousand answers don't keep a thousand pictures in memory.
    """
    kept = image if isinstance(image, str | Path | bytes | bytearray | memoryview) else weakref.ref(image)

    def patch(prototype: int) -> bytes | None:
        try:
            return read_patch(bundle, prototype)
        except ProtoServeError:
            return None

    def opened() -> Pictures | None:
        source = kept() if isinstance(kept, weakref.ref) else kept
        if source is None:
            return None
        try:
            decoded = decode(source)
        except ProtoServeError:
            return None
        return Pictures(decoded.picture, patch) if decoded.sha256 == sha256 else None

    return opened
