"""Options: defaults, limits and what a request may not ask of a model."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from protoserve.bundle.folder import Bundle, read_bundle, rewrite_manifest
from protoserve.bundle.manifest import ListRecord
from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.evidence_table import EvidenceTable
from protoserve.inference.option_text import numbers_of
from protoserve.inference.options import OptionKeywords, PredictOptions, ResolvedOptions
from tests.promises import promising, sure_above


@pytest.fixture(scope="module")
def classifier(tiny_bundle: Path) -> Classifier:
    return load(tiny_bundle, device="cpu")


def test_the_keywords_are_the_records_fields() -> None:
    assert get_type_hints(OptionKeywords) == get_type_hints(PredictOptions)
    # What a request says of the picture's class is resolved to one restriction and its threshold.
    asked = {"allow", "deny", "depth", "prior", "list"}
    resolved = {field.name for field in fields(PredictOptions)} - asked | {"restriction", "threshold", "given"}
    # Only the Open Inference Protocol asks for the probabilities of all nodes.
    assert {field.name for field in fields(ResolvedOptions)} == resolved | {"all_nodes"}


def test_what_is_not_asked_has_the_documented_default(classifier: Classifier) -> None:
    resolved = PredictOptions().resolved(classifier.table)
    assert resolved.top_k == min(5, classifier.table.top_k)
    assert resolved.alternatives == 3
    assert not resolved.maps and resolved.contrast is None and resolved.without == ()


def test_nodes_become_numbers_and_prototypes_are_in_order(classifier: Classifier) -> None:
    name = classifier.table.names[3]
    resolved = PredictOptions(contrast=name, without=(3, 1, 3)).resolved(classifier.table)
    assert resolved.contrast == 3 and resolved.without == (1, 3)


@pytest.mark.parametrize("option", [{"contrast": "Animal"}, {"without": (0,)}])
def test_a_model_without_its_weights_says_so(option: dict[str, Any], tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    bare = Bundle(bundle.directory, bundle.manifest.model_copy(update={"weights": None}))
    with pytest.raises(InputError, match="without its last-layer weights"):
        PredictOptions(**option).resolved(EvidenceTable.of(bare))


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1 2", "-1", "1" * 10, "١"])
def test_only_numbers_between_commas_are_numbers(text: str) -> None:
    with pytest.raises(InputError, match="give numbers separated by commas"):
        numbers_of(text, "without")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": -1}, "top_k must be from 0 to"),
        ({"top_k": 99}, "not 99"),
        ({"alternatives": -1}, "alternatives must be 0 or more, not -1"),
        ({"contrast": "Animal/Lions"}, "no node 'Animal/Lions'; did you mean 'Animal/Lion'"),
        ({"contrast": ""}, "no node ''"),
        ({"without": (0, 9999)}, "no prototype 9999; .* the nearest is"),
        ({"without": (-1,)}, "no prototype -1; .* the nearest is 0"),
    ],
)
def test_an_option_that_the_model_cannot_serve_is_refused(
    classifier: Classifier, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        PredictOptions(**options).resolved(classifier.table)


def test_a_restriction_and_its_threshold_are_resolved_before_any_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    taxonomy = read_bundle(tiny_bundle).taxonomy
    table = EvidenceTable.of(promising(tiny_bundle, tmp_path / "bundle", sure_above(taxonomy, 0.5, groups=3)))
    plain = PredictOptions().resolved(table)
    assert plain.restriction is None and plain.precision == 0.9 and plain.threshold is not None
    asked = PredictOptions(precision=0.8, allow=["Animal"], depth={"Animal/Ape": 2}).resolved(table)
    assert asked.restriction is not None and asked.precision == 0.8
    assert asked.restriction.allowed.tolist() == [
        name in {"Animal", "Animal/Ape", "Animal/Lion"} for name in table.names
    ]
    assert PredictOptions(precision=0.8, allow=("Animal",), depth={"Animal/Ape": 2}).resolved(table) == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PredictOptions(precision=0.3), "precision must be from 0.5 to below 1, not 0.3"),
        (PredictOptions(precision=0.9), "precision: 'tiny' promises none"),
        (PredictOptions(allow=["Animal/Line"]), "'Animal/Line'.*'Animal/Lion'"),
        (PredictOptions(allow=["Animal"], deny=["Animal"]), "'Animal' is both allowed and denied"),
        (PredictOptions(list="zoo"), "has no list 'zoo': it has none"),
    ],
)
def test_what_a_model_can_not_do_is_refused(tiny_bundle: Path, options: PredictOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        options.resolved(EvidenceTable.of(read_bundle(tiny_bundle)))


def test_a_named_list_holds_beside_the_requests_own(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    lists = {"zoo": ListRecord(allow=["Animal"]), "shop": ListRecord(deny=["Animal"])}
    table = EvidenceTable.of(rewrite_manifest(read_bundle(tmp_path / "bundle"), lists=lists))
    found = PredictOptions(list="zoo", deny=["Animal/Ape"]).resolved(table).restriction
    assert found is not None and found.certain_levels == 2
    with pytest.raises(InputError, match="no class in common"):
        PredictOptions(list="shop", allow=["Animal"]).resolved(table)
    with pytest.raises(InputError, match=r"no list 'sop'.*'shop'.*it has shop, zoo"):
        PredictOptions(list="sop").resolved(table)
