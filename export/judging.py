"""The gate of lower precision: accuracy and evidence on validation pictures that nothing was fitted to.

A file is compared with its network picture by picture. Which of two nearly equal prototypes comes first changes with
any disturbance, so the gate asks for something else: the prototype that the file shows first must be one that speaks
for the node almost as loudly in the network itself. What the network does when its pictures are saved as JPEG once more
stands beside it, as a measure of what is noise anyway.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.accuracy import answers, in_batches, network_runtime, pictures
from export.parity import Arrays, Precision, Runtime
from export.records import AccuracyPair, Agreement, Tolerance, ValidationReport
from export.sources import EdgeOptions
from protoserve.data.dataset import Dataset
from protoserve.errors import ParityError
from protoserve.images.geometry import InputRule
from protoserve.networks.model_file import ExplainedNetwork
from protoserve.scores import scores
from protoserve.taxonomy import Taxonomy

# The first prototype of a file is as good as the network's own if it contributes this share of what that one does.
CONTRIBUTES: Final = 0.9
JPEG_QUALITY: Final = 90
_BATCH: Final = 8


@dataclass(frozen=True)
class Judge:
    """Validation pictures with the network's answers to them, computed once for all files."""

    network: ExplainedNetwork
    top_k: int
    validation: Dataset
    rule: InputRule

    @property
    def taxonomy(self) -> Taxonomy:
        """The network's class tree."""
        return self.network.head.taxonomy

    @cached_property
    def fitted(self) -> NDArray[np.uint8]:
        """The pictures at model size: uint8 [N, height, width, 3]."""
        return pictures(self.validation, self.rule)

    @cached_property
    def expected(self) -> dict[str, NDArray[Any]]:
        """The network's answers."""
        return answers(network_runtime(self.network, self.top_k), in_batches(self.fitted, _BATCH))

    @cached_property
    def reencoded(self) -> Agreement:
        """How the network agrees with itself on the same pictures after JPEG of `JPEG_QUALITY`."""
        runtime = network_runtime(self.network, self.top_k)
        found = answers(runtime, in_batches(saved_as_jpeg(self.fitted, JPEG_QUALITY), _BATCH))
        return agreement(self.expected, found, self.validation.leaves, self.taxonomy)

    def answers_of(self, runtime: Runtime, options: EdgeOptions) -> dict[str, NDArray[Any]]:
        """Run a file on the pictures; a file that resizes gets them at their own sizes."""
        if options.resize:
            batches = [
                np.asarray(self.validation.picture(index).picture)[None] for index in range(len(self.validation))
            ]
        else:
            batches = in_batches(self.fitted, options.batch or _BATCH, whole=options.batch is not None)
        return {name: array[: len(self.validation)] for name, array in answers(runtime, batches).items()}

    def report(
        self, runtime: Runtime, options: EdgeOptions, precision: Precision, unoptimised: Runtime | None = None
    ) -> ValidationReport:
        """Judge a file by its `runtime`, and where there is one, by the runtime without graph optimisation.

        Kernels that a host chooses may compute what the format does not say, as sums of 16 bits that overflow. Without
        optimisation, the same file is computed operator by operator in float32. Raises ParityError as `judge` does.
        """
        leaves, taxonomy = self.validation.leaves, self.taxonomy
        target = self.answers_of(runtime, options)
        report = judge(self.expected, target, leaves, taxonomy, precision, self.reencoded)
        if unoptimised is None:
            return report
        plain = self.answers_of(unoptimised, options)
        judge(self.expected, plain, leaves, taxonomy, precision, self.reencoded, ", run without graph optimisation,")
        return report.model_copy(update={"unoptimised": agreement(self.expected, plain, leaves, taxonomy)})


