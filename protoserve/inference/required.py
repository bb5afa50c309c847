"""Required prototypes: a picture is known as their node only where they are found (see `protoserve.bundle.curation`).

The graph's numbers stay as they are; only what is called known changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Requirement(NamedTuple):
    """A picture is known as `node` only where it is more similar to `prototype` than `usual`."""

    node: int
    prototype: int
    usual: float


def known_with_required(
    known: NDArray[np.bool_] | None,
    path: NDArray[np.int64],
    similarity: NDArray[np.floating[Any]],
    requirements: Sequence[Requirement],
) -> NDArray[np.bool_]:
    """Return whether each picture is known at each level of its `path` int64 [images, levels]: bool [images, levels].

    `known` says so without the requirements (None: everywhere on the path); `similarity` [images, prototypes] are the
    graph's. What is not known at a level is not known below it.
    """
    found = path >= 0 if known is None else known.copy()
    for requirement in requirements:
        missing = similarity[:, requirement.prototype] <= requirement.usual
        found &= ~(missing[:, None] & (path == requirement.node))
    return np.asarray(np.logical_and.accumulate(found, axis=1))
