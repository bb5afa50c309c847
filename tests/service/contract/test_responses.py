"""Response documents: their statements about a bundle."""

from __future__ import annotations

from protoserve.bundle.curation import CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from service.contract.responses import model_document, prototype_document, taxonomy_document
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.bundles import BundleFactory


def test_the_model_document_states_the_bundle_and_the_limits(holder: ModelHolder) -> None:
    bundle = holder.current().classifier.bundle
    settings = Settings(max_bytes=1000, max_pixels=2000, max_side=300, max_images=4, formats=("JPEG", "PNG"))
    document = model_document(bundle, "cpu", settings)
    assert (document.name, document.version, document.device) == ("tiny", bundle.version, "cpu")
    assert document.limits.model_dump() == {
        "request_bytes": 1000,
        "image_pixels": 2000,
        "image_side": 300,
        "batch_images": 4,
    }
    assert document.formats == ["JPEG", "PNG"]
    assert (document.nodes, document.leaves, document.depth) == (9, 5, 3)
    assert (document.rows, document.columns, document.members) == (8, 12, None)


def test_the_model_document_states_the_tiles(bundle: BundleFactory) -> None:
    """With them, clients can lay evidence maps over the picture."""
    tiled = read_bundle(bundle("tiled", tile=32, tile_step=16))
    document = model_document(tiled, "cpu", Settings())
    assert (document.tile, document.tile_step, document.rows, document.columns) == (32, 16, 3, 5)
    whole = read_bundle(bundle("tiny", ("onnx", "torchscript")))
    assert model_document(whole, "cpu", Settings()).tile is None


def test_the_taxonomy_document_counts_every_prototype_once(holder: ModelHolder) -> None:
    bundle = holder.current().classifier.bundle
    document = taxonomy_document(bundle)
    assert sum(node.prototypes for node in document.nodes) == len(bundle.prototypes)
    names = [node.node for node in document.nodes]
    # Breadth first, so every parent comes before its children.
    assert all(node.parent is None or names.index(node.parent) < names.index(node.node) for node in document.nodes)
    assert [node.level for node in document.nodes] == sorted(node.level for node in document.nodes)


def test_a_prototype_document_has_the_record_and_the_url_of_its_image(holder: ModelHolder) -> None:
    bundle = holder.current().classifier.bundle
    for prototype, record in enumerate(bundle.prototypes):
        document = prototype_document(bundle, prototype)
        assert (document.id, document.node, document.weight) == (prototype, record.child, record.weight)
        assert document.parent == (record.parent or None)
        assert document.source.href == f"v1/prototypes/{prototype}/image"
        assert (document.source.image, document.source.box) == (record.source_image, record.source_box)


def test_what_is_off_or_required_is_named_with_why(holder: ModelHolder) -> None:
    bundle = holder.current().classifier.bundle
    assert isinstance(bundle, Bundle)
    link = CurationLink(before="sha256:0", disabled=[4, 2], required=[7], reason="the wall", by="Ann", at="2026-01-01")
    curated = Bundle(bundle.directory, bundle.manifest.model_copy(update={"curation": [link]}))
    document = model_document(curated, "cpu", Settings())
    assert [(item.prototype, item.node, item.reason, item.by) for item in document.off] == [
        (number, bundle.prototypes[number].child, "the wall", "Ann") for number in (2, 4)
    ]
    assert [item.prototype for item in document.required] == [7]
    off, other = prototype_document(curated, 4), prototype_document(curated, 5)
    assert off.off is not None and off.off.at == "2026-01-01" and off.required is None
    assert other.off is None and other.required is None
    assert model_document(bundle, "cpu", Settings()).off == []
