"""A truth card with a figure of every kind."""

from __future__ import annotations

from typing import Final

from protoserve.bundle.truth_card import (
    Additivity,
    BackgroundIndependence,
    BoxEffect,
    Check,
    Comparison,
    Consistency,
    Estimate,
    Locality,
    PartEffects,
    PartHits,
    PartPurity,
    Perturbation,
    PrototypeFlags,
    Sparsity,
    Stability,
    Suspect,
    TruthCard,
)

IMAGES: Final = 12


def comparison(measured: float, baseline: float) -> Comparison:
    """A figure and its baseline, with intervals of ± 0.125."""
    means = (measured, baseline, measured - baseline)
    estimates = [Estimate(mean=mean, low=mean - 0.125, high=mean + 0.125, images=IMAGES) for mean in means]
    return Comparison(measured=estimates[0], baseline=estimates[1], difference=estimates[2])


def truth_card(seed: int = 0) -> TruthCard:
    """The card of an audit that fails one check."""
    effect = BoxEffect(
        level=1,
        fill="mean",
        steps=[1, 2],
        evidence=[0.5, 0.75],
        random=[0.25, 0.25],
        least=[0.0, 0.125],
        area=[0.0625, 0.125],
        first=comparison(0.5, 0.25),
        over_random=comparison(0.375, 0.1875),
        over_least=comparison(0.375, 0.0625),
    )
    local = Locality(
        level=1,
        replacement="noise",
        activation_change=comparison(70.5, 12.25),
        place_change=None,
        rank_change=comparison(2.0, 0.0),
        accuracy_change=comparison(0.5, 0.25),
        bounded=2,
        unknown=1,
    )
    hits = PartHits(level=1, part="object", first=comparison(0.75, 0.25), first_three=comparison(0.5, 0.25))
    sparse = Sparsity(
        level=1,
        prototypes_for_80=comparison(3.0, 6.0),
        always_on=comparison(0.25, 0.5),
        telling=comparison(0.75, 0.5),
        distinctiveness=comparison(0.875, 0.9375),
    )
    return TruthCard(
        data="toy",
        split="test",
        images=IMAGES,
        seed=seed,
        resamples=2000,
        audited_with="0.1.0",
        additivity=Additivity(largest_gap=2e-6, largest_piece_gap=1e-7, tolerance=1e-4, gap=comparison(1e-6, 2.5)),
        necessity=[effect],
        sufficiency=[effect.model_copy(update={"fill": "swap"})],
        locality=[local],
        perturbation=[Perturbation(level=1, kind="all", drop=comparison(0.5, 0.125), bounded=0, unknown=0)],
        parts=[hits],
        consistency=[Consistency(level=1, prototypes=8, consistent=0.75, shuffled=0.25)],
        part_effects=[
            PartEffects(
                level=1,
                complete=comparison(0.75, 0.25),
                undistracted=comparison(0.875, 0.75),
                correct=comparison(0.5, 0.0),
                contrastive=comparison(1.0, 0.5),
            )
        ],
        backgrounds=[
            BackgroundIndependence(
                level=1, background="swapped", answers=comparison(0.875, 0.25), first=comparison(0.75, 0.125)
            )
        ],
        purity=[PartPurity(level=1, prototypes=8, pure=0.625, shuffled=0.125, split="train")],
        stability=[Stability(level=1, same_parts=comparison(0.75, 0.125))],
        sparsity=[sparse],
        prototypes=PrototypeFlags(
            prototypes=8,
            telling=5,
            always_on=[2, 3],
            border=[3],
            off_object=[1],
            duplicates=[],
            suspects=[Suspect(prototype=1, node="Animal", place="off the object", share=0.9375, chance=0.75, adds=1.5)],
            split="train",
            images=30,
        ),
        checks=[
            Check(name="additive", level=None, passed=True, statement="the sums hold"),
            Check(name="local", level=1, passed=False, statement="the boxes hold"),
        ],
    )
