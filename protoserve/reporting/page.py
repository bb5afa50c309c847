"""The page of a report: its sections, and what its script draws when somebody looks: mistakes and prototypes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protoserve.bundle.truth_card import TruthCard
from protoserve.names import one_line
from protoserve.pages.html import Child, Markup, make, page, script
from protoserve.reporting.mistakes import MOST_ALIKE, ChildConfusion, Examined
from protoserve.reporting.pictures import PictureStore
from protoserve.reporting.prototypes import ReportedPrototype, group_separations
from protoserve.reporting.sections import (
    calibration_section,
    details,
    percent,
    provenance_section,
    scores_section,
    section,
    separation_table,
    stages_table,
    table,
    tiles,
)
from protoserve.reporting.truth import truth_section
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics


@dataclass(frozen=True)
class Report:
    """What a report tells.

    `facts` are a line about the model, `origin` what the provenance begins with. `confusions` are of `split`; where
    they were `examined` with a bundle, mistakes have pictures. `charts` are drawn elements by the name of their
    section. `audited` tells whether the model is one that can have a truth card. `hint` says how to see the mistakes.
    """

    name: str
    facts: str
    metrics: Metrics
    provenance: Provenance
    configuration: str
    store: PictureStore
    prototypes: Sequence[ReportedPrototype]
    about_prototypes: str
    confusions: Sequence[ChildConfusion] = ()
    split: str = ""
    examined: Examined | None = None
    hint: str = ""
    audited: bool = False
    truth: TruthCard | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    charts: Mapping[str, str] = field(default_factory=dict)
    calibration_picture: str | None = None
    decoded_picture: str | None = None


def report_page(report: Report) -> str:
    """Make the page."""
    sections = {
        "Scores": scores_section(report.metrics),
        "Training": _training(report),
        "How many prototypes": _counts(report),
        "Truth card": truth_section(report.truth) if report.audited else None,
        "Mistakes": _mistakes(report),
        "Calibration": calibration_section(report.metrics, report.calibration_picture),
        "Prototypes": _prototypes(report),
        "Provenance": provenance_section(report.provenance, report.configuration, report.origin),
    }
    names = ("scores", "training", "counts", "truth", "mistakes", "calibration", "prototypes", "provenance")
    shown = [(title, name, part) for (title, part), name in zip(sections.items(), names, strict=True) if part]
    nodes = len({prototype.child for prototype in report.prototypes})
    header = make(
        "header",
        make("h1", report.name),
        make("p", report.facts, class_="soft"),
        tiles(report.metrics, len(report.prototypes), nodes),
    )
    links = [make("li", make("a", title, href=f"#{name}")) for title, name, _ in shown]
    data = Markup(json.dumps(_document(report), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))
    return page(
        f"{report.name} – report",
        make("a", "Skip to the sections", class_="skip", href=f"#{shown[0][1]}"),
        header,
        make("nav", make("ul", links), aria_label="Sections"),
        make("main", [part for _, _, part in shown]),
        make("script", data, id="data", type="application/json"),
        styles=("page", "report"),
        script=script("report"),
    )


def _document(report: Report) -> dict[str, Any]:
    """What the script draws from."""
    images: dict[tuple[str, str], int] = {}
    prototypes = [prototype.document(images) for prototype in report.prototypes]
    return {
        "pictures": report.store.encoded,
        "prototypes": prototypes,
        "images": [[one_line(image), leaf.rpartition("/")[2]] for image, leaf in images],
        "confusions": [confusion.document() for confusion in report.confusions],
        "mistakes": [] if report.examined is None else report.examined.mistakes,
        "pictured": report.examined is not None,
    }


def _chart(report: Report, name: str, caption: str) -> Child:
    drawn = report.charts.get(name)
    return None if drawn is None else make("figure", Markup(drawn), make("figcaption", caption))


def _training(report: Report) -> Markup | None:
    charts = [
        _chart(report, "selection", "Accuracy on the selection images."),
        _chart(report, "losses", "Terms of the loss, means over an epoch; the scale is logarithmic beyond ±0.1."),
    ]
    stages = stages_table(report.metrics)
    if stages is None and not any(charts):
        return None
    return section("training", "Training", make("div", charts, class_="charts"), stages)


def _counts(report: Report) -> Markup | None:
    counts = report.metrics.counts
    if counts is None:
        return None
    words = (
        "The search merges near-duplicates, prunes impure prototypes, and then removes the prototypes with the "
        "smallest contributions, round by round. It refits the last layers after each round. It picks the smallest "
        f"number of prototypes within {percent(counts.tolerance)} percentage points of the best leaf accuracy on the "
        "selection images."
    )
    rows = [
        (
            f"{row.round}{' ← picked' if index == counts.picked else ''}",
            row.rule or "–",
            str(row.prototypes),
            percent(row.selection_leaf, 2),
            percent(row.selection_level_1, 2),
        )
        for index, row in enumerate(counts.rounds)
    ]
    head = ("round", "removed by", "prototypes", "leaf, %", "level 1, %")
    inner = make("div", _chart(report, "counts", ""), table(head, rows, counts.picked), class_="charts")
    return section("counts", "How many prototypes", make("p", words), inner)


def _mistakes(report: Report) -> Markup:
    if not report.confusions:
        examined = report.examined
        words = report.hint if examined is None else f"There are none in {examined.images} pictures of {report.split}."
        return section("mistakes", "Mistakes", make("p", words))
    wrong = sum(confusion.mistakes for confusion in report.confusions)
    if report.examined is None:
        intro = (
            f"Images of {report.split} below each parent, by the child predicted among its siblings: {wrong} are "
            "confused."
        )
    else:
        shown, right = len(report.examined.mistakes), report.examined.right
        intro = (
            f"{report.examined.images - right} of {report.examined.images} pictures of {report.split} are answered "
            f"wrongly. Each counts once, where its path leaves the true one. {shown} are shown, the most certain "
            f"first, at most {MOST_ALIKE} of a kind. Open one for both explanations: what speaks for the answer, and "
            "what for the truth."
        )
    tables = [
        details(
            confusion.parent or "the root",
            f"– {confusion.mistakes} of {confusion.images} among {len(confusion.nodes)} children",
            make("div", class_="scroll", tabindex=0, role="group", data_confusion=index),
        )
        for index, confusion in enumerate(report.confusions)
    ]
    return section(
        "mistakes",
        "Mistakes",
        make("p", intro),
        make("p", report.hint, class_="soft") if report.hint else None,
        _needs_script(),
        make("div", make("nav", id="kinds", aria_label="Kinds of mistakes"), make("div", id="gallery"), class_="split"),
        details("Tables by parent", f"– {len(tables)} parents", tables),
    )


def _prototypes(report: Report) -> Markup:
    if not report.prototypes:
        picture = report.decoded_picture
        shown = (
            make("p", report.about_prototypes)
            if picture is None
            else make("figure", make("img", src=picture, alt="The decoded prototypes"))
        )
        return section("prototypes", "Prototypes", shown)
    separations = group_separations(report.prototypes)
    return section(
        "prototypes",
        "Prototypes",
        make("p", report.about_prototypes),
        separation_table(separations, _separation_chart(report)),
        _needs_script(),
        make(
            "div",
            make("nav", id="finder", aria_label="Classes with prototypes"),
            make("div", id="prototype-list", aria_live="polite"),
            class_="split",
        ),
    )


def _separation_chart(report: Report) -> Child:
    words = "Mean similarity to the own class against the siblings. On the diagonal, a prototype tells nothing apart."
    return _chart(report, "separation", words)


def _needs_script() -> Markup:
    return make("noscript", make("p", "A script of this page draws this part. It fetches nothing."))
