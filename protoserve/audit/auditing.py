"""Audits a bundle on labelled pictures and makes its truth card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

from protoserve import __version__
from protoserve.audit.additivity import additivity
from protoserve.audit.attack import SupportsGradient, attacked_locality
from protoserve.audit.backgrounds import background_independence
from protoserve.audit.checks import checks
from protoserve.audit.consistency import consistency
from protoserve.audit.intervals import RESAMPLES
from protoserve.audit.interventions import Interventions, find_interventions
from protoserve.audit.locality import locality
from protoserve.audit.masks import Masks
from protoserve.audit.necessity import box_effects
from protoserve.audit.part_effects import part_effects
from protoserve.audit.parts import part_hits
from protoserve.audit.perturbation import perturbation
from protoserve.audit.prototypes import measure, prototype_flags
from protoserve.audit.purity import purity
from protoserve.audit.sample import Sample, choose, read_sample
from protoserve.audit.sparsity import sparsity
from protoserve.audit.stability import stability
from protoserve.audit.subject import Subject, SupportsRun, pieces_of
from protoserve.bundle.folder import Bundle
from protoserve.bundle.truth_card import (
    BackgroundIndependence,
    BoxEffect,
    Consistency,
    PartEffects,
    PartHits,
    PartPurity,
    Perturbation,
    PrototypeFlags,
    Stability,
    TruthCard,
)
from protoserve.data.dataset import holds_split, read_split
from protoserve.data.folders import PassedOver
from protoserve.errors import InputError
from protoserve.names import visible
from protoserve.similarity_statistics import SimilarityStatistics

TRAINING_SPLIT: Final = "train"
# Pictures that show which prototypes tell their class from its siblings.
TRAINING_IMAGES: Final = 2000

# Shows the progress of a step with a description and a total; the block gets a function to call with items done.
Tracked: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def untracked(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show no progress."""
    yield lambda items: None


def audit(
    bundle: Bundle,
    engine: SupportsRun,
    data: Path,
    split: str = "test",
    *,
    images: int = 100,
    seed: int = 0,
    masks: Masks | None = None,
    quick: bool = False,
    network: SupportsGradient | None = None,
    tracked: Tracked = untracked,
) -> TruthCard:
    """Audit a bundle on `images` pictures of a split, chosen at random by `seed`.

    Which prototypes tell their class, and where their contributions come from, is measured on up to `TRAINING_IMAGES`
    pictures of `train`, or on the audited split if there is none. With `quick`, perturbation, necessity and sufficiency
    are left out, which take most of the time: hundreds of runs per picture. With a `network`, that of the bundle's run,
    locality is measured under attack, too. Raises InputError for a split that does not exist, TaxonomyError for images
    of other classes, BundleError for a bundle without its last-layer weights, and as `decode` for a picture that can't
    be read.
    """
    subject = Subject.of(bundle, engine)
    dataset = read_split(data, split, bundle.taxonomy, left_out=bundle.left_out)
    with tracked("reading pictures", min(images, len(dataset))) as advance:
        sample = read_sample(dataset, bundle.input, images, seed, advance)
    learned = dataset
    if split != TRAINING_SPLIT and holds_split(data, TRAINING_SPLIT):
        learned = read_split(data, TRAINING_SPLIT, bundle.taxonomy, left_out=bundle.left_out)
    learned = choose(learned, TRAINING_IMAGES, seed)
    with tracked("measuring prototypes", len(learned)) as advance:
        measured = measure(subject, bundle.input, learned, advance, masks)
    pure: list[PartPurity] = []
    if masks is not None:
        with tracked("purity", len(measured.geometries)) as advance:
            pure = purity(subject, masks, learned.images, measured.geometries, measured.nearest, learned.split, advance)
    return audit_sample(
        subject,
        sample,
        measured.statistics,
        prototype_flags(bundle.prototypes, measured),
        data=visible(data.name),
        split=dataset.split,
        passed_over=dataset.passed_over,
        seed=seed,
        masks=masks,
        interventions=find_interventions(data, masks, bundle.input),
        pure=pure,
        quick=quick,
        network=network,
        tracked=tracked,
    )


