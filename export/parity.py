"""The parity gate: an exported graph, in its own runtime, against the network it came from, on real pictures.

Near-ties are counted, not hidden: where two cells, two prototypes or two leaves are equal within the tolerance,
either answer is right; anything else is a disagreement and fails the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.errors import ParityError
from protoserve.networks.checkpoint import ExplainedNetwork
from protoserve.networks.head import PrototypeHead

Arrays = Mapping[str, NDArray[Any]]
Runtime = Callable[[NDArray[np.uint8]], Arrays]
BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed in float32: natural logarithms, logits (and contributions), similarities."""

    log_probability: float = 1e-3
    logit: float = 1e-3
    similarity: float = 1e-3


def check(network: ExplainedNetwork, top_k: int, runtime: Runtime, samples: NDArray[np.uint8]) -> dict[str, Any]:
    """Run `runtime` over `samples` uint8 [pictures, H, W, 3] at batch 1, 3 and 8 and compare with the network.

    Returns a JSON-ready report: per batch size the agreement of paths, prototypes and cells (fractions of all
    places), the near-ties among the rest, and the worst absolute differences. Raises ParityError, naming the
    output and the figure, when a difference is no near-tie or exceeds the tolerance.
    """
    tolerance = Tolerance()
    reports = {}
    for batch in BATCHES:
        report = _Comparison(network.head, tolerance)
        for start in range(0, len(samples), batch):
            pictures = samples[start : start + batch]
            with torch.inference_mode():
                images = torch.from_numpy(pictures)
                latent = network.latent(network.features(images))
                expected = {k: v.numpy() for k, v in network.head.explain(latent, top_k)._asdict().items()}
            report.add(expected, runtime(pictures), latent)
        reports[f"batch_{batch}"] = report.result()
    return {"pictures": len(samples), "tolerance": vars(tolerance), **reports}


