"""The page of a report needs nothing but itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from protoserve.reporting.mistakes import ChildConfusion, Examined
from protoserve.reporting.page import Report, report_page
from protoserve.reporting.pictures import PictureStore
from protoserve.reporting.prototypes import ReportedPrototype
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics
from tests.truth_cards import truth_card


def data_of(html: str) -> dict[str, Any]:
    """What the page's script draws from."""
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, flags=re.DOTALL)
    document: dict[str, Any] = json.loads(found)
    return document


@pytest.fixture
def report() -> Report:
    """A report of one prototype with a name that a page must escape."""
    return Report(
        name="R&D",
        facts="A <toy>.",
        metrics=Metrics(),
        provenance=Provenance(),
        configuration="",
        store=PictureStore(),
        prototypes=[ReportedPrototype(0, "</script><b>x", "", 1.0, "a.png", None)],
        about_prototypes="Patches.",
        hint="Give --data.",
    )


def test_nothing_is_fetched_and_names_are_escaped(report: Report) -> None:
    html = report_page(report)
    assert "<toy>" not in html and "A &lt;toy&gt;." in html and "<title>R&amp;D – report</title>" in html
    assert html.count("</script>") == 2 and data_of(html)["prototypes"][0]["node"] == "</script><b>x"
    assert "http:" not in html and "https:" not in html and "<link" not in html and "@import" not in html
    assert "default-src &#x27;none&#x27;" in html


def test_links_lead_to_sections_and_identities_are_unique(report: Report) -> None:
    html = report_page(replace(report, audited=True, truth=truth_card()))
    identities = re.findall(r' id="([^"]+)"', html)
    assert len(identities) == len(set(identities))
    anchors = set(re.findall(r'href="#([^"]+)"', html))
    # The script follows those to prototypes.
    assert {anchor for anchor in anchors if "=" not in anchor} <= set(identities) and "prototype=1" in anchors
    assert {"scores", "truth", "mistakes", "calibration", "prototypes", "provenance"} <= set(identities)
    assert 'id="training"' not in html and "Give --data." in html


def test_mistakes_are_told_with_what_stands_behind_them(
    report: Report, examined: tuple[Examined, PictureStore]
) -> None:
    found, store = examined
    html = report_page(
        replace(report, examined=found, confusions=found.confusions, split="noise/test", store=store, hint="")
    )
    assert f"{found.images - found.right} of {found.images} pictures of noise/test are answered wrongly." in html
    data = data_of(html)
    assert data["pictured"] and data["mistakes"] == json.loads(json.dumps(found.mistakes))
    assert len(data["pictures"]) == len(store.encoded)
    tables = [ChildConfusion("", ["A", "B"], [[5, 2], [0, 4]])]
    plain = report_page(replace(report, confusions=tables, split="test"))
    assert "2 are confused" in plain and "Give --data." in plain and not data_of(plain)["pictured"]


def test_a_split_without_mistakes_says_so(report: Report, examined: tuple[Examined, PictureStore]) -> None:
    none = replace(examined[0], confusions=[], mistakes=[])
    assert "There are none in 20 pictures of noise/test." in report_page(
        replace(report, examined=none, split="noise/test")
    )
