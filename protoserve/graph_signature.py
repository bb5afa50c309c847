"""The input and the outputs of the exported graphs, declared once.

The heads return these declarations with tensors, the engines with NumPy arrays. The exporter's output names, the
comparison with the network and the engines' checks are derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Final, Generic, TypeVar, get_args, get_type_hints

FloatArray = TypeVar("FloatArray")
IntegerArray = TypeVar("IntegerArray")
BooleanArray = TypeVar("BooleanArray")

INPUT: Final = "image"

# What the picture resembles less than usual counts this share of its contribution in the order of evidence: its best
# cell shows nothing, so what was found comes first unless it adds next to nothing.
MISSING_RANK: Final = 0.01

# The types of ONNX.
_DTYPES: Final = {FloatArray: "float", IntegerArray: "int64", BooleanArray: "bool"}
_NODES: Final = ("images", "nodes")
_LEVELS: Final = ("images", "levels")
_EVIDENCE: Final = (*_LEVELS, "evidence")
_MAPS: Final = (*_EVIDENCE, "rows", "columns")
_PROTOTYPES: Final = ("images", "prototypes")


@dataclass(frozen=True)
class Explanation(Generic[FloatArray, IntegerArray]):
    """The outputs of the full graph, in their order. A cell's index is `row * columns + column`."""

    log_probability: Annotated[FloatArray, _NODES]
    """Natural logarithm of every node's unconditional probability, in the taxonomy's node order."""
    logit: Annotated[FloatArray, _NODES]
    """The node's prior plus the contributions of all its prototypes; 0 for a node that competes with no other. The mean
    over the nodes that compete is 0."""
    path: Annotated[IntegerArray, _LEVELS]
    """The predicted node of every level; −1 below the level of the most probable leaf."""
    evidence_prototype: Annotated[IntegerArray, _EVIDENCE]
    """Prototypes by decreasing contribution to the level's node, where one that is less similar than usual counts
    `MISSING_RANK` of its contribution; −1 if there are no more."""
    evidence_similarity: Annotated[FloatArray, _EVIDENCE]
    """Their highest similarities over the cells; 0 if there is no prototype."""
    evidence_weight: Annotated[FloatArray, _EVIDENCE]
    """Their weights for the level's node, less their mean over the nodes that compete with it; 0 where there is no
    prototype."""
    evidence_contribution: Annotated[FloatArray, _EVIDENCE]
    """Weight × (similarity − the prototype's usual similarity); 0 if there is no prototype."""
    evidence_cell: Annotated[IntegerArray, _EVIDENCE]
    """The cell of the highest similarity; −1 if there is no prototype."""
    evidence_map: Annotated[FloatArray, _MAPS]
    """The similarity at every cell; 0 if there is no prototype."""
    similarity: Annotated[FloatArray, _PROTOTYPES]
    """Every prototype's highest similarity over the cells."""
    cell: Annotated[IntegerArray, _PROTOTYPES]
    """The cell of that similarity."""
    positive_contribution: Annotated[FloatArray, _LEVELS]
    """The sum of all positive contributions to the level's node; 0 if there is no node or it has no prototypes."""
    against_prototype: Annotated[IntegerArray, _EVIDENCE]
    """Prototypes by rising contribution to the level's node, in the same order turned round, so that the strongest
    evidence against it comes first; −1 if there are no more."""
    against_similarity: Annotated[FloatArray, _EVIDENCE]
    against_weight: Annotated[FloatArray, _EVIDENCE]
    against_contribution: Annotated[FloatArray, _EVIDENCE]
    against_cell: Annotated[IntegerArray, _EVIDENCE]


