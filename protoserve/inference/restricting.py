"""Applies a request's restriction to the outputs of a graph: other probabilities and perhaps another path, the same
logits. What the graph did not say about a node of the new path comes from the last layers on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import Bundle
from protoserve.inference.engine import Outputs
from protoserve.inference.last_layers import GroupLayer, HostEvidence, MemberLayers, read_last_layers
from protoserve.novelty import NoveltyTable, parent_names
from protoserve.restriction import Restriction

# A restriction is contradicted if the network gives more than this to what it excludes.
CONTRADICTED = 0.5


def host_evidence(model: Model) -> HostEvidence | None:
    """Make the evidence of a bundle or an ensemble from the similarities of its outputs; None for a bundle that was
    exported without its last-layer weights.

    An ensemble's outputs hold the similarities of all members one after the other, and its logits are divided by their
    temperatures. So its members' last layers are joined to those of one network.
    """
    taxonomy = model.taxonomy
    members = model.members if isinstance(model, Ensemble) else (model,)
    starts = model.first_prototypes if isinstance(model, Ensemble) else (0,)
    table = NoveltyTable.of(taxonomy, model.kind, ())
    layers = [
        _layers(member, table, start, isinstance(model, Ensemble))
        for member, start in zip(members, starts, strict=True)
    ]
    if any(layer is None for layer in layers):
        return None
    known = [layer for layer in layers if layer is not None]
    groups = tuple(
        GroupLayer(
            np.concatenate([layer.prototypes for layer in parts]),
            np.concatenate([layer.weight for layer in parts], axis=1),
            np.concatenate([layer.usual for layer in parts]),
        )
        for parts in zip(*known, strict=True)
    )
    return HostEvidence(taxonomy, table, [MemberLayers(groups)], model.top_k, model.grid)


def _layers(bundle: Bundle, table: NoveltyTable, start: int, divided: bool) -> list[GroupLayer] | None:
    """A member's last layers, numbered from `start` and `divided` by its temperatures."""
    children = [bundle.taxonomy.index[record.child] for record in bundle.manifest.prototypes]
    layers = read_last_layers(bundle, NoveltyTable.of(bundle.taxonomy, bundle.kind, children))
    if layers is None:
        return None
    temperature = bundle.manifest.temperature if divided else {}
    divisors = [temperature.get(parent, 1.0) for parent in parent_names(table.groups, bundle.taxonomy)]
    return [
        GroupLayer(layer.prototypes + start, layer.weight / divisor, layer.usual)
        for layer, divisor in zip(layers.groups, divisors, strict=True)
    ]


@dataclass(frozen=True)
class Restricted:
    """Outputs under a restriction: `outputs` as from a graph, and `excluded` float64 [images], the probability that the
    network gives to what the restriction excludes."""

    outputs: Outputs
    excluded: NDArray[np.float64]


def restrict(outputs: Outputs, restriction: Restriction, evidence: HostEvidence) -> Restricted:
    """Apply a restriction to the outputs for N images. Each image's are independent of the others'."""
    leaves = outputs.log_probability[:, restriction.taxonomy.leaf_nodes]
    log_probability = restriction.log_probability(leaves)
    path = restriction.path(log_probability)
    restricted = replace(
        # An ensemble's members have voted on their own path, so say nothing of another.
        outputs,
        log_probability=log_probability.astype(np.float32),
        path=path,
        known=None,
        **evidence.renewed(outputs, path, path != outputs.path),
    )
    return Restricted(restricted, restriction.excluded(leaves))
