"""The parity gate: compare an exported graph, in its own runtime, with the network it came from, on real pictures.

The gate counts near-ties and reports them. Where two cells, two prototypes or two leaves are equal within float32's
tolerance, either answer is right. Anything else is a disagreement. A float32 file may have none. A file of less
precision may have some, up to its own limits, and must also keep accuracy and evidence on validation pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from export.network_answers import NetworkAnswers
from export.records import BatchReport, TargetReport, Tolerance
from protoserve.errors import ParityError
from protoserve.networks.head import PrototypeHead

Arrays = Mapping[str, NDArray[Any]]
Runtime = Callable[[NDArray[np.uint8]], Arrays]
# Maps one picture, uint8 [1, H, W, 3] of any size, to one at model size.
Fitter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
BATCHES: Final = (1, 3, 8)


@dataclass(frozen=True)
class Precision:
    """The limits of how far a file of one precision may be from its network.

    `agreement` maps an output (paths, cells, prototypes rank by rank) to the minimum share of its entries that must be
    equal or near-ties. Three limits apply to validation pictures, at every level: `accuracy_loss`, in percentage
    points; `same_node`, the minimum share of pictures that get the node that the network gives; `evidence_kept`, the
    minimum share of those whose first evidence is worth as much (see `export.judging.evidence_kept`). All are None for
    float32, which meets them by its tolerance.
    """

    name: str
    tolerance: Tolerance = field(default_factory=Tolerance)
    agreement: Mapping[str, float] = field(default_factory=dict)
    accuracy_loss: float | None = None
    same_node: float | None = None
    evidence_kept: float | None = None


FLOAT32: Final = Precision("float32")
# The similarity is steepest at a prototype's own source cell, so the tolerances below float32 must be large. They stop
# only a broken file; the shares decide whether a file is good.
FLOAT16: Final = Precision(
    "float16",
    Tolerance(log_probability=1.0, logit=0.5, similarity=0.5),
    {"path": 0.95, "cell": 0.9, "evidence_prototype": 0.8, "against_prototype": 0.8},
    accuracy_loss=1.0,
    same_node=0.95,
    evidence_kept=0.95,
)
INT8: Final = Precision(
    "int8",
    Tolerance(log_probability=20.0, logit=10.0, similarity=6.0),
    {"path": 0.85, "cell": 0.5, "evidence_prototype": 0.3, "against_prototype": 0.3},
    accuracy_loss=1.0,
    same_node=0.95,
    evidence_kept=0.95,
)


def check(
    network: NetworkAnswers,
    runtime: Runtime,
    samples: NDArray[np.uint8],
    *,
    precision: Precision = FLOAT32,
    batches: tuple[int, ...] = BATCHES,
    routed: bool = False,
) -> TargetReport:
    """Run `runtime` over `samples` uint8 [pictures, H, W, 3] in these batch sizes and compare it with the network.

    A `routed` graph answers only along the predicted path; it is compared where its certificate holds. Raises
    ParityError, which names the output and the figure, if a difference exceeds the tolerance or too many entries
    disagree.
    """
    reports = {}
    for batch in batches:
        # A file with a fixed batch takes no smaller one, so the first pictures are repeated to fill the last batch.
        count = len(samples) if batches == BATCHES else -(-len(samples) // batch) * batch
        indices = np.arange(count) % len(samples)
        pairs = ((samples[chosen], samples[chosen]) for chosen in np.split(indices, range(batch, count, batch)))
        reports[batch] = compare(network, runtime, pairs, precision=precision, routed=routed)
    return TargetReport(precision=precision.name, pictures=len(samples), tolerance=precision.tolerance, batches=reports)


def compare(
    network: NetworkAnswers,
    runtime: Runtime,
    pairs: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    *,
    precision: Precision = FLOAT32,
    routed: bool = False,
) -> BatchReport:
    """Compare batch by batch. Each pair holds the runtime's input and, at model size, the network's.

    Both are uint8 [N, H, W, 3]. Raises ParityError as `check` does.
    """
    head = network.network.head
    comparison, grouping = _Comparison(head, precision), head.grouping
    certain: list[bool] = []
    for pictures, fitted in pairs:
        expected, latent = network.of(fitted)
        answers = runtime(pictures)
        if routed:
            certain += answers["certain"].tolist()
            answers = completed(expected, answers, grouping.node_group.numpy(), grouping.prototype_group.numpy())
        comparison.add(expected, answers, latent)
    report = comparison.result()
    return report.model_copy(update={"certain": sum(certain) / len(certain)}) if routed else report


def completed(
    expected: Arrays, routed: Arrays, node_group: NDArray[np.int64], prototype_group: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Extend a `routed` graph's outputs to those of the full graph.

    For images whose certificate holds, the result has the routed graph's path, with the path's logits and evidence, the
    similarities of all prototypes beside it, and all probabilities that were computed. Everything else is copied from
    `expected`, the full graph's outputs. `node_group` [nodes] and `prototype_group` [prototypes] are the groups in
    which they compete. Raises ParityError for an output of another shape.
    """
    whole = {name: array.copy() for name, array in expected.items()}
    certain = np.flatnonzero(routed["certain"])
    for name in whole.keys() & routed.keys():
        _check_shape(name, expected[name], routed[name])
        whole[name][certain] = routed[name][certain]
    scored = np.nonzero(routed["certain"][:, None] & (routed["scored_node"] < whole["log_probability"].shape[1]))
    whole["log_probability"][scored[0], routed["scored_node"][scored]] = routed["scored_log_probability"][scored]
    images, levels = np.nonzero(routed["certain"][:, None] & (routed["path"] >= 0))
    nodes = routed["path"][images, levels]
    for name in ("log_probability", "logit"):
        whole[name][images, nodes] = routed[f"path_{name}"][images, levels]
    for image, level, node in zip(images.tolist(), levels.tolist(), nodes.tolist(), strict=True):
        own = np.flatnonzero(prototype_group == node_group[node])
        whole["similarity"][image, own] = routed["path_similarity"][image, level, : len(own)]
    # A routed graph gives the best cell of its evidence only, not of every prototype.
    for kind in ("evidence", "against"):
        ranks = np.nonzero(routed["certain"][:, None, None] & (routed[f"{kind}_prototype"] >= 0))
        whole["cell"][ranks[0], routed[f"{kind}_prototype"][ranks]] = routed[f"{kind}_cell"][ranks]
    return whole


