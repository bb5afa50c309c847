"""The exported graphs: one module from uint8 pictures to the declared outputs, written as ONNX or TorchScript."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protoserve.graph_signature import INPUT, OUTPUT_NAMES, SEARCH_OUTPUT_NAMES, named_arrays
from protoserve.networks.fused_head import FusedHead
from protoserve.networks.model_file import ExplainedNetwork
from protoserve.networks.routed_head import TRUNK, RoutedHead

# The lowest operator set that torch's exporter writes without a conversion.
OPSET = 18


class ExplainedGraph(nn.Module):
    """Maps uint8 `image` [N, H, W, 3] to the fields of `Explanation`, in their order.

    `example` uint8 [N, H, W, 3] has the graph's picture size.
    """

    def __init__(self, network: ExplainedNetwork, top_k: int, example: Tensor) -> None:
        super().__init__()
        self.network = network
        with torch.inference_mode():
            rows, columns = self._latent(example[:1]).shape[2:]
        self.head = FusedHead(network.head, top_k, cells=rows * columns)

    def _latent(self, image: Tensor) -> Tensor:
        return self.network.latent(self.network.features(image))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_arrays(self.head(self._latent(image))).values())


class RoutedGraph(nn.Module):
    """Maps uint8 `image` [N, H, W, 3] to the fields of `RoutedSearch`, in their order.

    The graph expands `width` nodes per level below a trunk of at most `trunk` prototypes; see `RoutedHead`.
    """

    def __init__(self, network: ExplainedNetwork, top_k: int, width: int, trunk: int = TRUNK) -> None:
        super().__init__()
        self.network = network
        self.head = RoutedHead(network.head, top_k, width, trunk)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_arrays(self.head(self.network.latent(self.network.features(image)))).values())


def write_onnx(
    graph: nn.Module,
    example: Tensor,
    file: Path,
    metadata: dict[str, str],
    *,
    dynamic: Mapping[int, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> None:
    """Write the graph as one ONNX file that contains `metadata` (names and texts).

    `example` is uint8 [N, H, W, 3]. `dynamic` maps each dynamic axis to its `torch.export.Dim`; by default only the
    batch is dynamic, which needs an example of at least two pictures. `outputs` are the names of the graph's outputs,
    by default those of an explained or routed graph.
    """
    import onnx

    if dynamic is None:
        dynamic = {0: torch.export.Dim("batch", min=1)}
    if outputs is None:
        outputs = SEARCH_OUTPUT_NAMES if isinstance(graph, RoutedGraph) else OUTPUT_NAMES

    with quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=(dict(dynamic),) if dynamic else None,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only the legacy exporter returns nothing
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(file))


def write_torchscript(graph: nn.Module, example: Tensor, file: Path, metadata: dict[str, str]) -> None:
    """Write the graph as a TorchScript file; each entry of `metadata` becomes an extra file inside it."""
    with quiet(), torch.inference_mode():
        traced = torch.jit.trace(graph, (example,), check_trace=False)
        frozen = torch.jit.freeze(traced)
        buffer = io.BytesIO()
        torch.jit.save(frozen, buffer, _extra_files=dict(metadata))
    file.write_bytes(buffer.getvalue())


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which print progress and their own deprecations; the parity gate judges the file."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