@dataclass(frozen=True)
class RoutedExplanation(Generic[FloatArray, IntegerArray, BooleanArray]):
    """The answer of a routed graph: the outputs of `Explanation`, for the predicted path only."""

    certain: Annotated[BooleanArray, ("images",)]
    """Whether the certificate holds: no leaf outside the scored branches can be more probable."""
    path: Annotated[IntegerArray, _LEVELS]
    """The predicted node of every level; −1 below the level of the most probable leaf."""
    path_log_probability: Annotated[FloatArray, _LEVELS]
    """Natural logarithms of the unconditional probabilities of the path's nodes; 0 if there is no node."""
    path_logit: Annotated[FloatArray, _LEVELS]
    """Their priors plus the contributions of their prototypes; 0 if there is no node."""
    evidence_prototype: Annotated[IntegerArray, _EVIDENCE]
    evidence_similarity: Annotated[FloatArray, _EVIDENCE]
    evidence_weight: Annotated[FloatArray, _EVIDENCE]
    evidence_contribution: Annotated[FloatArray, _EVIDENCE]
    evidence_cell: Annotated[IntegerArray, _EVIDENCE]
    evidence_map: Annotated[FloatArray, _MAPS]
    positive_contribution: Annotated[FloatArray, _LEVELS]
    against_prototype: Annotated[IntegerArray, _EVIDENCE]
    against_similarity: Annotated[FloatArray, _EVIDENCE]
    against_weight: Annotated[FloatArray, _EVIDENCE]
    against_contribution: Annotated[FloatArray, _EVIDENCE]
    against_cell: Annotated[IntegerArray, _EVIDENCE]


@dataclass(frozen=True)
class RoutedSearch(RoutedExplanation[FloatArray, IntegerArray, BooleanArray]):
    """All outputs of a routed graph, in their order: the answer, and what the search for it has scored.

    Routed graphs of older versions lack the outputs of this class.
    """

    path_similarity: Annotated[FloatArray, ("images", "levels", "slots")]
    """The highest similarities over the cells of the prototypes among which the level's node and its siblings compete,
    in the order of their numbers; past these prototypes, any number."""
    scored_node: Annotated[IntegerArray, ("images", "scored")]
    """The nodes whose probabilities were computed; the number of nodes for padding."""
    scored_log_probability: Annotated[FloatArray, ("images", "scored")]
    """Natural logarithms of their unconditional probabilities; in the padding, any number."""
    unscored_bound: Annotated[FloatArray, _LEVELS]
    """No other node of the level has a greater natural logarithm of its probability; −1e30 where all were scored."""


@dataclass(frozen=True)
class GraphOutput:
    """One output: its name, its ONNX type (`float`, `int64`, `bool`) and the names of its dimensions."""

    name: str
    dtype: str
    dimensions: tuple[str, ...]


def _declared(declaration: type[Any]) -> tuple[GraphOutput, ...]:
    hints = get_type_hints(declaration, include_extras=True)
    outputs = []
    for field in fields(declaration):
        array, dimensions = get_args(hints[field.name])
        outputs.append(GraphOutput(field.name, _DTYPES[array], dimensions))
    return tuple(outputs)


OUTPUTS: Final = _declared(Explanation)
ROUTED_OUTPUTS: Final = _declared(RoutedExplanation)
SEARCH_OUTPUTS: Final = _declared(RoutedSearch)
OUTPUT_NAMES: Final = tuple(output.name for output in OUTPUTS)
ROUTED_OUTPUT_NAMES: Final = tuple(output.name for output in ROUTED_OUTPUTS)
SEARCH_OUTPUT_NAMES: Final = tuple(output.name for output in SEARCH_OUTPUTS)
_NAMES: Final = frozenset((*OUTPUT_NAMES, *SEARCH_OUTPUT_NAMES))
# The graphs of bundles of format 1 lack these; the engine computes them.
OUTPUTS_OF_FORMAT_2: Final = frozenset(name for name in OUTPUT_NAMES if name.startswith(("against_", "positive_")))


def named_arrays(answer: Explanation[Any, Any] | RoutedExplanation[Any, Any, Any]) -> dict[str, Any]:
    """Map the names of the graph's outputs, in their order, to the arrays or tensors of an answer."""
    return {field.name: getattr(answer, field.name) for field in fields(answer) if field.name in _NAMES}
