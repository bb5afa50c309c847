"""Answers as if some prototypes were switched off, from a graph's outputs alone.

A prototype that is off counts as usual, whatever the picture shows: its similarity is its usual similarity. So its
contribution to every node is 0, priors stay as they are, and every logit is still prior + Σ contributions, exactly.
`protoserve curate --disable` exports graphs that compute the same.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from protoserve.bundle.ensemble import Ensemble, Model
from protoserve.errors import InputError
from protoserve.inference.engine import Outputs
from protoserve.inference.last_layers import HostEvidence
from protoserve.inference.probabilities import most_probable_path, node_log_probability
from protoserve.inference.restricting import host_evidence
from protoserve.inference.thresholds import read_thresholds
from protoserve.novelty import parent_names


class Switches:
    """The tables of a bundle or an ensemble with which prototypes are switched off; needs its last-layer weights."""

    def __init__(self, model: Model, evidence: HostEvidence | None = None) -> None:
        """Read the tables; `evidence` is that of the model, read here if it is not given.

        Raises InputError for a bundle that was exported without its last-layer weights.
        """
        evidence = evidence or host_evidence(model)
        if evidence is None:
            raise InputError(
                f"{model.name!r} was exported without its last-layer weights, so nobody can say what it answers "
                "without a prototype, or why it does not answer another node; export its run again"
            )
        taxonomy, table = model.taxonomy, evidence.table
        self.taxonomy, self.kind, self.table, self.evidence = taxonomy, model.kind, table, evidence
        self.usual = np.array([record.usual or 0.0 for record in model.prototypes], dtype=np.float32)
        if isinstance(model, Ensemble):
            # Its weights are already divided by the members' temperatures.
            self._divisor = np.ones(len(table.members))
            self._members = tuple(Switches(member) for member in model.members)
            self._bounds = (*model.first_prototypes, len(model.prototypes))
            self._thresholds = None
        else:
            parents = parent_names(table.groups, taxonomy)
            temperature = [model.manifest.temperature.get(parent, 1.0) for parent in parents]
            self._divisor = np.repeat(temperature, table.sizes)
            self._members = ()
            self._bounds = ()
            self._thresholds = read_thresholds(model)

    def without(self, outputs: Outputs, prototypes: Collection[int]) -> Outputs:
        """Return the `outputs` as they would be if these prototypes were off.

        Only what competes beside these prototypes is computed again. Maps are those that the graph drew, so evidence of
        another path than the graph's has none (NaN). The members of an ensemble vote again on what is known.
        """
        off = np.array(sorted(prototypes), dtype=np.int64)
        similarity = outputs.similarity.copy()
        similarity[:, off] = self.usual[off]
        counted = replace(outputs, similarity=similarity)
        evidence = self.evidence
        # The last column is that of nodes that compete with no other, whose group is −1.
        touched = np.zeros(len(self.table.groups) + 1, dtype=np.bool_)
        touched[evidence.group_of_prototype[off]] = True
        logit = evidence.renewed_logits(counted, np.flatnonzero(touched).tolist())
        log_probability = self._log_probability(logit)
        path = most_probable_path(log_probability, self.taxonomy)
        told = (path != outputs.path) | (touched[evidence.group_of[path]] & (path >= 0))
        return replace(
            counted,
            log_probability=log_probability.astype(np.float32),
            logit=logit.astype(np.float32),
            path=path,
            known=self._known(counted, path),
            **evidence.renewed(counted, path, told),
        )

    def _log_probability(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-probabilities [images, nodes] from logits."""
        divided = logit.copy()
        divided[:, self.table.members] /= self._divisor
        return node_log_probability(divided, self.taxonomy, self.kind, self.table)

    def _known(self, outputs: Outputs, path: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Let an ensemble's members vote, as its engine does; None for a bundle, whose thresholds apply later."""
        votes = []
        for member, (start, stop) in zip(self._members, pairwise(self._bounds), strict=True):
            if member._thresholds is not None:
                own = replace(outputs, similarity=outputs.similarity[:, start:stop])
                logit = member.evidence.logits([own])
                log_probability = member._log_probability(logit)
                arrays = log_probability.astype(np.float32), logit.astype(np.float32), own.similarity
                votes.append(member._thresholds.of_outputs(path, *arrays))
        return np.mean(votes, axis=0) >= 0.5 if votes else None
