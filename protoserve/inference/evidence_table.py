"""What turning arrays into predictions needs of a bundle or an ensemble, computed once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import Bundle
from protoserve.bundle.manifest import PrototypeRecord
from protoserve.errors import BundleError
from protoserve.images.geometry import Cells
from protoserve.inference.answering import Answering
from protoserve.inference.last_layers import HostEvidence
from protoserve.inference.required import Requirement
from protoserve.inference.restricting import host_evidence
from protoserve.inference.sufficient import similarity_bounds
from protoserve.inference.switching import Switches
from protoserve.inference.thresholds import read_thresholds
from protoserve.novelty import Thresholds
from protoserve.restriction import Restriction, unrestricted
from protoserve.schema import EvidenceSource, MemberReference, ModelReference
from protoserve.taxonomy import ROOT, Taxonomy


@dataclass(frozen=True)
class EvidenceTable:
    """The properties of a bundle or an ensemble that turning arrays into predictions needs, computed once."""

    bundle: Model
    model: ModelReference
    names: tuple[str, ...]
    index: Mapping[str, int]
    """The number of every node."""
    nodes: tuple[tuple[str, ...], ...]
    has_head: tuple[bool, ...]
    """Whether the node competes in a softmax: an only child does not; in a flat model or an autoencoder, only leaves
    do."""
    forced: tuple[bool, ...]
    """Whether the node is an only child without a softmax, so that its conditional probability is 1."""
    levels: tuple[range, ...]
    """The nodes of every level; they are consecutive, because nodes are numbered breadth first."""
    prototypes: tuple[PrototypeRecord, ...]
    thresholds: Thresholds | None
    """The novelty thresholds; None for an ensemble, or for a bundle without any."""
    first_prototypes: tuple[int, ...]
    """The first prototype of every member; a bundle is its own only member."""
    cells: tuple[Cells, ...]
    """The cells of every member's feature map."""
    prior: tuple[float, ...]
    """Every node's logit where all similarities are usual."""
    top_k: int
    """The most evidence per level."""
    required: tuple[Requirement, ...]
    """The prototypes that people insist on."""

    @cached_property
    def everything(self) -> Restriction:
        """The restriction that allows everything."""
        return unrestricted(self.bundle.taxonomy)

    @cached_property
    def restrictions(self) -> dict[tuple[Any, ...], Restriction]:
        """The restrictions of recent requests."""
        return {}

    @cached_property
    def sources(self) -> dict[int, EvidenceSource]:
        """The training patches of prototypes that were shown, by prototype, with the address of their last picture."""
        return {}

    @cached_property
    def answering(self) -> Answering | None:
        """What the bundle promises about its answers; None for one that promises nothing, and for an ensemble."""
        return Answering.of(self.bundle)

    @cached_property
    def host_evidence(self) -> HostEvidence | None:
        """The evidence for nodes that the graph did not predict; None for a bundle without its last-layer weights."""
        return host_evidence(self.bundle)

    @cached_property
    def switches(self) -> Switches | None:
        """What answers as if prototypes were off; None for a bundle without its last-layer weights."""
        return None if self.host_evidence is None else Switches(self.bundle, self.host_evidence)

    @cached_property
    def child(self) -> NDArray[np.int64]:
        """The node that each prototype belongs to: int64 [prototypes]."""
        return np.array([self.index[record.child] for record in self.prototypes], dtype=np.int64)

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The smallest and the largest similarity that each prototype can have: float64 [prototypes] each."""
        members = self.bundle.members if isinstance(self.bundle, Ensemble) else (self.bundle,)
        limits = [similarity_bounds(member.manifest.graph) for member in members]
        counts = [len(member.prototypes) for member in members]
        low, high = (np.repeat(values, counts) for values in zip(*limits, strict=True))
        return low, high

    @classmethod
    def of(cls, bundle: Model) -> EvidenceTable:
        """Make the table of a bundle or an ensemble.

        Raises BundleError if the prototype records are not numbered as in the graph, or if prototypes or thresholds
        name nodes that the taxonomy does not have.
        """
        taxonomy = bundle.taxonomy
        members = bundle.members if isinstance(bundle, Ensemble) else (bundle,)
        references = [MemberReference(name=member.name, version=member.version) for member in members]
        count = sum(member.manifest.graph.prototypes for member in members)
        ids = [record.id for record in bundle.prototypes]
        if ids != list(range(count)):
            raise BundleError(
                f"{bundle.directory}: its {len(ids)} prototype records are not numbered 0 to "
                f"{count - 1} as in the graph; export the bundle again"
            )
        flat = bundle.kind != "hierarchical"
        headed = set(taxonomy.leaves if flat else (node for group in taxonomy.groups for node in group.children))
        child_count = np.bincount(taxonomy.parent - ROOT)
        depths = np.array([len(node) for node in taxonomy.nodes])
        bounds = np.searchsorted(depths, np.arange(1, taxonomy.depth + 2)).tolist()
        return cls(
            bundle=bundle,
            model=ModelReference(
                name=bundle.name,
                version=bundle.version,
                members=references if isinstance(bundle, Ensemble) else None,
            ),
            names=taxonomy.names,
            index=taxonomy.index,
            nodes=taxonomy.nodes,
            has_head=tuple(node in headed for node in range(len(taxonomy.nodes))),
            forced=tuple(
                bool(child_count[above - ROOT] == 1) and node not in headed
                for node, above in enumerate(taxonomy.parent.tolist())
            ),
            levels=tuple(range(*pair) for pair in itertools.pairwise(bounds)),
            prototypes=tuple(bundle.prototypes),
            thresholds=read_thresholds(bundle) if isinstance(bundle, Bundle) else None,
            first_prototypes=bundle.first_prototypes if isinstance(bundle, Ensemble) else (0,),
            cells=tuple(member.manifest.graph.cells for member in members),
            prior=_prior(members, taxonomy, divided=isinstance(bundle, Ensemble)),
            top_k=bundle.top_k,
            required=tuple(
                Requirement(taxonomy.index[record.child], record.id, record.usual or 0.0)
                for record in (bundle.prototypes[number] for number in sorted(bundle.curation.required))
            ),
        )


def _prior(members: Sequence[Bundle], taxonomy: Taxonomy, *, divided: bool) -> tuple[float, ...]:
    """Every node's prior; those of an ensemble's members are `divided` by their temperatures and added."""
    prior = dict.fromkeys(taxonomy.names, 0.0)
    for member in members:
        flat = member.kind != "hierarchical"
        for node, value in member.manifest.prior.items():
            parent = "" if flat or "/" not in node else node.rpartition("/")[0]
            prior[node] += value / (member.manifest.temperature.get(parent, 1.0) if divided else 1.0)
    return tuple(prior.values())