def saved_as_jpeg(arrays: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Save pictures uint8 [N, H, W, 3] as JPEG and read them again."""

    def saved(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    return np.stack([saved(array) for array in arrays])


def first_evidence(expected: Arrays, target: Arrays) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare the first evidence; returns (present, same), both bool [N, L].

    `present` is whether the network has evidence at a level, `same` whether the target's first evidence there is the
    same prototype for the same node. Another prototype counts as the same if the network itself ties the two: their
    contributions in the network differ by at most float32's tolerance.
    """
    best = expected["evidence_contribution"][:, :, 0]
    same = (_contribution(expected, target) >= best - 2 * Tolerance().logit) & (expected["path"] == target["path"])
    present = expected["evidence_prototype"][:, :, 0] >= 0
    return present, same & present


def evidence_kept(expected: Arrays, target: Arrays) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Compare what the first evidence is worth; returns (comparable, kept), both bool [N, L].

    `comparable` is whether the network has evidence at a level and the target names the same node, `kept` whether the
    target's first prototype contributes to it in the network at least `CONTRIBUTES` of what the network's own first one
    does.
    """
    best = expected["evidence_contribution"][:, :, 0]
    kept = _contribution(expected, target) >= np.where(best > 0, CONTRIBUTES * best, best)
    comparable = (expected["evidence_prototype"][:, :, 0] >= 0) & (expected["path"] == target["path"])
    return comparable, kept & comparable


def _contribution(expected: Arrays, target: Arrays) -> NDArray[np.float64]:
    """What the target's first evidence contributes in the network: float64 [N, L], −∞ for a prototype that is not among
    the network's evidence."""
    listed = expected["evidence_prototype"] == target["evidence_prototype"][:, :, :1]
    found: NDArray[np.float64] = np.where(listed, expected["evidence_contribution"].astype(np.float64), -np.inf)
    return np.asarray(found.max(axis=2))


def shares(counted: NDArray[np.bool_], right: NDArray[np.bool_]) -> dict[str, float]:
    """Return, for each level, the share of the `counted` pictures that are `right`; both bool [N, L].

    A level at which nothing counts is omitted.
    """
    return {
        f"level_{level + 1}": float(right[:, level].sum() / counted[:, level].sum())
        for level in range(counted.shape[1])
        if counted[:, level].any()
    }


def agreement(expected: Arrays, target: Arrays, leaves: NDArray[np.int64], taxonomy: Taxonomy) -> Agreement:
    """Compare the `target`'s outputs with the network's, `expected`, on pictures of the classes `leaves` int64 [N]."""
    present = expected["path"] >= 0
    return Agreement(
        accuracy=scores(np.asarray(target["log_probability"]), leaves, taxonomy).accuracy,
        same_node=shares(present, (expected["path"] == target["path"]) & present),
        first_evidence_same=shares(*first_evidence(expected, target)),
        evidence_kept=shares(*evidence_kept(expected, target)),
    )


def judge(
    expected: Arrays,
    target: Arrays,
    leaves: NDArray[np.int64],
    taxonomy: Taxonomy,
    precision: Precision,
    reencoded: Agreement | None = None,
    how: str = "",
) -> ValidationReport:
    """Judge the `target`'s outputs beside the network's, `expected`, on pictures of the classes `leaves` int64 [N].

    `reencoded` is how the network agrees with itself after JPEG: a file need not keep a node more often than that.
    `how` tells in an error how the file was run. Raises ParityError, which names every figure that misses its limit.
    """
    before = scores(np.asarray(expected["log_probability"]), leaves, taxonomy).accuracy
    found = agreement(expected, target, leaves, taxonomy)
    loss = {level: round(100 * (before[level] - found.accuracy[level]), 3) for level in before}
    missed = []
    if precision.accuracy_loss is not None:
        missed += [
            f"{level} loses {points:.2f} points of accuracy (at most {precision.accuracy_loss:g})"
            for level, points in loss.items()
            if points > precision.accuracy_loss
        ]
    if precision.same_node is not None:
        for level, share in found.same_node.items():
            limit = precision.same_node
            if reencoded is not None:
                limit = min(limit, reencoded.same_node.get(level, limit))
            if share < limit:
                missed.append(
                    f"{level} has the same node in {100 * share:.1f} % of pictures (at least {100 * limit:.3g} %)"
                )
    if precision.evidence_kept is not None:
        missed += [
            f"at {level} the first evidence contributes at least {100 * CONTRIBUTES:g} % of the network's own first in "
            f"{100 * share:.1f} % of pictures (at least {100 * precision.evidence_kept:g} %)"
            for level, share in found.evidence_kept.items()
            if share < precision.evidence_kept
        ]
    if missed:
        raise ParityError(
            f"parity: on {len(leaves)} validation pictures {precision.name}{how} is too far from the network: "
            f"{'; '.join(missed)}; no bundle was written"
        )
    return ValidationReport(
        pictures=len(leaves),
        accuracy=AccuracyPair(network=before, target=found.accuracy),
        loss_points=loss,
        same_node=found.same_node,
        first_evidence_same=found.first_evidence_same,
        evidence_kept=found.evidence_kept,
        reencoded=reencoded,
    )
