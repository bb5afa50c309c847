"""The engine of an ensemble: sums its members' logits before the softmax and merges their evidence.

Chen et al. 2019 add the logits of several networks. This module does so in every group of competing nodes, after
dividing each member's logits by its own temperature. Then it computes the softmax and, for hierarchical members, the
products along the paths. So an ensemble's logit is the sum of all members' priors and contributions, each divided by
its member's temperature. It needs only numpy and the outputs of the members' graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.bundle.folder import Bundle
from protoserve.device import Device
from protoserve.inference.engine import Engine, Outputs
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.last_layers import HostEvidence, MemberLayers, read_last_layers
from protoserve.inference.probabilities import most_probable_path, node_log_probability
from protoserve.novelty import NoveltyTable, Thresholds, parent_names


@dataclass(frozen=True)
class Member:
    """The properties of a member that combining needs: its softmax `temperature` float64 [groups], and its novelty
    thresholds, None if it has none."""

    temperature: NDArray[np.float64]
    thresholds: Thresholds | None


class EnsembleEngine:
    """Has the interface of `Engine`; runs the members' engines one after the other and combines their outputs."""

    def __init__(self, ensemble: Ensemble, device: Device = "auto", threads: int | None = None) -> None:
        self.engines = tuple(Engine(member, device=device, threads=threads) for member in ensemble.members)
        self.combiner = OutputCombiner(ensemble)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device that the members run on."""
        return self.engines[0].device

    def run(self, images: NDArray[np.uint8], *, seconds: float | None = None) -> Outputs:
        """Run all members on uint8 RGB images [N, height, width, 3] at model size, N ≥ 1; raises as `Engine.run`.

        `seconds` limits each member's time.
        """
        return self.combiner.combine([engine.run(images, seconds=seconds) for engine in self.engines])


def open_engine(model: Model, device: Device = "auto", threads: int | None = None) -> Engine | EnsembleEngine:
    """Open the engine of a bundle or an ensemble; raises as `Engine` does."""
    if isinstance(model, Ensemble):
        return EnsembleEngine(model, device=device, threads=threads)
    return Engine(model, device=device, threads=threads)


class OutputCombiner:
    """Combines the outputs of an ensemble's members; holds the tables for that."""

    def __init__(self, ensemble: Ensemble) -> None:
        taxonomy = ensemble.taxonomy
        self.taxonomy = taxonomy
        self.kind = ensemble.kind
        self.table = NoveltyTable.of(taxonomy, self.kind, [])
        self.members = tuple(_member(bundle, self.table) for bundle in ensemble.members)
        layers = [
            _layers(bundle, self.table, member, start)
            for bundle, member, start in zip(ensemble.members, self.members, ensemble.first_prototypes, strict=True)
        ]
        self.evidence = HostEvidence(taxonomy, self.table, layers, ensemble.top_k, ensemble.grid)

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Combine the members' `outputs` for the same images, one per member in order.

        A member's graph computes a prototype's map only for the nodes that the member itself predicts; other maps are
        NaN. A level is known if at least half of the members with thresholds know it.
        """
        images, nodes = outputs[0].log_probability.shape
        logit = np.zeros((images, nodes))
        for member, output in zip(self.members, outputs, strict=True):
            divisor = np.repeat(member.temperature, self.table.sizes)
            logit[:, self.table.members] += output.logit[:, self.table.members] / divisor
        log_probability = node_log_probability(logit, self.taxonomy, self.kind, self.table)
        path = most_probable_path(log_probability, self.taxonomy)
        return Outputs(
            log_probability=log_probability.astype(np.float32),
            logit=logit.astype(np.float32),
            path=path,
            **self.evidence.on_path(outputs, path),
            similarity=np.concatenate([output.similarity for output in outputs], axis=1),
            cell=np.concatenate([output.cell for output in outputs], axis=1),
            known=self._known(outputs, path),
        )

    def _known(self, outputs: Sequence[Outputs], path: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Let the members with thresholds vote on the ensemble's path; returns [N, L], None if no member has any."""
        votes = [
            member.thresholds.of_outputs(path, output.log_probability, output.logit, output.similarity)
            for member, output in zip(self.members, outputs, strict=True)
            if member.thresholds is not None
        ]
        return np.mean(votes, axis=0) >= 0.5 if votes else None


def _member(bundle: Bundle, table: NoveltyTable) -> Member:
    parents = parent_names(table.groups, bundle.taxonomy)
    temperature = [bundle.manifest.temperature.get(parent, 1.0) for parent in parents]
    return Member(np.array(temperature), EvidenceTable.of(bundle).thresholds)


def _layers(bundle: Bundle, table: NoveltyTable, member: Member, start: int) -> MemberLayers:
    layers = read_last_layers(bundle, table)
    assert layers is not None  # `ensemble_of` has checked it
    groups = zip(layers.groups, member.temperature.tolist(), strict=True)
    return MemberLayers(tuple(layer.scaled(1.0 / temperature) for layer, temperature in groups), start)
