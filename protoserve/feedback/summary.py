"""What feedback says, in numbers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from pydantic import Field

from protoserve.feedback.record import FeedbackRecord, Verdict
from protoserve.feedback.store import Kept
from protoserve.schema import Contract

VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "wrong reason")


class Confusion(Contract):
    """Answers that people corrected: the leaf that was predicted, the node that is right, and on how many pictures."""

    predicted: str
    right: str | None = Field(description="null where nobody knew")
    pictures: int


class Blame(Contract):
    """A prototype that people called a wrong reason, and on how many pictures."""

    prototype: int
    pictures: int


class VersionSummary(Contract):
    """The feedback on one version of a model, the most frequent first."""

    model: str
    first: str = Field(description="when the first of it was received, in ISO 8601")
    last: str
    verdicts: dict[Verdict, int]
    pictures: int = Field(description="different pictures")
    disputed: list[str] = Field(description="pictures, by SHA-256, of which people named different right nodes")
    confusions: list[Confusion]
    blamed: list[Blame]


class FeedbackSummary(Contract):
    """All feedback of a store."""

    records: int
    repeated: int = Field(description="records of requests that were sent again, which count once")
    torn: int = Field(description="lines that a stopped writer left unfinished")
    versions: list[VersionSummary] = Field(description="by the time of their last feedback, the newest first")


def summary(kept: Kept) -> FeedbackSummary:
    """Sum up feedback by version of the model."""
    by_version: defaultdict[str, list[FeedbackRecord]] = defaultdict(list)
    for record in kept.records:
        by_version[record.model].append(record)
    versions = [_of_version(model, records) for model, records in by_version.items()]
    return FeedbackSummary(
        records=len(kept.records),
        repeated=kept.repeated,
        torn=kept.torn,
        versions=sorted(versions, key=lambda version: version.last, reverse=True),
    )


def right_nodes(records: Iterable[FeedbackRecord]) -> dict[str, set[str]]:
    """Map each picture, by its SHA-256, to the nodes that people said are right: the node of a correction, and the
    predicted leaf of an answer that was right."""
    nodes: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.verdict == "right":
            nodes[record.image].add(record.predicted)
        elif record.node is not None:
            nodes[record.image].add(record.node)
    return dict(nodes)


def agreed(nodes: Iterable[str]) -> str | None:
    """Return the deepest of several right nodes if all others lie above it, so that nobody contradicts anybody.

    >>> agreed({"Fruit", "Fruit/Pear"}), agreed({"Fruit/Apple", "Fruit/Pear"})
    ('Fruit/Pear', None)
    """
    deepest = max(nodes, key=len)
    return deepest if all(f"{deepest}/".startswith(f"{node}/") for node in nodes) else None


def _of_version(model: str, records: Sequence[FeedbackRecord]) -> VersionSummary:
    verdicts = Counter(record.verdict for record in records)
    confused: defaultdict[tuple[str, str | None], set[str]] = defaultdict(set)
    blamed: defaultdict[int, set[str]] = defaultdict(set)
    for record in records:
        if record.verdict == "wrong":
            confused[record.predicted, record.node].add(record.image)
        for prototype in record.prototypes:
            blamed[prototype].add(record.image)
    times = [record.at for record in records]
    return VersionSummary(
        model=model,
        first=min(times).isoformat(),
        last=max(times).isoformat(),
        verdicts={verdict: verdicts[verdict] for verdict in VERDICTS},
        pictures=len({record.image for record in records}),
        disputed=sorted(image for image, nodes in right_nodes(records).items() if agreed(nodes) is None),
        confusions=sorted(
            (
                Confusion(predicted=predicted, right=right, pictures=len(images))
                for (predicted, right), images in confused.items()
            ),
            key=lambda confusion: (-confusion.pictures, confusion.predicted, confusion.right or ""),
        ),
        blamed=sorted(
            (Blame(prototype=prototype, pictures=len(images)) for prototype, images in blamed.items()),
            key=lambda blame: (-blame.pictures, blame.prototype),
        ),
    )
