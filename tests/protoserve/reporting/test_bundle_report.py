"""The report of a bundle, without and with labelled pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import protoserve
from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import read_bundle
from protoserve.data.dataset import Dataset
from protoserve.errors import InputError
from protoserve.reporting.bundle_report import bundle_report, with_mistakes
from tests.protoserve.reporting.conftest import untracked
from tests.truth_cards import truth_card


def test_every_prototype_has_its_picture_and_what_is_said_about_it(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    link = CurationLink(before="sha256:0", disabled=[4], reason="the wall", by="Ann", at="2026-01-01")
    manifest = bundle.manifest.model_copy(update={"truth": truth_card(), "curation": [link]})
    found = bundle_report(replace(bundle, manifest=manifest))
    assert [one.child for one in found.prototypes] == [record.child for record in bundle.prototypes]
    assert all(one.picture is not None for one in found.prototypes)
    notes = {one.id: list(one.notes) for one in found.prototypes if one.notes}
    assert notes == {
        1: ["off the object"],
        2: ["always on"],
        3: ["always on", "at the border"],
        4: ["switched off, by Ann on 2026-01-01: 'the wall'"],
    }
    assert found.audited and found.truth == truth_card() and "--data DIR" in found.hint
    # What the bundle does not hold, and where it is.
    assert "protoserve report RUN" in found.about_prototypes and "--data DIR" in found.about_prototypes


def test_with_pictures_there_are_mistakes_and_what_prototypes_tell_apart(
    model: protoserve.Classifier, dataset: Dataset, tiny_bundle: Path
) -> None:
    found = with_mistakes(bundle_report(read_bundle(tiny_bundle)), model, dataset, untracked)
    assert found.examined is not None and found.split == "noise/test" and not found.hint
    assert "--data DIR" not in found.about_prototypes
    measured = [one for one in found.prototypes if one.separation is not None]
    assert len(measured) == len(found.prototypes)
    for one in measured:
        siblings = {node for node in model.taxonomy.names if node.rpartition("/")[0] == one.parent} - {one.child}
        assert {label for label, _ in one.apart} <= {node.rpartition("/")[2] for node in siblings}


def test_prototypes_of_another_model_and_an_empty_split_are_refused(
    model: protoserve.Classifier, dataset: Dataset, tiny_bundle: Path
) -> None:
    report = bundle_report(read_bundle(tiny_bundle))
    with pytest.raises(InputError, match="has other prototypes than the run"):
        with_mistakes(replace(report, prototypes=report.prototypes[1:]), model, dataset, untracked)
    with pytest.raises(InputError, match="holds no pictures"):
        with_mistakes(report, model, dataset.subset(np.array([], dtype=np.int64)), untracked)
