"""The statements that an audit tests, from the figures of a truth card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from protoserve.bundle.truth_card import (
    Additivity,
    BackgroundIndependence,
    BoxEffect,
    Check,
    Comparison,
    Locality,
    PartEffects,
    PartHits,
    Perturbation,
    Replacement,
    Sparsity,
)

# At least this share of first evidence must come from prototypes that tell their class from its siblings.
TELLING_SHARE: Final = 0.9
# A bootstrap of fewer pictures is too narrow to decide anything; that of one has no width.
FEWEST_IMAGES: Final = 10


def checks(
    additivity: Additivity,
    necessity: list[BoxEffect],
    locality: list[Locality],
    parts: list[PartHits],
    sparsity: list[Sparsity],
    *,
    perturbation: Sequence[Perturbation] = (),
    part_effects: Sequence[PartEffects] = (),
    backgrounds: Sequence[BackgroundIndependence] = (),
) -> list[Check]:
    """Test every statement; one that compares with a baseline holds if the interval of the difference is beyond 0.

    A statement about a level at which fewer than `FEWEST_IMAGES` images have evidence is left out.
    """
    return [
        *_sums(additivity),
        *_necessary(necessity),
        *_local(locality),
        *_sensitive(perturbation),
        *_on_parts(parts),
        *_of_parts(part_effects),
        *_independent(backgrounds),
        *_telling(sparsity),
    ]


def _sums(additivity: Additivity) -> Iterator[Check]:
    limit = additivity.tolerance
    yield Check(
        name="additive",
        level=None,
        passed=additivity.largest_gap <= limit,
        statement=f"prior and contributions add up to the logit: largest gap {additivity.largest_gap:.2g}, "
        f"allowed {limit:.2g}",
    )
    yield Check(
        name="own contributions",
        level=None,
        passed=additivity.largest_piece_gap <= limit,
        statement="every stated contribution is its prototype's own: largest gap "
        f"{additivity.largest_piece_gap:.2g}, allowed {limit:.2g}",
    )


def _necessary(necessity: list[BoxEffect]) -> Iterator[Check]:
    for effect in necessity:
        if effect.fill == "mean" and _enough(effect.over_random):
            difference = effect.over_random.difference
            yield Check(
                name="necessary",
                level=effect.level,
                passed=difference.low > 0,
                statement="filling the evidence boxes costs more than filling random ones: by "
                f"{difference.mean:.3f} nats [{difference.low:.3f}, {difference.high:.3f}]",
            )


# Another picture may hold what the similarity looks for, so it makes no statement.
_LOCAL: Final[Mapping[Replacement, tuple[str, str]]] = {
    "noise": ("local", "noise"),
    "attack": ("local under attack", "an attack"),
}


def _local(locality: list[Locality]) -> Iterator[Check]:
    for found in locality:
        change = found.activation_change
        if found.replacement in _LOCAL and change is not None and _enough(change):
            name, what = _LOCAL[found.replacement]
            yield Check(
                name=name,
                level=found.level,
                passed=change.difference.high < 0,
                statement=f"{what} outside the box changes the similarity less than {what} inside: "
                f"{change.measured.mean:.1f} % against {change.baseline.mean:.1f} %",
            )


def _sensitive(perturbation: Sequence[Perturbation]) -> Iterator[Check]:
    for found in perturbation:
        drop = found.drop
        if found.kind == "all" and drop is not None and _enough(drop):
            yield Check(
                name="sensitive",
                level=found.level,
                passed=drop.difference.low > 0,
                statement="perturbing the box lowers the similarity more than perturbing the rest: by "
                f"{drop.measured.mean:.0%} against {drop.baseline.mean:.0%}",
            )


def _on_parts(parts: list[PartHits]) -> Iterator[Check]:
    for hits in parts:
        first = hits.first
        if not _enough(first):
            continue
        place = "the object" if hits.part == "object" else "a decisive part"
        yield Check(
            name=f"on {place}",
            level=hits.level,
            passed=first.difference.low > 0,
            statement=f"first evidence lies on {place} more often than by chance: {first.measured.mean:.0%} against "
            f"{first.baseline.mean:.0%}",
        )


# What the evidence is said to do, and what it is beside, by the field of `PartEffects`.
_PART_EFFECTS: Final = {
    "complete": "the parts that the evidence names hold a decisive one more often than if it were spread evenly",
    "correct": "contributions rank the parts by what the answer loses without them better than the parts' sizes do",
    "contrastive": "decisive parts add more to the node than to its siblings",
}


def _of_parts(part_effects: Sequence[PartEffects]) -> Iterator[Check]:
    for found in part_effects:
        for name, statement in _PART_EFFECTS.items():
            figure: Comparison | None = getattr(found, name)
            if figure is not None and _enough(figure):
                yield Check(
                    name=name,
                    level=found.level,
                    passed=figure.difference.low > 0,
                    statement=f"{statement}: {figure.measured.mean:.2f} against {figure.baseline.mean:.2f}",
                )


def _independent(backgrounds: Sequence[BackgroundIndependence]) -> Iterator[Check]:
    for found in backgrounds:
        if found.background == "swapped" and _enough(found.answers):
            kept = found.answers
            yield Check(
                name="background independent",
                level=found.level,
                passed=kept.difference.low > 0,
                statement="answers follow the object rather than the background: "
                f"{kept.measured.mean:.0%} stay on another background, {kept.baseline.mean:.0%} with another object",
            )


def _telling(sparsity: list[Sparsity]) -> Iterator[Check]:
    for found in sparsity:
        share = found.telling.measured.mean
        if not _enough(found.telling):
            continue
        yield Check(
            name="telling",
            level=found.level,
            passed=share >= TELLING_SHARE,
            statement=f"first evidence comes from prototypes that tell the class from its siblings: {share:.0%}, at "
            f"least {TELLING_SHARE:.0%}",
        )


def _enough(comparison: Comparison) -> bool:
    return comparison.measured.images >= FEWEST_IMAGES
