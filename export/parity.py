"""The parity gate: an exported graph, in its own runtime, against the network it came from, on real pictures.

Near-ties are counted, not hidden: where two cells, two prototypes or two leaves are equal within float32's tolerance,
either answer is right; anything else is a disagreement. A float32 file may have none. One of less precision may have
some, by a limit of its own, and must besides keep accuracy and evidence on pictures that it was not calibrated on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from protoserve.errors import ParityError
from protoserve.graph_signature import named_arrays
from protoserve.networks.fused_head import explain
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import ExplainedNetwork

Arrays = Mapping[str, NDArray[Any]]
Runtime = Callable[[NDArray[np.uint8]], Arrays]
# One picture uint8 [1, H, W, 3] of any size to one at model size.
Fitter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed: natural logarithms, logits (and contributions), similarities."""

    log_probability: float = 1e-3
    logit: float = 1e-3
    similarity: float = 1e-3


@dataclass(frozen=True)
class Precision:
    """How far a file may be from its network.

    `agreement` are the least shares of places (paths, cells, prototypes rank by rank) that must be equal or
    near-ties. `accuracy_loss`, in points per level, and `top_evidence`, the least share at every level of pictures
    whose first piece of evidence is the same prototype, hold on validation pictures; None where float32 makes them
    certain.
    """

    name: str
    tolerance: Tolerance = Tolerance()
    agreement: Mapping[str, float] = field(default_factory=dict)
    accuracy_loss: float | None = None
    top_evidence: float | None = None


FLOAT32: Final = Precision("float32")
# A prototype's own source cell is where similarity is steepest: the tolerances of less than float32 are set for it and
# stop a broken file; the shares are what tells a good one.
FLOAT16: Final = Precision(
    "float16",
    Tolerance(log_probability=1.0, logit=0.5, similarity=0.5),
    {"path": 0.95, "cell": 0.9, "evidence_prototype": 0.8},
    accuracy_loss=1.0,
    top_evidence=0.95,
)
INT8: Final = Precision(
    "int8",
    Tolerance(log_probability=20.0, logit=10.0, similarity=6.0),
    {"path": 0.85, "cell": 0.5, "evidence_prototype": 0.3},
    accuracy_loss=1.0,
    top_evidence=0.95,
)


def check(
    network: ExplainedNetwork,
    top_k: int,
    runtime: Runtime,
    samples: NDArray[np.uint8],
    *,
    precision: Precision = FLOAT32,
    batches: tuple[int, ...] = BATCHES,
    routed: bool = False,
) -> dict[str, Any]:
    """Run `runtime` over `samples` uint8 [pictures, H, W, 3] in batches of these sizes and compare with the network.

    A `routed` one answers along the path alone, and is held to that where its certificate holds.

    Returns a JSON-ready report: per batch size the agreement of paths, prototypes and cells (fractions of all
    places), the near-ties among the rest, and the worst absolute differences. Raises ParityError, naming the
    output and the figure, when a difference exceeds the tolerance or too many places disagree.
    """
    reports = {}
    for batch in batches:
        # A file with a fixed batch takes no smaller one: the last batch is filled up with the first pictures.
        count = len(samples) if batches == BATCHES else -(-len(samples) // batch) * batch
        numbers = np.arange(count) % len(samples)
        pairs = ((samples[chosen], samples[chosen]) for chosen in np.split(numbers, range(batch, count, batch)))
        reports[f"batch_{batch}"] = compare(network, top_k, runtime, pairs, precision=precision, routed=routed)
    return {"precision": precision.name, "pictures": len(samples), "tolerance": vars(precision.tolerance), **reports}


def compare(
    network: ExplainedNetwork,
    top_k: int,
    runtime: Runtime,
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    precision: Precision = FLOAT32,
    routed: bool = False,
) -> dict[str, Any]:
    """The report of one batch size of `check`, over pairs: what the runtime is given, and what the network is."""
    report = _Comparison(network.head, precision)
    certain: list[bool] = []
    for given, fitted in pairs:
        with torch.inference_mode():
            latent = network.latent(network.features(torch.from_numpy(fitted)))
            expected = {k: v.numpy() for k, v in named_arrays(explain(network.head, latent, top_k)).items()}
        found = runtime(given)
        if routed:
            certain += found["certain"].tolist()
            found = completed(expected, found)
        report.add(expected, found, latent)
    return report.result() | ({"certain": sum(certain) / len(certain)} if routed else {})


def completed(expected: Arrays, found: Arrays) -> dict[str, NDArray[Any]]:
    """What a routed graph `found`, in the full graph's `expected` outputs: where it is certain, its path, with that
    path's probabilities, logits and evidence. The rest is as expected."""
    whole = {name: array.copy() for name, array in expected.items()}
    sure = np.flatnonzero(found["certain"])
    for name in whole.keys() & found.keys():
        if found[name].shape != whole[name].shape:
            raise ParityError(f"parity: {name} has the shape {found[name].shape}, expected {whole[name].shape}")
        whole[name][sure] = found[name][sure]
    images, levels = np.nonzero(found["certain"][:, None] & (found["path"] >= 0))
    nodes = found["path"][images, levels]
    for name in ("log_probability", "logit"):
        whole[name][images, nodes] = found[f"path_{name}"][images, levels]
    # The best cell of what is shown is the only one that it tells.
    places = np.nonzero(found["certain"][:, None, None] & (found["evidence_prototype"] >= 0))
    whole["cell"][places[0], found["evidence_prototype"][places]] = found["evidence_cell"][places]
    return whole


class _Comparison:
    """Sums over batches of pictures."""

    def __init__(self, head: PrototypeHead, precision: Precision) -> None:
        self.head = head
        self.precision = precision
        # What counts as a near-tie is the same for all: float32's tolerance.
        self.tolerance = Tolerance()
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
        for name, limit in vars(self.precision.tolerance).items():
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
        allowed = name in self.precision.agreement
        self.places[name] = self.places.get(name, 0) + equal.size
        self.equal[name] = self.equal.get(name, 0) + int(equal.sum())
        self.near_ties[name] = self.near_ties.get(name, 0) + int((~equal & near_tie).sum())
        # Where some may differ, only the shares over all pictures say whether there are too many.
        if wrong.any() and not allowed:
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
        group, slot = head.grouping.prototype_group.numpy()[prototype], head.grouping.prototype_slot.numpy()[prototype]
        same_group = head.grouping.node_group.numpy()[node] == group
        similarities = np.take_along_axis(
            expected["similarity"][rows][:, None, :].repeat(prototype.shape[1], axis=1),
            np.maximum(prototype, 0),
            axis=2,
        )
        found = weight[group, head.grouping.node_member.numpy()[node], slot] * similarities
        return np.where(same_group & (prototype >= 0), found, np.inf)

    def _difference_of(self, name: str, differences: NDArray[np.float64]) -> None:
        self._difference(name, np.zeros_like(differences), differences, self.precision.tolerance.similarity)

    def result(self) -> dict[str, Any]:
        for name, least in self.precision.agreement.items():
            share = (self.equal[name] + self.near_ties[name]) / max(1, self.places[name])
            if share < least:
                raise ParityError(
                    f"parity: {name} agrees at {100 * share:.1f} % of {self.places[name]} places, less than the "
                    f"{100 * least:g} % asked of {self.precision.name}; no bundle was written"
                )
        return {
            "worst_difference": self.worst,
            "agreement": {name: self.equal[name] / max(1, places) for name, places in self.places.items()},
            "near_ties": self.near_ties,
        }