def _check_shape(name: str, expected: NDArray[Any], answer: NDArray[Any]) -> None:
    if answer.shape != expected.shape:
        raise ParityError(f"parity: {name} has the shape {answer.shape}, expected {expected.shape}")


class _Comparison:
    """Sums over batches of pictures."""

    def __init__(self, head: PrototypeHead, precision: Precision) -> None:
        self.head = head
        self.precision = precision
        # Near-ties are defined by float32's tolerance, whatever the precision of the file.
        self.tolerance = Tolerance()
        self.worst: dict[str, float] = {}
        self.entries: dict[str, int] = {}
        self.equal: dict[str, int] = {}
        self.near_ties: dict[str, int] = {}

    def add(self, expected: Arrays, answers: Arrays, latent: torch.Tensor) -> None:
        for name, array in expected.items():
            _check_shape(name, array, answers[name])
            if not np.isfinite(answers[name]).all():
                raise ParityError(f"parity: {name} holds values that are not finite")
        for name, limit in self.precision.tolerance:
            self._difference(name, expected[name], answers[name], limit)
        self._cells(expected, answers, latent)
        same_path = self._paths(expected, answers)
        self._evidence(expected, answers, same_path)

    def _difference(self, name: str, expected: NDArray[Any], answer: NDArray[Any], limit: float) -> None:
        worst = float(np.abs(expected.astype(np.float64) - answer).max(initial=0.0))
        self.worst[name] = max(self.worst.get(name, 0.0), worst)
        if worst > limit:
            raise ParityError(
                f"parity: {name} differs by {worst:.3g}, more than the tolerance {limit:g}; no bundle was written"
            )

    def _count(self, name: str, equal: NDArray[np.bool_], near_tie: NDArray[np.bool_]) -> None:
        wrong = ~equal & ~near_tie
        may_differ = name in self.precision.agreement
        self.entries[name] = self.entries.get(name, 0) + equal.size
        self.equal[name] = self.equal.get(name, 0) + int(equal.sum())
        self.near_ties[name] = self.near_ties.get(name, 0) + int((~equal & near_tie).sum())
        # If some entries may differ, `result` decides by their share over all pictures.
        if wrong.any() and not may_differ:
            raise ParityError(
                f"parity: {name} differs at {int(wrong.sum())} of {wrong.size} entries that are not near-ties; "
                "no bundle was written"
            )

    def _cells(self, expected: Arrays, answers: Arrays, latent: torch.Tensor) -> None:
        """Compare the best cells. A different cell is a near-tie if the prototype is as similar there."""
        equal = expected["cell"] == answers["cell"]
        near_tie = np.zeros_like(equal)
        if not equal.all():
            similarity = self._similarity_at(latent, answers["cell"])
            near_tie = np.abs(similarity - expected["similarity"]) <= self.tolerance.similarity
        self._count("cell", equal, near_tie)

    def _similarity_at(self, latent: torch.Tensor, cells: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute every prototype's similarity [N, P] at the `cells` int64 [N, P]."""
        flat = latent.flatten(2).double().numpy()
        vectors = np.take_along_axis(flat, cells[:, None, :], axis=2)
        prototypes = self.head.vectors().detach().double().numpy()
        distance = ((vectors - prototypes.T[None]) ** 2).sum(axis=1)
        with torch.inference_mode():
            similarities = self.head.classify(torch.from_numpy(distance).float(), torch.from_numpy(cells)).similarity
        return np.asarray(similarities.double().numpy())

    def _paths(self, expected: Arrays, answers: Arrays) -> NDArray[np.bool_]:
        """Compare the paths. A different path is a near-tie if its leaf is as probable.

        Returns bool [N]: whether the paths are equal.
        """
        equal = (expected["path"] == answers["path"]).all(axis=1)
        rows = np.arange(len(equal))
        leaf = np.array([path[path >= 0][-1] for path in expected["path"]])
        other = np.array([path[path >= 0][-1] for path in answers["path"]])
        logarithms = expected["log_probability"]
        near_tie = np.abs(logarithms[rows, leaf] - logarithms[rows, other]) <= 2 * self.tolerance.log_probability
        self._count("path", equal, near_tie)
        return np.asarray(equal)

    def _evidence(self, expected: Arrays, answers: Arrays, same_path: NDArray[np.bool_]) -> None:
        """Compare the evidence rank by rank, for pictures whose paths are equal.

        A different prototype is a near-tie if it contributes as much as the expected one.
        """
        expected = {name: array[same_path] for name, array in expected.items()}
        answers = {name: array[same_path] for name, array in answers.items()}

        def differences(name: str) -> NDArray[np.float64]:
            return np.abs(expected[name].astype(np.float64) - answers[name])

        for kind in ("evidence", "against"):
            prototype, other = expected[f"{kind}_prototype"], answers[f"{kind}_prototype"]
            equal = prototype == other
            contribution = self._contribution(expected, other)
            near_tie = np.abs(contribution - expected[f"{kind}_contribution"]) <= 2 * self.tolerance.logit
            self._within_tolerance(f"{kind}_contribution", differences(f"{kind}_contribution"))
            self._count(f"{kind}_prototype", equal, near_tie & (other >= 0) & (prototype >= 0))
            for name in (f"{kind}_similarity", f"{kind}_weight"):
                self._within_tolerance(name, differences(name)[equal])
            cells = answers["cell"][:, None, :].repeat(other.shape[1], axis=1)
            pooled = np.take_along_axis(cells, np.maximum(other, 0), axis=2)
            # `_cells` has judged the pooled cell; here evidence only has to repeat it.
            repeated = answers[f"{kind}_cell"] == np.where(other < 0, -1, pooled)
            self._count(f"{kind}_cell", expected[f"{kind}_cell"] == answers[f"{kind}_cell"], repeated)
        self._within_tolerance(
            "evidence_map", differences("evidence_map")[expected["evidence_prototype"] == answers["evidence_prototype"]]
        )
        # A sum over many prototypes, whose rounding adds up as a logit's does.
        self._difference(
            "positive_contribution",
            expected["positive_contribution"],
            answers["positive_contribution"],
            self.precision.tolerance.logit,
        )

    def _contribution(self, expected: Arrays, prototype: NDArray[np.int64]) -> NDArray[np.float64]:
        """Compute the network's contributions of the prototypes int64 [N, L, k] to the nodes of the expected path.

        A contribution is infinite if the prototype has no weight for the node or there is no prototype (−1).
        """
        head = self.head
        node = expected["path"][:, :, None]
        weight = np.pad(head.centred_weight().detach().double().numpy(), ((0, 1), (0, 0), (0, 0)))
        group, slot = head.grouping.prototype_group.numpy()[prototype], head.grouping.prototype_slot.numpy()[prototype]
        same_group = head.grouping.node_group.numpy()[node] == group
        similarities = np.take_along_axis(
            expected["similarity"][:, None, :].repeat(prototype.shape[1], axis=1), np.maximum(prototype, 0), axis=2
        )
        unusual = similarities - head.usual.numpy()[np.maximum(prototype, 0)]
        contribution = weight[group, head.grouping.node_member.numpy()[node], slot] * unusual
        return np.where(same_group & (prototype >= 0), contribution, np.inf)

    def _within_tolerance(self, name: str, differences: NDArray[np.float64]) -> None:
        self._difference(name, np.zeros_like(differences), differences, self.precision.tolerance.similarity)

    def result(self) -> BatchReport:
        """Summarise all batches; raises ParityError if too few entries agree."""
        for name, minimum in self.precision.agreement.items():
            share = (self.equal[name] + self.near_ties[name]) / max(1, self.entries[name])
            if share < minimum:
                raise ParityError(
                    f"parity: {name} agrees at {100 * share:.1f} % of {self.entries[name]} entries, less than the "
                    f"{100 * minimum:g} % that {self.precision.name} requires; no bundle was written"
                )
        return BatchReport(
            worst_difference=self.worst,
            agreement={name: self.equal[name] / max(1, entries) for name, entries in self.entries.items()},
            near_ties=self.near_ties,
        )