class _Comparison:
    """Sums over batches of pictures."""

    def __init__(self, head: PrototypeHead, tolerance: Tolerance) -> None:
        self.head = head
        self.tolerance = tolerance
        self.worst: dict[str, float] = {}
        self.places: dict[str, int] = {}
        self.equal: dict[str, int] = {}
        self.near_ties: dict[str, int] = {}

    def add(self, expected: Arrays, found: Arrays, latent: torch.Tensor) -> None:
        for name, array in expected.items():
            if found[name].shape != array.shape:
                raise ParityError(f"parity: {name} has the shape {found[name].shape}, expected {array.shape}")
            if not np.isfinite(found[name]).all():
                raise ParityError(f"parity: {name} holds values that are not finite")
        for name, limit in vars(self.tolerance).items():
            self._difference(name, expected[name], found[name], limit)
        self._cells(expected, found, latent)
        same_path = self._paths(expected, found)
        self._evidence(expected, found, same_path, latent)

    def _difference(self, name: str, expected: NDArray[Any], found: NDArray[Any], limit: float) -> None:
        worst = float(np.abs(expected.astype(np.float64) - found).max(initial=0.0))
        self.worst[name] = max(self.worst.get(name, 0.0), worst)
        if worst > limit:
            raise ParityError(f"parity: {name} differs by {worst:.3g}, more than {limit:g}; no bundle was written")

    def _count(self, name: str, equal: NDArray[np.bool_], near_tie: NDArray[np.bool_]) -> None:
        wrong = ~equal & ~near_tie
        self.places[name] = self.places.get(name, 0) + equal.size
        self.equal[name] = self.equal.get(name, 0) + int(equal.sum())
        self.near_ties[name] = self.near_ties.get(name, 0) + int((~equal & near_tie).sum())
        if wrong.any():
            raise ParityError(
                f"parity: {name} differs at {int(wrong.sum())} of {wrong.size} places that are no near-ties; "
                "no bundle was written"
            )

    def _cells(self, expected: Arrays, found: Arrays, latent: torch.Tensor) -> None:
        """Another cell is right when the prototype is as similar there."""
        equal = expected["cell"] == found["cell"]
        near_tie = np.zeros_like(equal)
        if not equal.all():
            at_found = self._similarity_at(latent, found["cell"])
            near_tie = np.abs(at_found - expected["similarity"]) <= self.tolerance.similarity
        self._count("cell", equal, near_tie)

    def _similarity_at(self, latent: torch.Tensor, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        flat = latent.flatten(2).double().numpy()
        vectors = np.take_along_axis(flat, cells[:, None, :], axis=2)
        prototypes = self.head.vectors().detach().double().numpy()
        distance = ((vectors - prototypes.T[None]) ** 2).sum(axis=1)
        with torch.inference_mode():
            similarities = self.head.classify(torch.from_numpy(distance).float(), torch.from_numpy(cells)).similarity
        return np.asarray(similarities.double().numpy())

    def _paths(self, expected: Arrays, found: Arrays) -> NDArray[np.bool_]:
        """Another path is right when its leaf is as probable."""
        equal = (expected["path"] == found["path"]).all(axis=1)
        rows = np.arange(len(equal))
        leaf = np.array([path[path >= 0][-1] for path in expected["path"]])
        other = np.array([path[path >= 0][-1] for path in found["path"]])
        logarithms = expected["log_probability"]
        near_tie = np.abs(logarithms[rows, leaf] - logarithms[rows, other]) <= 2 * self.tolerance.log_probability
        self._count("path", equal, near_tie)
        return np.asarray(equal)

    def _evidence(self, expected: Arrays, found: Arrays, same_path: NDArray[np.bool_], latent: torch.Tensor) -> None:
        """Prototypes in order; another one is right at a rank when it contributes as much as the expected one."""
        wanted, given = expected["evidence_prototype"][same_path], found["evidence_prototype"][same_path]
        equal = wanted == given
        of_given = self._contribution(expected, same_path, given)
        near_tie = np.abs(of_given - expected["evidence_contribution"][same_path]) <= 2 * self.tolerance.logit
        by_rank = np.abs(
            expected["evidence_contribution"][same_path].astype(np.float64) - found["evidence_contribution"][same_path]
        )
        self._difference_of("evidence_contribution", by_rank)
        self._count("evidence_prototype", equal, near_tie & (given >= 0) & (wanted >= 0))
        for name in ("evidence_similarity", "evidence_weight"):
            self._difference_of(
                name, np.abs(expected[name][same_path].astype(np.float64) - found[name][same_path])[equal]
            )
        cells = expected["evidence_cell"][same_path] == found["evidence_cell"][same_path]
        pooled = np.take_along_axis(
            found["cell"][same_path][:, None, :].repeat(given.shape[1], axis=1), np.maximum(given, 0), axis=2
        )
        # Whether the pooled cell is right was judged above; here only that evidence repeats it.
        self._count("evidence_cell", cells, found["evidence_cell"][same_path] == np.where(given < 0, -1, pooled))
        maps = np.abs(expected["evidence_map"][same_path].astype(np.float64) - found["evidence_map"][same_path])
        self._difference_of("evidence_map", maps[equal])

    def _contribution(
        self, expected: Arrays, rows: NDArray[np.bool_], prototype: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """What prototypes [n, L, k] contribute to the expected path's nodes in the network itself."""
        head = self.head
        node = expected["path"][rows][:, :, None]
        weight = np.pad(head.effective_weight().detach().double().numpy(), ((0, 1), (0, 0), (0, 0)))
        group, slot = head.prototype_group.numpy()[prototype], head.prototype_slot.numpy()[prototype]
        same_group = head.node_group.numpy()[node] == group
        similarities = np.take_along_axis(
            expected["similarity"][rows][:, None, :].repeat(prototype.shape[1], axis=1),
            np.maximum(prototype, 0),
            axis=2,
        )
        found = weight[group, head.node_member.numpy()[node], slot] * similarities
        return np.where(same_group & (prototype >= 0), found, np.inf)

    def _difference_of(self, name: str, differences: NDArray[np.float64]) -> None:
        self._difference(name, np.zeros_like(differences), differences, self.tolerance.similarity)

    def result(self) -> dict[str, Any]:
        return {
            "worst_difference": self.worst,
            "agreement": {name: self.equal[name] / max(1, places) for name, places in self.places.items()},
            "near_ties": self.near_ties,
        }