def audit_sample(
    subject: Subject,
    sample: Sample,
    statistics: SimilarityStatistics,
    prototypes: PrototypeFlags,
    *,
    data: str,
    split: str,
    passed_over: PassedOver | None = None,
    seed: int,
    masks: Masks | None = None,
    interventions: Interventions | None = None,
    pure: Sequence[PartPurity] = (),
    quick: bool = False,
    network: SupportsGradient | None = None,
    tracked: Tracked = untracked,
) -> TruthCard:
    """Audit a model on pictures that are read already; `data` and `split` name their data set.

    `statistics`, `prototypes` and the purity, `pure`, were measured on other pictures.

    Raises InputError if no picture has evidence at any level.
    """
    with tracked("predicting", len(sample)) as advance:
        outputs = subject.run(sample.arrays, advance)
    pieces = pieces_of(outputs)
    if not pieces:
        raise InputError(
            f"{data}: no prototype speaks for any node of the {len(sample)} pictures of {split!r}, so there is no "
            "evidence to audit; give another bundle or --split"
        )
    added = additivity(subject, outputs, seed)
    with tracked("locality", len(pieces)) as advance:
        local = locality(subject, sample, outputs, pieces, seed, advance=advance)
    if network is not None:
        with tracked("attack", len(pieces)) as advance:
            local += attacked_locality(subject, sample, outputs, pieces, seed, network, advance)
    sensitive: list[Perturbation] = []
    hits: list[PartHits] = []
    stable: list[Stability] = []
    consistent: list[Consistency] = []
    effects_of_parts: list[PartEffects] = []
    independent: list[BackgroundIndependence] = []
    if masks is not None:
        with tracked("parts", len(sample)) as advance:
            hits = part_hits(subject, sample, masks, pieces, seed, advance)
        with tracked("stability", len(sample)) as advance:
            stable = stability(subject, sample, masks, outputs, pieces, seed, advance)
        with tracked("consistency", len(sample)) as advance:
            consistent = consistency(subject, sample, masks, outputs, advance)
        with tracked("backgrounds", len(sample)) as advance:
            independent = background_independence(subject, sample, masks, interventions, outputs, pieces, seed, advance)
    if masks is not None and interventions is not None:
        with tracked("parts left out", len(sample)) as advance:
            effects_of_parts = part_effects(subject, sample, masks, interventions, outputs, pieces, seed, advance)
    effects: tuple[list[BoxEffect], list[BoxEffect]] = ([], [])
    if not quick:
        with tracked("perturbation", len(pieces)) as advance:
            sensitive = perturbation(subject, sample, outputs, pieces, seed, advance)
        with tracked("necessity and sufficiency", len(sample)) as advance:
            effects = box_effects(subject, sample, outputs, pieces, seed, advance=advance)
    necessity, sufficiency = effects
    sparse = sparsity(subject, outputs, pieces, statistics, seed)
    return TruthCard(
        data=data,
        split=split,
        images=len(sample),
        passed_over=dict(passed_over or {}),
        seed=seed,
        resamples=RESAMPLES,
        audited_with=__version__,
        additivity=added,
        necessity=necessity,
        sufficiency=sufficiency,
        locality=local,
        perturbation=sensitive,
        parts=hits,
        stability=stable,
        consistency=consistent,
        part_effects=effects_of_parts,
        backgrounds=independent,
        purity=list(pure),
        sparsity=sparse,
        prototypes=prototypes,
        checks=checks(
            added,
            necessity,
            local,
            hits,
            sparse,
            perturbation=sensitive,
            part_effects=effects_of_parts,
            backgrounds=independent,
        ),
    )
