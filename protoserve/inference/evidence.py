"""Turns an engine's arrays into a `Prediction`: levels, alternatives, and evidence with its boxes and sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from protoserve.errors import BundleError, InputError
from protoserve.images.geometry import Cells, Geometry
from protoserve.inference.answering import answers
from protoserve.inference.contrast import contrast_with
from protoserve.inference.engine import Outputs
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.options import PredictOptions, ResolvedOptions, required_switches
from protoserve.inference.places import Places
from protoserve.inference.required import known_with_required
from protoserve.inference.restricting import CONTRADICTED, Restricted, restrict
from protoserve.inference.sufficient import sufficient_pieces
from protoserve.schema import (
    Alternative,
    Answer,
    Evidence,
    ImageSize,
    Level,
    Prediction,
    RestrictionEffect,
    Unrestricted,
)


def predictions(
    outputs: Outputs,
    table: EvidenceTable,
    geometries: Sequence[Geometry],
    options: ResolvedOptions | None = None,
    *,
    href: Callable[[int], str] | None = None,
) -> list[Prediction]:
    """Make one prediction per image, in order; `geometries[i]` maps the cells of image i to the sender's pixels.

    `options` select what each prediction shows (by default as `PredictOptions()`). A leaf belongs only to the level of
    its own depth. `href` maps a prototype to the URL of its picture.

    Raises BundleError for a probability that is NaN or infinite.
    """
    options = PredictOptions().resolved(table) if options is None else options
    if len(geometries) != len(outputs):
        raise InputError(f"{len(outputs)} images but {len(geometries)} geometries; give one for each image")
    plain, restricted = under_options(outputs, table, options)
    outputs = plain if restricted is None else restricted.outputs
    path = outputs.path
    on_path = path >= 0
    log_probability = outputs.log_probability[np.arange(len(path))[:, None], np.where(on_path, path, 0)]
    if np.isnan(outputs.log_probability).any() or not np.isfinite(log_probability[on_path]).all():
        raise BundleError("the graph returned a probability that is not a finite number; export the bundle again")
    log_probability = np.where(on_path, log_probability, np.float32(0.0))
    probability = np.exp(np.minimum(log_probability, 0.0)).tolist()
    # Conditionals are differences of logarithms, because deep in the tree the probabilities may underflow.
    conditional = np.exp(np.minimum(np.diff(log_probability, axis=1, prepend=np.float32(0.0)), 0.0)).tolist()
    others = _other_nodes(outputs, table, options)
    known = None if outputs.known is None else outputs.known.tolist()
    if table.thresholds is not None:
        # What the picture resembles does not depend on a restriction.
        arrays = plain.log_probability, plain.logit, plain.similarity
        known = table.thresholds.of_outputs(path, *arrays).tolist()
    if table.required:
        fits = None if known is None else np.array(known, dtype=np.bool_)
        known = known_with_required(fits, path, outputs.similarity, table.required).tolist()
    shown = np.s_[:, :, : options.top_k]
    columns = {
        kind: [
            getattr(outputs, f"{kind}_{name}")[shown].tolist()
            for name in ("prototype", "similarity", "weight", "contribution", "cell")
        ]
        for kind in ("evidence", "against")
    }
    positive = outputs.positive_contribution.tolist()
    off: NDArray[np.bool_] | None = None
    if options.without:
        off = np.zeros(len(table.prototypes), dtype=np.bool_)
        off[list(options.without)] = True
    found: list[Answer] | None = None
    # The promise was made with all prototypes.
    if options.threshold is not None and options.precision is not None and not options.without:
        restriction = options.restriction or table.everything
        found = answers(path, log_probability, known, restriction, options.precision, options.threshold)
    result = []
    for image, geometry in enumerate(geometries):
        nodes = [node for node in path[image].tolist() if node >= 0]
        places = Places(table, geometry, href)
        levels = []
        for level, node in enumerate(nodes):
            logit = prior = rest = None
            share: float | None = 1.0
            evidence: dict[str, list[Evidence]] = {"evidence": [], "against": []}
            if table.has_head[node]:
                for kind, sign in (("evidence", 1.0), ("against", -1.0)):
                    rows = zip(*(column[image][level] for column in columns[kind]), strict=True)
                    heat = outputs.evidence_map[image, level] if options.maps and kind == "evidence" else None
                    evidence[kind] = _evidence(rows, sign, heat, table, places)
                logit, prior = float(outputs.logit[image, node]), table.prior[node]
                told = sum(piece.contribution for pieces in evidence.values() for piece in pieces)
                rest = logit - prior - told
                share = _share(evidence["evidence"], positive[image][level])
            levels.append(
                Level(
                    level=level + 1,
                    node=table.names[node],
                    label=table.nodes[node][-1],
                    probability=probability[image][level],
                    conditional=1.0 if table.forced[node] else conditional[image][level],
                    forced=table.forced[node],
                    known=None if known is None else known[image][level],
                    alternatives=others[image][level],
                    logit=logit,
                    prior=prior,
                    rest=rest,
                    evidence_share=share,
                    sufficient=_sufficient(outputs, image, node, table, options.top_k, off),
                    **evidence,
                )
            )
        result.append(
            Prediction(
                model=table.model,
                image=ImageSize(width=geometry.picture_width, height=geometry.picture_height),
                path=list(table.nodes[nodes[-1]]),
                known_through_level=None if known is None else sum(known[image]),
                without=list(options.without),
                contrast=contrast_with(outputs, image, table, places, options),
                levels=levels,
                answer=None if found is None else found[image],
                restriction=None if restricted is None else _effect(plain, restricted, table, image),
            )
        )
    return result


def under_options(
    outputs: Outputs, table: EvidenceTable, options: ResolvedOptions
) -> tuple[Outputs, Restricted | None]:
    """Return the outputs without the prototypes that the options switch off, and these under their restriction; None
    where they have none."""
    if options.without:
        outputs = required_switches(table).without(outputs, options.without)
    if options.restriction is None or table.host_evidence is None:
        return outputs, None
    return outputs, restrict(outputs, options.restriction, table.host_evidence)


def _effect(plain: Outputs, restricted: Restricted, table: EvidenceTable, image: int) -> RestrictionEffect:
    """Say what a restriction did to the prediction for one image."""
    path, excluded = plain.path[image], float(restricted.excluded[image])
    other = None
    if (path != restricted.outputs.path[image]).any():
        leaf = int(path[path >= 0][-1])
        probability = float(np.exp(min(float(plain.log_probability[image, leaf]), 0.0)))
        other = Unrestricted(path=list(table.nodes[leaf]), probability=probability)
    return RestrictionEffect(excluded=excluded, contradicted=excluded > CONTRADICTED, unrestricted=other)


def _sufficient(
    outputs: Outputs, image: int, node: int, table: EvidenceTable, top_k: int, off: NDArray[np.bool_] | None
) -> int | None:
    """Count the prototypes that prove the node, at most `top_k`; `off` bool [prototypes] are those switched off."""
    evidence = table.host_evidence
    if evidence is None or not table.has_head[node] or not top_k:
        return None
    layer = evidence.layer_of(node)
    low, high = (bound[layer.prototypes] for bound in table.bounds)
    similarity = outputs.similarity[image, layer.prototypes].astype(np.float64)
    if off is not None and (known := off[layer.prototypes]).any():
        low, high = np.where(known, similarity, low), np.where(known, similarity, high)
    return sufficient_pieces(layer, int(evidence.member_of[node]), similarity, low, high, top_k)


def _share(evidence: Sequence[Evidence], positive: float) -> float | None:
    """The part of all positive contributions that `evidence` shows: 1 where there are none, None where their sum is not
    known (NaN)."""
    if math.isnan(positive):
        return None
    # The sum of rounded numbers may exceed the rounded sum.
    return min(1.0, sum(piece.contribution for piece in evidence) / positive) if positive > 0 else 1.0


def _evidence(
    rows: Iterable[tuple[int, float, float, float, int]],
    sign: float,
    heat: NDArray[np.float32] | None,
    table: EvidenceTable,
    places: Places,
) -> list[Evidence]:
    """Make the evidence of one level from those `rows` whose contribution has the `sign`; the strongest come first.

    `rows` hold prototype, similarity, weight, contribution and cell; `heat` is [evidence, rows, columns].
    """
    pieces = []
    for rank, (prototype, similarity, weight, contribution, cell) in enumerate(rows):
        if prototype < 0 or sign * contribution <= 0:
            break
        place = places.of(prototype, cell)
        pieces.append(
            Evidence(
                prototype=prototype,
                similarity=similarity,
                usual=table.prototypes[prototype].usual or 0.0,
                weight=weight,
                contribution=contribution,
                member=place.member,
                box=place.box,
                seen=place.seen,
                map=None if heat is None else _map(heat[rank], place.cells),
                source=place.source,
            )
        )
    return pieces


def _map(padded: NDArray[np.float32], cells: Cells) -> list[list[float]] | None:
    """Crop a map to the member's own grid; None if the member's graph did not compute it (NaN)."""
    cropped: list[list[float]] = padded[: cells.rows, : cells.columns].tolist()
    return None if np.isnan(padded[0, 0]) else cropped


def _other_nodes(outputs: Outputs, table: EvidenceTable, options: ResolvedOptions) -> list[list[list[Alternative]]]:
    """Find the most probable nodes of each level except the predicted one, as many as asked for: [images][levels], most
    probable first. Nodes that the restriction does not allow are no alternatives."""
    count, restriction = options.alternatives, options.restriction
    allowed = None if restriction is None else restriction.allowed
    images = np.arange(len(outputs))
    result: list[list[list[Alternative]]] = [[] for _ in images]
    for level, nodes in enumerate(table.levels):
        # −∞ excludes the predicted node. A node of probability 0 must rank above it, hence the maximum.
        candidates = np.maximum(outputs.log_probability[:, nodes.start : nodes.stop], np.finfo(np.float32).min)
        predicted = outputs.path[:, level]
        on_path = predicted >= 0
        candidates[images[on_path], predicted[on_path] - nodes.start] = -np.inf
        kept = min(count, len(nodes) - 1)
        best = np.argpartition(-candidates, max(kept - 1, 0), axis=1)[:, :kept]
        rows = images[:, None]
        values = candidates[rows, best]
        # Ties are broken by node number, so that the result does not depend on numpy's partitioning.
        order = np.lexsort((best, -values))
        best = best[rows, order] + nodes.start
        probability = np.exp(np.minimum(values[rows, order], 0.0))
        for image, (image_nodes, values_of_image) in enumerate(zip(best.tolist(), probability.tolist(), strict=True)):
            result[image].append(
                [
                    Alternative(node=table.names[node], label=table.nodes[node][-1], probability=value)
                    for node, value in zip(image_nodes, values_of_image, strict=True)
                    if allowed is None or allowed[node]
                ]
            )
    return result
