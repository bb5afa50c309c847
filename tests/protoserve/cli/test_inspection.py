"""A bundle as text for a terminal: on one screen, or all of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from protoserve.bundle.curation import CurationAccuracy, CurationLink
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.bundle.manifest import ListRecord
from protoserve.cli.inspection import bundle_document, bundle_report
from protoserve.run.records import Metrics, SeparationRecord
from protoserve.schema import NoveltyRecord
from protoserve.taxonomy import Taxonomy
from tests.truth_cards import truth_card


def printed(parts: Iterable[RenderableType]) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return captured.get()


def test_the_report_of_a_bundle_counts_every_file_once(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    document = bundle_document(bundle)
    files = [file for file in tiny_bundle.rglob("*") if file.is_file()]
    out = printed(bundle_report(bundle, everything=True))
    assert document["taxonomy"]["prototypes"] == {
        name: sum(record.child == name for record in bundle.prototypes) for name in bundle.taxonomy.names
    }
    assert f"{len(files)} files, {sum(file.stat().st_size for file in files):,} bytes" in out
    assert f"{len(bundle.prototypes)} prototype pictures" in out


def test_the_report_shows_the_truth_card(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    asked = " ".join(printed(bundle_report(bundle)).split())
    assert "evidence not audited; run 'protoserve audit BUNDLE --data DIR --write'" in asked
    card = truth_card()
    tiled = bundle.manifest.graph.model_copy(update={"tile": 19, "tile_step": 8, "tile_start": -9})
    manifest = bundle.manifest.model_copy(update={"truth": card, "graph": tiled})
    out = " ".join(printed(bundle_report(replace(bundle, manifest=manifest))).split())
    assert f"evidence audited on {card.images} pictures of toy/test: 1 of 2 checks hold; not: local (level 1)" in out
    assert "first evidence on the object: 75% at level 1 (chance 25%)" in out
    assert "cells, each from 19 × 19 pixels alone" in out
    assert bundle_document(replace(bundle, manifest=manifest))["truth"] == card.model_dump(mode="json")


def test_the_report_says_what_contributions_count_from(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    usual = [record.usual for record in bundle.prototypes if record.usual is not None]
    separation = SeparationRecord(telling=3, always_on=2, prototypes=len(usual))

    def report(**changes: object) -> str:
        manifest = bundle.manifest.model_copy(update=changes)
        return " ".join(printed(bundle_report(replace(bundle, manifest=manifest))).split())

    measured = report(metrics=Metrics(separation=separation))
    assert f"count from the usual similarity, {min(usual):.2f} to {max(usual):.2f}" in measured
    assert "centred by the graph" in measured
    assert f"3 of {len(usual)} prototypes tell their class from its siblings, 2 are always on" in measured
    older = bundle.manifest.graph.model_copy(update={"centred": False})
    assert "centred by the host; files for the edge keep their own order" in report(graph=older)
    unmeasured = [record.model_copy(update={"usual": None}) for record in bundle.prototypes]
    assert "usual similarities were not measured; run 'protoserve centre'" in report(prototypes=unmeasured)


def test_the_report_tells_the_chain_of_curation(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    accuracy = CurationAccuracy(split="val", images=40, before={"leaf": 0.9}, after={"leaf": 0.875})
    first = CurationLink(
        before="sha256:0123456789ab", disabled=[4, 2], reason="the wall", by="Ann", at="2026-01-01", accuracy=accuracy
    )
    second = CurationLink(before="sha256:1", restored=[4], refitted=True, reason="a mistake", by="Ben", at="2026-01-02")
    curated = Bundle(bundle.directory, bundle.manifest.model_copy(update={"curation": [first, second]}))
    brief = printed(bundle_report(curated))
    assert "curated 2 times, the last time" in brief and "by Ann" not in brief and "by Ben" in brief
    assert f"prototype 2 of {bundle.prototypes[2].child} is off" in brief
    text = printed(bundle_report(curated, everything=True))
    assert "off 4, 2, by Ann on 2026-01-01: 'the wall'" in text
    assert "from sha256:0123456789ab" in text and "leaf 90.0% → 87.5% on 40 images of val" in text
    assert "restored 4; last layers refitted, by Ben on 2026-01-02: 'a mistake'" in text
    assert f"prototype 2 of {bundle.prototypes[2].child} is off" in text and "prototype 4 of" not in text
    document = bundle_document(curated)["curation"]
    assert (document["off"], document["required"], len(document["chain"])) == ([2], [], 2)
    assert "curated" not in printed(bundle_report(bundle))


def test_a_bundle_with_many_classes_still_fits_on_one_screen(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    leaves = [f"Kind {kind}/{leaf}" for kind in range(40) for leaf in range(kind + 1)]
    thresholds = {f"Kind {kind}": 0.5 for kind in range(40)}
    novelty = NoveltyRecord(
        score="energy",
        true_positive_rate=0.95,
        thresholds=thresholds,
        images=dict.fromkeys(thresholds, 9),
        pooled=list(thresholds),
    )
    manifest = bundle.manifest.model_copy(
        update={
            "taxonomy": Taxonomy.from_paths(leaves).to_dict(),
            "prototypes": [],
            "novelty": novelty,
            "lists": {f"shop {number}": ListRecord(allow=["Kind 1"]) for number in range(9)},
            "truth": truth_card(),
        }
    )
    out = printed(bundle_report(replace(bundle, manifest=manifest)))
    assert len(out.splitlines()) <= 24
    assert "Kind 39  40 leaves" in out and "and 34 more with 595 leaves" in out
    assert "9 to 9 for each of 40 parents" in out and "share a threshold: 40 parents" in out
    assert "lists: shop 0, shop 1" in out
