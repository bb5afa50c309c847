"""The table of a bundle: what the taxonomy says of its nodes, and which bundles have none."""

from pathlib import Path

import pytest

from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import BundleError
from protoserve.inference.evidence_table import EvidenceTable


def test_nodes_are_numbered_as_in_the_taxonomy(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    table = EvidenceTable.of(bundle)
    assert [table.index[name] for name in table.names] == list(range(len(bundle.taxonomy.nodes)))
    assert [node for level in table.levels for node in level] == list(range(len(table.nodes)))
    assert all(len(table.nodes[node]) == depth for depth, level in enumerate(table.levels, 1) for node in level)


def test_prototype_records_must_match_the_graph(tiny_bundle: Path) -> None:
    good = read_bundle(tiny_bundle)
    short = good.manifest.model_copy(update={"prototypes": good.manifest.prototypes[:-1]})
    with pytest.raises(BundleError, match="not numbered 0 to"):
        EvidenceTable.of(Bundle(good.directory, short))
