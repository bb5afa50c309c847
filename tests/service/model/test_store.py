"""Bundles in the BentoML model store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import bentoml
import pytest
from bentoml.exceptions import NotFound

from protoserve.bundle.ensemble import read_model
from protoserve.bundle.folder import read_bundle
from protoserve.errors import BundleError, InputError
from service.model.store import bundle_directory, publish_bundle, published_model, tag_name
from tests.service.bundles import rename_bundle


@pytest.fixture(autouse=True)
def model_store(tmp_path: Path) -> Iterator[None]:
    """A model store for one test."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    directory = tmp_path / "models"
    directory.mkdir()
    BentoMLContainer.model_store.set(ModelStore(directory))
    yield
    BentoMLContainer.model_store.reset()


def test_a_published_bundle_is_complete_and_the_newest(tiny_bundle: Path) -> None:
    published = publish_bundle(tiny_bundle)
    assert published.created
    assert read_bundle(published.directory).manifest == read_bundle(tiny_bundle).manifest
    newest = published_model(None)
    assert (str(newest.tag), bundle_directory(newest)) == (published.tag, published.directory)


def test_publishing_the_same_content_again_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    first = publish_bundle(tiny_bundle)
    copy = shutil.copytree(tiny_bundle, tmp_path / "elsewhere")
    again = publish_bundle(copy)
    assert (again.tag, again.directory, again.created) == (first.tag, first.directory, False)
    assert len(bentoml.models.list()) == 1


def test_the_newest_is_the_one_published_last_whatever_its_name(tiny_bundle: Path, tmp_path: Path) -> None:
    first = publish_bundle(tiny_bundle)
    last = publish_bundle(rename_bundle(tiny_bundle, tmp_path / "other", "Another One"))
    assert last.tag.startswith("another-one:")
    assert str(published_model(None).tag) == last.tag
    assert str(published_model(first.tag).tag) == first.tag
    assert str(published_model(first.tag.partition(":")[0]).tag) == first.tag


def test_an_ensemble_is_published_whole(ensemble_folder: Path) -> None:
    published = publish_bundle(ensemble_folder)
    assert published.created and published.tag.startswith("both-of-them:")
    assert read_model(published.directory).version == read_model(ensemble_folder).version
    assert not publish_bundle(ensemble_folder).created


def test_other_models_in_the_store_are_ignored() -> None:
    with bentoml.models.create("someone-elses"):
        pass
    with pytest.raises(NotFound, match="no ProtoServe bundle; publish one"):
        published_model(None)
    with pytest.raises(NotFound, match=r"someone-elses:.* is not a ProtoServe bundle"):
        published_model("someone-elses")
    with pytest.raises(NotFound, match="PROTOSERVE_MODEL='missing:1' is not in the model store"):
        published_model("missing:1")


def test_an_incomplete_bundle_is_not_published(tiny_bundle: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(tiny_bundle, tmp_path / "torn")
    (torn / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx does not match"):
        publish_bundle(torn)
    with pytest.raises(InputError, match="no such bundle"):
        publish_bundle(tmp_path / "missing")
    assert bentoml.models.list() == []


def test_an_altered_published_bundle_is_refused(tiny_bundle: Path) -> None:
    published = publish_bundle(tiny_bundle)
    (published.directory / "parity.json").write_text("{}")
    with pytest.raises(BundleError, match=r"parity\.json does not match"):
        publish_bundle(tiny_bundle)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("grocery", "grocery"),
        ("Grocery Store (v2)", "grocery-store-v2"),
        ("Äpfel", "pfel"),
        ("a" * 99, "a" * 63),
    ],
)
def test_names_are_converted_to_tags(name: str, tag: str) -> None:
    assert tag_name(name) == tag
    with bentoml.models.create(f"{tag_name(name)}:1"):
        pass


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(InputError, match="'果物' has no letters"):
        tag_name("果物")
