"""The target for phones and boards with PyTorch's edge runtime: an ExecuTorch program."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.parity import Runtime
from protoserve.errors import MissingExtraError
from protoserve.graph_signature import OUTPUT_NAMES


def write_executorch(graph: torch.nn.Module, example: Tensor, file: Path, metadata: Mapping[str, str]) -> None:
    """Write the graph as an ExecuTorch program (.pte) for pictures of the `example`'s shape.

    XNNPACK runs the operators that it supports, ExecuTorch's portable kernels the rest. The format has no metadata, so
    each entry of `metadata` becomes a method of the program that returns its text (UTF-8) as a uint8 tensor.

    Raises MissingExtraError if ExecuTorch is not installed.
    """
    with _executorch(), torch.inference_mode():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.export(graph, (example,), strict=False)
        texts = {name: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for name, text in metadata.items()}
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=texts)
        file.write_bytes(lowered.to_executorch().buffer)


def run_executorch(file: Path) -> Runtime:
    """Open an ExecuTorch program in its runtime, on the CPU.

    Raises MissingExtraError if ExecuTorch is not installed.
    """
    with _executorch():
        from executorch.runtime import Runtime as ExecuTorch

        method = ExecuTorch.get().load_program(file).load_method("forward")

    def run(pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        outputs = method.execute([torch.from_numpy(np.ascontiguousarray(pictures))])
        # The next call overwrites this memory.
        return {name: output.numpy().copy() for name, output in zip(OUTPUT_NAMES, outputs, strict=True)}

    return run


def stored_text(file: Path, name: str) -> str:
    """Read an entry of the program's metadata; raises MissingExtraError if ExecuTorch is not installed."""
    with _executorch():
        from executorch.runtime import Runtime as ExecuTorch

        [text] = ExecuTorch.get().load_program(file).load_method(name).execute([])
    return bytes(text.numpy()).decode()


@contextmanager
def _executorch() -> Iterator[None]:
    """Silence ExecuTorch's logs and warnings; turn a failed import into MissingExtraError."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise MissingExtraError("the target executorch", "targets") from error
    finally:
        logging.disable(level)
