"""Each statement holds or fails by its own figure alone."""

from __future__ import annotations

import numpy as np
import pytest

from protoserve.audit.checks import FEWEST_IMAGES, checks
from protoserve.audit.intervals import compare
from protoserve.bundle.truth_card import (
    Additivity,
    Background,
    BackgroundIndependence,
    BoxEffect,
    Check,
    Comparison,
    Fill,
    Locality,
    PartEffects,
    PartHits,
    PartKind,
    Perturbation,
    PerturbationKind,
    Replacement,
    Sparsity,
)


def apart(difference: float, *, spread: float = 0.0, images: int = FEWEST_IMAGES) -> Comparison:
    """A comparison of images whose differences lie `spread` around `difference`."""
    baseline = np.linspace(0.1, 0.4, images)
    return compare(baseline + difference + spread * (-1.0) ** np.arange(images), baseline, seed=0)


def additivity(gap: float = 0.0, piece_gap: float = 0.0) -> Additivity:
    return Additivity(largest_gap=gap, largest_piece_gap=piece_gap, tolerance=1e-4, gap=None)


def effect(difference: Comparison, fill: Fill = "mean") -> BoxEffect:
    curves = {name: [0.0] for name in ("evidence", "random", "least", "area")}
    same = apart(0.0)
    return BoxEffect(level=1, fill=fill, steps=[1], first=same, over_random=difference, over_least=same, **curves)


def local(difference: Comparison | None, replacement: Replacement = "noise") -> Locality:
    return Locality(
        level=1,
        replacement=replacement,
        activation_change=difference,
        place_change=None,
        rank_change=apart(0.0),
        accuracy_change=apart(0.0),
        bounded=0,
        unknown=0,
    )


def hits(difference: Comparison, part: PartKind = "object") -> PartHits:
    return PartHits(level=1, part=part, first=difference, first_three=apart(0.0))


def sensitive(difference: Comparison, kind: PerturbationKind = "all") -> Perturbation:
    return Perturbation(level=1, kind=kind, drop=difference, bounded=0, unknown=0)


def of_parts(**changed: Comparison) -> PartEffects:
    figures = dict.fromkeys(("complete", "undistracted", "correct", "contrastive"), apart(0.5))
    return PartEffects(level=1, **(figures | changed))


def background(difference: Comparison, kind: Background = "swapped") -> BackgroundIndependence:
    return BackgroundIndependence(level=1, background=kind, answers=difference, first=None)


def telling(share: float, images: int = FEWEST_IMAGES) -> Sparsity:
    figure = compare(np.full(images, share), np.full(images, 0.5), seed=0)
    return Sparsity(level=1, prototypes_for_80=figure, always_on=figure, telling=figure, distinctiveness=None)


def found(**changed: object) -> dict[str, Check]:
    figures: dict[str, object] = {
        "additivity": additivity(),
        "necessity": [effect(apart(1.0))],
        "locality": [local(apart(-1.0))],
        "parts": [hits(apart(0.5)), hits(apart(0.5), "decisive")],
        "sparsity": [telling(1.0)],
        "perturbation": [sensitive(apart(0.5))],
        "part_effects": [of_parts()],
        "backgrounds": [background(apart(0.5))],
    }
    return {check.name: check for check in checks(**(figures | changed))}  # type: ignore[arg-type]


def test_true_evidence_passes_every_check() -> None:
    passed = found()
    assert list(passed) == [
        "additive",
        "own contributions",
        "necessary",
        "local",
        "sensitive",
        "on the object",
        "on a decisive part",
        "complete",
        "correct",
        "contrastive",
        "background independent",
        "telling",
    ]
    assert all(check.passed for check in passed.values())
    assert passed["additive"].level is None and passed["local"].level == 1


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"additivity": additivity(gap=2e-4)}, "additive"),
        ({"additivity": additivity(piece_gap=2e-4)}, "own contributions"),
        ({"necessity": [effect(apart(0.0))]}, "necessary"),
        ({"necessity": [effect(apart(0.1, spread=0.5))]}, "necessary"),
        ({"locality": [local(apart(0.0))]}, "local"),
        ({"locality": [local(apart(-0.1, spread=0.5))]}, "local"),
        ({"locality": [local(apart(-1.0)), local(apart(0.0), "attack")]}, "local under attack"),
        ({"perturbation": [sensitive(apart(0.0))]}, "sensitive"),
        ({"parts": [hits(apart(0.0)), hits(apart(0.5), "decisive")]}, "on the object"),
        ({"parts": [hits(apart(0.5)), hits(apart(-0.5), "decisive")]}, "on a decisive part"),
        ({"part_effects": [of_parts(complete=apart(0.0))]}, "complete"),
        ({"part_effects": [of_parts(correct=apart(0.1, spread=0.5))]}, "correct"),
        ({"part_effects": [of_parts(contrastive=apart(-0.1))]}, "contrastive"),
        ({"backgrounds": [background(apart(0.0))]}, "background independent"),
        ({"sparsity": [telling(0.89)]}, "telling"),
    ],
)
def test_a_figure_at_its_baseline_fails_its_own_check(changed: dict[str, object], failing: str) -> None:
    assert [name for name, check in found(**changed).items() if not check.passed] == [failing]


def test_figures_that_are_not_known_or_not_asked_make_no_check() -> None:
    names = set(
        found(
            locality=[local(None), local(apart(0.0), "picture")],
            parts=[],
            necessity=[effect(apart(0.0), "blur")],
            perturbation=[sensitive(apart(0.0), "hue")],
            part_effects=[],
            backgrounds=[background(apart(0.0), "rendered")],
        )
    )
    assert names == {"additive", "own contributions", "telling"}


def test_a_few_images_decide_nothing() -> None:
    few = FEWEST_IMAGES - 1
    names = set(
        found(
            necessity=[effect(apart(1.0, images=few))],
            locality=[local(apart(-1.0, images=few))],
            parts=[hits(apart(0.5, images=few))],
            sparsity=[telling(1.0, images=few)],
            perturbation=[sensitive(apart(0.5, images=few))],
            part_effects=[of_parts(**dict.fromkeys(("complete", "correct", "contrastive"), apart(0.5, images=few)))],
            backgrounds=[background(apart(0.5, images=few))],
        )
    )
    assert names == {"additive", "own contributions"}
