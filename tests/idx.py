"""IDX files, the format of MNIST, for tests."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

# A taxonomy.yaml over the four labels of the fixture `tiny_idx`.
IDX_TREE = """
Bright:
  One: "1"
  Two: "2"
Dark:
  Nought: "0"
Three: "3"
"""


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """The content of an IDX file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
