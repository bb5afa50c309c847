"""Switches prototypes off in an ONNX file of the full graph, without the network.

All that the graph computes from a prototype goes through its output `similarity`: logits, contributions and the order
of evidence. One operator behind that output, Where(off, usual, measured), therefore does what
`protoserve.networks.head.PrototypeHead.switch_off` does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import InputError

SIMILARITY: Final = "similarity"
_MEASURED: Final = "similarity.measured"
_OFF: Final = "similarity.off"
_USUAL: Final = "similarity.usual"


def switch_off(model: Any, prototypes: Collection[int], usual: NDArray[np.float32]) -> None:
    """Let exactly these prototypes have their `usual` similarity, float32 [prototypes], in an `onnx.ModelProto`.

    Those that were off before are on again if they are not among `prototypes`. Raises InputError for a graph without
    the output `similarity`, as a routed one.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    producer = next((node for node in graph.node if SIMILARITY in node.output), None)
    if producer is None:
        raise InputError("the graph has no output 'similarity', so no prototype of it can be switched off")
    if _is_switch(producer, graph, len(usual)):
        # Only the switch's own output has consumers, so the measured values can take its name.
        _, _, measured = producer.input
        graph.node.remove(producer)
        producer = next(node for node in graph.node if measured in node.output)
        _rename(producer.output, measured, SIMILARITY)
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    if prototypes:
        off = np.zeros(len(usual), dtype=np.bool_)
        off[list(prototypes)] = True
        _rename(producer.output, SIMILARITY, _MEASURED)
        switch = helper.make_node("Where", [_OFF, _USUAL, _MEASURED], [SIMILARITY], name="switch_off")
        graph.node.insert(list(graph.node).index(producer) + 1, switch)
        graph.initializer.append(numpy_helper.from_array(off, _OFF))
        graph.initializer.append(numpy_helper.from_array(np.asarray(usual, dtype=np.float32), _USUAL))


def _is_switch(node: Any, graph: Any, prototypes: int) -> bool:
    """Whether a node is Where(off, usual, measured) with `off` a constant over the prototypes, as we or the exporter
    write it."""
    from onnx import TensorProto

    constants = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.BOOL and int(np.prod(tensor.dims)) == prototypes
    }
    return bool(node.op_type == "Where" and node.input[0] in constants)


def _rename(names: Any, old: str, new: str) -> None:
    names[list(names).index(old)] = new
