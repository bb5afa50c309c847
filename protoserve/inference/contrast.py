"""Why not X? The predicted path and the path to another node, compared where they part.

The two nodes compete in one softmax. Their logits are sums over the same prototypes, so their difference is one, too:

    logit(a) − logit(b) = prior(a) − prior(b) + Σ (weight(a) − weight(b)) · (similarity − usual similarity)

It needs nothing but a graph's similarities and the last layer, so the network does not run again.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from protoserve.inference.engine import Outputs
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.last_layers import HostEvidence
from protoserve.inference.options import ResolvedOptions, required_switches
from protoserve.inference.places import Places
from protoserve.schema import Contrast, ContrastEvidence, ContrastNode
from protoserve.taxonomy import Taxonomy


def contrast_with(
    outputs: Outputs, image: int, table: EvidenceTable, places: Places, options: ResolvedOptions
) -> Contrast | None:
    """Compare an image's predicted path with the path to the node `options.contrast`; None if it is None."""
    if options.contrast is None:
        return None
    evidence, taxonomy = required_switches(table).evidence, table.bundle.taxonomy
    asked = table.names[options.contrast]
    predicted, other = outputs.path[image], taxonomy.path_at_level[options.contrast]
    apart = np.flatnonzero((predicted != other) & (other >= 0))
    if not len(apart):
        return Contrast(node=asked, relation="predicted")
    level = int(apart[0])
    if predicted[level] < 0:
        return Contrast(node=asked, relation="below")
    ours, theirs = int(predicted[level]), int(other[level])
    log_probability = outputs.log_probability[image]
    if table.bundle.kind != "hierarchical":
        ours = int(predicted[predicted >= 0][-1])
        theirs = _most_probable_leaf(log_probability, options.contrast, taxonomy)
    shown, missing = _pieces(outputs, image, evidence, (ours, theirs), table, options.top_k)
    logit_difference = float(outputs.logit[image, ours]) - float(outputs.logit[image, theirs])
    prior_difference = table.prior[ours] - table.prior[theirs]
    told = sum(difference for _, _, difference in (*shown, *missing))

    def record(piece: tuple[int, float, float]) -> ContrastEvidence:
        prototype, contribution, difference = piece
        known = table.prototypes[prototype]
        similarity, usual = float(outputs.similarity[image, prototype]), known.usual or 0.0
        place = places.of(prototype, int(outputs.cell[image, prototype]))
        return ContrastEvidence(
            prototype=prototype,
            child=known.child,
            similarity=similarity,
            usual=usual,
            found=similarity > usual,
            predicted=contribution,
            instead=contribution - difference,
            difference=difference,
            member=place.member,
            box=place.box,
            seen=place.seen,
            source=place.source,
        )

    return Contrast(
        node=asked,
        relation="beside",
        level=level + 1,
        predicted=table.names[ours],
        instead=table.names[theirs],
        logit_difference=logit_difference,
        prior_difference=prior_difference,
        rest=logit_difference - prior_difference - told,
        evidence=[record(piece) for piece in shown],
        missing=[record(piece) for piece in missing],
        path=_rest_of_path(log_probability, other, level, table),
    )


def _pieces(
    outputs: Outputs,
    image: int,
    evidence: HostEvidence,
    nodes: tuple[int, int],
    table: EvidenceTable,
    top_k: int,
) -> tuple[list[tuple[int, float, float]], list[tuple[int, float, float]]]:
    """Return what tells two competing `nodes` apart: prototype, contribution to the first, and how much more that is
    than to the second. The second list holds prototypes of the second node that were not found, the first all others;
    each at most `top_k`, the largest difference first."""
    layer = evidence.layer_of(nodes[0])
    unusual = outputs.similarity[image, layer.prototypes].astype(np.float64) - layer.usual
    ours, theirs = (layer.weight[evidence.member_of[node]] for node in nodes)
    contribution, difference = ours * unusual, (ours - theirs) * unusual
    absent = (table.child[layer.prototypes] == nodes[1]) & (unusual <= 0)
    order = np.argsort(-np.abs(difference), kind="stable")

    def told(wanted: NDArray[np.bool_]) -> list[tuple[int, float, float]]:
        best = order[wanted[order]][:top_k]
        rows = layer.prototypes[best].tolist(), contribution[best].tolist(), difference[best].tolist()
        return list(zip(*rows, strict=True))

    return told(~absent), told(absent)


def _most_probable_leaf(log_probability: NDArray[np.float32], node: int, taxonomy: Taxonomy) -> int:
    leaves = taxonomy.leaf_nodes
    level = len(taxonomy.nodes[node]) - 1
    below = leaves[taxonomy.path_at_level[leaves, level] == node]
    return int(below[log_probability[below].argmax()])


def _rest_of_path(
    log_probability: NDArray[np.float32], path: NDArray[np.int64], level: int, table: EvidenceTable
) -> list[ContrastNode]:
    above = float(log_probability[path[level - 1]]) if level else 0.0
    rest = []
    for depth, node in enumerate(path[path >= 0].tolist()[level:], level + 1):
        value = float(log_probability[node])
        # Nothing is left to share below a node of probability 0.
        conditional = 0.0 if math.isinf(above) else math.exp(min(value - above, 0.0))
        rest.append(
            ContrastNode(
                level=depth,
                node=table.names[node],
                label=table.nodes[node][-1],
                probability=math.exp(min(value, 0.0)),
                conditional=1.0 if table.forced[node] else conditional,
            )
        )
        above = value
    return rest
