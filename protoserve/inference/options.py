"""What a request asks of a prediction: one record, filled by Python calls, HTTP queries and commands alike.

An option is a field of `PredictOptions` and, with the same name and type, a keyword of `OptionKeywords`. It is checked
in `PredictOptions.resolved`, before any picture is read, and acts after the engine, on one picture's arrays. So every
request of a mixed batch has its own options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from protoserve.bundle.ensemble import Ensemble
from protoserve.bundle.manifest import ListRecord
from protoserve.errors import InputError, nearest
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.switching import Switches
from protoserve.promise.threshold import Threshold
from protoserve.restriction import Restriction, combined, restriction_of

DEFAULT_TOP_K: Final = 5
# Restrictions kept, one per combination that was asked for.
_KEPT: Final = 256


class OptionKeywords(TypedDict, total=False):
    """The keywords of `Classifier.predict`; their defaults are those of `PredictOptions`."""

    top_k: int | None
    alternatives: int
    maps: bool
    contrast: str | None
    without: Sequence[int]
    precision: float | None
    allow: Sequence[str]
    deny: Sequence[str]
    depth: Mapping[str, int] | None
    prior: Mapping[str, float] | None
    list: str | None


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
    contrast: str | None = None
    """The node about which the request asks "why not this one?"."""
    without: Sequence[int] = ()
    """The prototypes to answer without, as if they were switched off."""
    precision: float | None = None
    """The share of answers that must be right, from 0.5 to below 1; None for the bundle's own."""
    allow: Sequence[str] = ()
    """Nodes in whose branches the picture's class must lie; none for all."""
    deny: Sequence[str] = ()
    """Nodes in whose branches it can't lie."""
    depth: Mapping[str, int] | None = None
    """Node → the deepest level of paths through it; `""` is the root."""
    prior: Mapping[str, float] | None = None
    """Node → how much more frequent its leaves are than in training, relative to others."""
    list: str | None = None
    """The name of one of the bundle's lists, which holds in addition."""

    @property
    def sets_threshold(self) -> bool:
        """Whether the answer's threshold may be another than that of a request without options."""
        return self.precision is not None or any((self.allow, self.deny, self.depth, self.prior, self.list))

    def resolved(self, table: EvidenceTable) -> ResolvedOptions:
        """Check the options for the model of `table`.

        Raises InputError for a number out of range, for a node or prototype that the model does not have, for a model
        without the last-layer weights that an option needs, for a restriction that can't be met (see `restriction_of`),
        and for a `precision` of a model that promises none.
        """
        if self.alternatives < 0:
            raise InputError(f"alternatives must be 0 or more, not {self.alternatives}")
        if self.contrast is not None or self.without:
            required_switches(table)
        restriction = resolved_restriction(table, self)
        precision = checked_precision(table, self.precision)
        threshold = None
        if table.answering is not None and precision is not None:
            threshold = table.answering.threshold(restriction or table.everything, precision)
        return ResolvedOptions(
            top_k=_checked_top_k(table, self.top_k),
            alternatives=self.alternatives,
            maps=self.maps,
            contrast=None if self.contrast is None else _checked_node(table, self.contrast, "contrast"),
            without=_checked_prototypes(table, self.without),
            restriction=restriction,
            precision=precision,
            threshold=threshold,
            given=self,
        )


@dataclass(frozen=True)
class ResolvedOptions:
    """Options that fit a model: nodes are numbers, prototypes are in order, each once, and nothing is left open."""

    top_k: int
    alternatives: int
    maps: bool
    contrast: int | None = None
    without: tuple[int, ...] = ()
    restriction: Restriction | None = None
    precision: float | None = None
    threshold: Threshold | None = None
    """That of `precision` under the restriction; None for a model that promises nothing."""
    all_nodes: bool = False
    """Whether the probabilities of all nodes are wanted beside the prediction."""
    given: PredictOptions = field(default=PredictOptions(), compare=False)
    """The options from which these follow."""

    @property
    def needs_full_graph(self) -> bool:
        """Whether they need what a routed graph does not compute: the logits or probabilities of all nodes."""
        return self.all_nodes or self.contrast is not None or bool(self.without) or self.restriction is not None


