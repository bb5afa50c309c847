"""What a request asks of a prediction: one record, filled by Python calls, HTTP queries and commands alike.

An option is a field of `PredictOptions` and, with the same name and type, a keyword of `OptionKeywords`. It is checked
in `PredictOptions.resolved`, before any picture is read, and acts after the engine, on one picture's arrays. So every
request of a mixed batch has its own options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypedDict

from protoserve.errors import InputError
from protoserve.inference.evidence_table import EvidenceTable

DEFAULT_TOP_K: Final = 5


class OptionKeywords(TypedDict, total=False):
    """The keywords of `Classifier.predict`; their defaults are those of `PredictOptions`."""

    top_k: int | None
    alternatives: int
    maps: bool


@dataclass(frozen=True)
class PredictOptions:
    """The options of one request, as given.

    >>> PredictOptions(top_k=3).alternatives
    3
    """

    top_k: int | None = None
    """The most prototypes per level that speak for its node, and as many against it: 0 to the bundle's limit; None for
    5, or for that limit if it is less."""
    alternatives: int = 3
    """The most other nodes per level."""
    maps: bool = False
    """Whether each prototype that speaks for a node has its similarity at every cell."""

    def resolved(self, table: EvidenceTable) -> ResolvedOptions:
        """Check the options for the model of `table`.

        Raises InputError for a `top_k` or `alternatives` out of range.
        """
        if self.alternatives < 0:
            raise InputError(f"alternatives must be 0 or more, not {self.alternatives}")
        return ResolvedOptions(
            top_k=_checked_top_k(table, self.top_k),
            alternatives=self.alternatives,
            maps=self.maps,
        )


@dataclass(frozen=True)
class ResolvedOptions:
    """Options that fit a model: nothing is left open."""

    top_k: int
    alternatives: int
    maps: bool


def _checked_top_k(table: EvidenceTable, top_k: int | None) -> int:
    if top_k is None:
        return min(DEFAULT_TOP_K, table.top_k)
    if not 0 <= top_k <= table.top_k:
        raise InputError(
            f"top_k must be from 0 to {table.top_k}, not {top_k}: {table.model.name!r} was exported with "
            f"{table.top_k} prototypes per level"
        )
    return top_k
