"""What is counted, and that dashboards and alerts name what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from protoserve.inference.classifier import Classifier
from service import metrics
from service.metrics import PredictionCounts

if TYPE_CHECKING:
    from starlette.testclient import TestClient

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def samples(client: TestClient) -> dict[tuple[Any, ...], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def grown(before: dict[tuple[Any, ...], float], after: dict[tuple[Any, ...], float], name: str, **labels: str) -> float:
    return sum(
        value - before.get(key, 0.0)
        for key, value in after.items()
        if key[0] == name and set(labels.items()) <= set(key[1:])
    )


def test_a_prediction_is_counted_at_every_stage_and_level(client: TestClient, photograph: Path) -> None:
    before = samples(client)
    data = photograph.read_bytes()
    prediction = client.post("/v1/predict", content=data).json()
    after = samples(client)
    for stage in ("read", "decode", "queue", "infer", "evidence", "encode"):
        assert grown(before, after, "protoserve_stage_seconds_count", stage=stage) == 1, stage
    assert grown(before, after, "protoserve_batch_size_sum") == 1
    assert grown(before, after, "protoserve_body_bytes_sum") == len(data)
    assert grown(before, after, "protoserve_image_pixels_sum") == 200 * 150
    for level in prediction["levels"]:
        number = str(level["level"])
        assert grown(before, after, "protoserve_confidence_sum", level=number) == pytest.approx(level["probability"])
        if level["evidence"]:
            greatest = grown(before, after, "protoserve_greatest_similarity_sum", level=number)
            assert greatest >= max(one["similarity"] for one in level["evidence"]) - 1e-5
    assert after["protoserve_queued",] == 0
    # This request for the metrics is in flight itself.
    assert after["protoserve_in_flight",] == 1


def test_evidence_left_out_of_the_answer_is_still_watched(client: TestClient, photograph: Path) -> None:
    before = samples(client)
    client.post("/v1/predict?maps=none", content=photograph.read_bytes())
    assert grown(before, samples(client), "protoserve_greatest_similarity_count") >= 1


def test_refusals_are_counted_by_their_code_also_within_batches(client: TestClient, photograph: Path) -> None:
    before = samples(client)
    client.post("/v1/predict", content=b"no picture")
    client.post("/v1/predict?nothing=1", content=b"x")
    files = [("image", ("a", photograph.read_bytes())), ("image", ("b", b"no picture"))]
    client.post("/v1/predict/batch", files=files)
    after = samples(client)
    assert grown(before, after, "protoserve_rejected_total", code="unsupported_image") == 2
    assert grown(before, after, "protoserve_rejected_total", code="unknown_parameter") == 1
    assert grown(before, after, "protoserve_rejected_total") == 3


def test_novelty_is_counted_at_the_parent_that_judged(
    classifier: Classifier, client: TestClient, photograph: Path
) -> None:
    prediction = classifier.predict(photograph, top_k=0)
    outputs = classifier.engine.run(classifier.fit(photograph).array[None])
    names = ("Animal", "Animal/Ape", "Animal/Ape/Gibbon")
    levels = [
        prediction.levels[0].model_copy(update={"level": number, "node": name, "known": number < 2, "forced": False})
        for number, name in enumerate(names, start=1)
    ]
    before = samples(client)
    counts = PredictionCounts(classifier.table)
    counts.count(prediction.model_copy(update={"levels": levels}), outputs)
    after = samples(client)
    assert grown(before, after, "protoserve_novelty_total", parent="(root)", known="true") == 1
    assert grown(before, after, "protoserve_novelty_total", parent="Animal", known="false") == 1
    # Nothing is judged below the first unknown level.
    assert grown(before, after, "protoserve_novelty_total") == 2


def test_labels_stay_few_in_a_large_taxonomy(
    classifier: Classifier, client: TestClient, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_LABELS", 0)
    prediction = classifier.predict(photograph)
    before = samples(client)
    counts = PredictionCounts(classifier.table)
    counts.count(prediction, classifier.engine.run(classifier.fit(photograph).array[None]))
    after = samples(client)
    assert grown(before, after, "protoserve_predictions_total", node="(other)") == min(2, len(prediction.levels))
    assert grown(before, after, "protoserve_predictions_total") == min(2, len(prediction.levels))


# ---- dashboards and alerts


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "protoserve.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def declared() -> dict[str, set[str]]:
    """The samples of every metric that the service declares, with their labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        kind, name, labels = metric._type, metric._name, set(metric._labelnames)
        if kind == "counter":
            found[f"{name}_total"] = labels
        elif kind == "gauge":
            found[name] = labels
        else:
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_that_is_named_exists(expression: str) -> None:
    known = declared()
    named = re.findall(r"protoserve_\w+", expression)
    assert named
    assert set(named) <= set(known)
    available = set().union(*(known[name] for name in named))
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= available
    for grouping in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in grouping.split(",")} <= available
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(expressions())
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in declared()}
    assert {family for family in families if family not in shown} == set()


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DEPLOY / "grafana" / "protoserve.json").read_text())
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = {
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(cells) == sum(place["w"] * place["h"] for place in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