def resolved_restriction(table: EvidenceTable, options: PredictOptions) -> Restriction | None:
    """Make the restriction of a request; None where it has none. Kept for the next request with the same."""
    depth, prior = dict(options.depth or {}), dict(options.prior or {})
    key = (tuple(options.allow), tuple(options.deny), tuple(depth.items()), tuple(prior.items()), options.list)
    if not any(key):
        return None
    found = table.restrictions.get(key)
    if found is None:
        taxonomy = table.bundle.taxonomy
        found = restriction_of(taxonomy, allow=options.allow, deny=options.deny, depth=depth, prior=prior)
        if options.list is not None:
            record = _named_list(table, options.list)
            found = combined(restriction_of(taxonomy, **record.model_dump()), found)
        if len(table.restrictions) >= _KEPT:
            table.restrictions.clear()
        table.restrictions[key] = found
    if table.host_evidence is None:
        raise InputError(
            f"{table.model.name!r} was exported without its last-layer weights, so it has no evidence for a restricted "
            "path; export its run again"
        )
    return found


def _named_list(table: EvidenceTable, name: str) -> ListRecord:
    bundle = table.bundle
    members = bundle.members if isinstance(bundle, Ensemble) else (bundle,)
    lists = members[0].manifest.lists
    if name not in lists:
        known = f"it has {', '.join(sorted(lists))}" if lists else "it has none; 'protoserve lists' adds them"
        raise InputError(f"list: {table.model.name!r} has no list {name[:80]!r}{nearest(name[:80], lists)}: {known}")
    if any(member.manifest.lists.get(name) != lists[name] for member in members):
        raise InputError(f"list: the members of {table.model.name!r} don't agree on the list {name!r}; add it to each")
    return lists[name]


def checked_precision(table: EvidenceTable, precision: float | None) -> float | None:
    """Return the precision to promise; None for a model that promises none.

    Raises InputError for a precision out of range, or if such a model is asked for one.
    """
    if precision is None:
        return None if table.answering is None else table.answering.precision
    if not 0.5 <= precision < 1:
        raise InputError(f"precision must be from 0.5 to below 1, not {precision:g}")
    if table.answering is None:
        raise InputError(
            f"precision: {table.model.name!r} promises none: it is an ensemble, or was exported by an older version; "
            "leave precision out, or train and export again"
        )
    return precision


def required_switches(table: EvidenceTable) -> Switches:
    """Return the table's switches; raises InputError for a model that was exported without its last-layer weights."""
    return Switches(table.bundle) if table.switches is None else table.switches


def _checked_top_k(table: EvidenceTable, top_k: int | None) -> int:
    if top_k is None:
        return min(DEFAULT_TOP_K, table.top_k)
    if not 0 <= top_k <= table.top_k:
        raise InputError(
            f"top_k must be from 0 to {table.top_k}, not {top_k}: {table.model.name!r} was exported with "
            f"{table.top_k} prototypes per level"
        )
    return top_k


def _checked_node(table: EvidenceTable, name: str, option: str) -> int:
    node = table.index.get(name)
    if node is None:
        raise InputError(f"{option}: the taxonomy has no node {name[:80]!r}{nearest(name[:80], table.names)}")
    return node


def _checked_prototypes(table: EvidenceTable, prototypes: Sequence[int]) -> tuple[int, ...]:
    count = len(table.prototypes)
    for prototype in prototypes:
        if not 0 <= prototype < count:
            raise InputError(
                f"without: there is no prototype {prototype}; those of {table.model.name!r} are numbered 0 to "
                f"{count - 1}, and the nearest is {min(max(prototype, 0), count - 1)}"
            )
    return tuple(sorted(set(prototypes)))
