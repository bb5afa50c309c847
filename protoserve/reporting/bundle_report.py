"""The report of a bundle: its records, its prototypes and, with pictures at hand, its mistakes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from PIL import Image

from protoserve.bundle.curation import told
from protoserve.bundle.folder import Bundle
from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier
from protoserve.inference.opened_pictures import read_patch
from protoserve.reporting.mistakes import Examined, Tracked, examine
from protoserve.reporting.page import Report
from protoserve.reporting.pictures import PictureStore
from protoserve.reporting.prototypes import ReportedPrototype, told_apart

# The longer side of a prototype's picture, in pixels.
PATCH: Final = 112
_SOURCES: Final = (
    "Each prototype is a patch of a training picture, shown in its surroundings. The patches nearest to it are in the "
    "report of the run that the bundle came from: protoserve report RUN."
)
_UNMEASURED: Final = " What it tells apart takes labelled pictures: repeat the command with --data DIR."
_FLAGS: Final = {
    "always_on": "always on",
    "border": "at the border",
    "off_object": "off the object",
    "duplicates": "a duplicate",
}


def bundle_report(bundle: Bundle) -> Report:
    """Make the report of a bundle, without mistakes; see `with_mistakes`."""
    manifest, store = bundle.manifest, PictureStore()
    tile = manifest.graph.tile
    tiles = "" if tile is None else f", each from {tile} × {tile} pixels alone"
    return Report(
        name=bundle.name,
        facts=f"A bundle with {len(bundle.taxonomy.leaves)} leaves in {bundle.taxonomy.depth} levels; {manifest.kind}, "
        f"{manifest.graph.rows} × {manifest.graph.columns} cells{tiles}.",
        metrics=manifest.metrics,
        provenance=manifest.provenance,
        configuration=json.dumps(manifest.provenance.config, indent=1, ensure_ascii=False),
        store=store,
        prototypes=_prototypes(bundle, store),
        about_prototypes=_SOURCES + _UNMEASURED,
        hint="The mistakes need labelled pictures: repeat the command with --data DIR.",
        audited=True,
        truth=manifest.truth,
        origin={"bundle": bundle.version, "files": ", ".join(sorted(manifest.files))},
    )


def with_mistakes(report: Report, classifier: Classifier, dataset: Dataset, tracked: Tracked) -> Report:
    """Add what a bundle's answers on a labelled split show: its mistakes, and what its prototypes tell apart there.

    Raises InputError if the report's prototypes are not the bundle's, and if the split is empty.
    """
    bundle = classifier.bundle
    if not len(dataset):
        raise InputError(f"{dataset.root}: the split {dataset.split!r} holds no pictures; give another --split")
    if [one.child for one in report.prototypes] != [record.child for record in bundle.prototypes]:
        raise InputError(
            f"{bundle.directory} has other prototypes than the run; export the run again, or give the bundle that came "
            "from it"
        )
    examined = examine(classifier, dataset, report.store, tracked)
    truth = bundle.manifest.truth if isinstance(bundle, Bundle) else None
    split = f"{dataset.root.name}/{dataset.split}"
    return replace(
        report,
        examined=examined,
        confusions=examined.confusions,
        split=split,
        hint="",
        about_prototypes=report.about_prototypes.removesuffix(_UNMEASURED),
        audited=True,
        truth=truth,
        prototypes=_measured(report.prototypes, examined, [node[-1] for node in classifier.taxonomy.nodes]),
    )


def _measured(
    prototypes: Sequence[ReportedPrototype], examined: Examined, labels: Sequence[str]
) -> list[ReportedPrototype]:
    """Add what the prototypes tell apart on the examined pictures, where the report does not say so yet."""
    statistics, apart = examined.sums.statistics(), told_apart(examined.sums, labels)
    return [
        one
        if one.separation is not None
        else replace(one, separation=statistics.of_prototype(one.id), apart=apart[one.id])
        for one in prototypes
    ]


def _prototypes(bundle: Bundle, store: PictureStore) -> list[ReportedPrototype]:
    flagged = _flagged(bundle)
    found = []
    for record in bundle.prototypes:
        with Image.open(io.BytesIO(read_patch(bundle, record.id))) as picture:
            number = store.add(picture, PATCH)
        found.append(
            ReportedPrototype(
                id=record.id,
                child=record.child,
                parent=record.parent,
                weight=record.weight,
                image=record.source_image,
                picture=number,
                notes=flagged.get(record.id, ()),
            )
        )
    return found


def _flagged(bundle: Bundle) -> Mapping[int, list[str]]:
    """What an audit and people say about prototypes, by id."""
    notes: dict[int, list[str]] = {}
    truth = bundle.manifest.truth
    if truth is not None:
        for name, words in _FLAGS.items():
            for prototype in getattr(truth.prototypes, name):
                notes.setdefault(prototype, []).append(words)
    for words, links in (("switched off", bundle.curation.off), ("required", bundle.curation.required)):
        for prototype, link in links.items():
            notes.setdefault(prototype, []).append(f"{words}, {told(link)}")
    return notes
