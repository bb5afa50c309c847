"""The fused graph: one module from uint8 pictures to small outputs, written as ONNX and TorchScript."""

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

from protoserve.networks.checkpoint import ExplainedNetwork
from protoserve.networks.head import Explanation

OUTPUTS: tuple[str, ...] = Explanation._fields
OPSET = 20


class ExplainedGraph(nn.Module):
    """uint8 `image` [N, H, W, 3] → the outputs of `PrototypeHead.explain`, in the order of `OUTPUTS`."""

    def __init__(self, network: ExplainedNetwork, top_k: int) -> None:
        super().__init__()
        self.network = network
        self.top_k = top_k

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.explain(image, self.top_k))


def write_onnx(
    graph: nn.Module,
    example: Tensor,
    file: Path,
    metadata: dict[str, str],
    *,
    dynamic: Mapping[int, Any] | None = None,
    outputs: Sequence[str] = OUTPUTS,
) -> None:
    """Write the graph as one ONNX file with `metadata` (text) inside.

    `example` is uint8 [N, H, W, 3]. `dynamic` are the `torch.export.Dim` of the axes that stay open: by default the
    batch alone, for which the example must hold two pictures or more; of an open axis its size leaves no trace.
    """
    import onnx

    if dynamic is None:
        dynamic = {0: torch.export.Dim("batch", min=1)}

    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
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
    """Write the graph as a TorchScript file; `metadata` become extra files inside it."""
    with _quiet(), torch.inference_mode():
        traced = torch.jit.trace(graph, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        buffer = io.BytesIO()
        torch.jit.save(frozen, buffer, _extra_files=dict(metadata))
    file.write_bytes(buffer.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    # Exporters report progress and their own deprecations on the console; the parity gate is the judge.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
