"""Metrics: the events that they count; dashboards and alerts use existing ones only."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from protoserve.errors import InputError
from protoserve.inference.classifier import Classifier
from service.model.holder import ModelHolder
from service.operations import metrics
from service.operations.metrics import PredictionCounts
from service.settings import Settings
from tests.service.bundles import rename_bundle
from tests.service.running import TestClient
from tests.service.samples import growth, read_samples

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
MODEL_INFO = "protoserve_model_info"


def test_a_prediction_is_counted_at_every_stage_and_level(client: TestClient, photograph: Path) -> None:
    before = read_samples(client)
    data = photograph.read_bytes()
    prediction = client.post("/v1/predict", content=data).json()
    after = read_samples(client)
    for stage in ("read", "decode", "queue", "infer", "evidence", "encode"):
        assert growth(before, after, "protoserve_stage_seconds_count", stage=stage) == 1, stage
    assert growth(before, after, "protoserve_batch_size_sum") == 1
    assert growth(before, after, "protoserve_body_bytes_sum") == len(data)
    assert growth(before, after, "protoserve_image_pixels_sum") == 200 * 150
    for level in prediction["levels"]:
        label = str(level["level"])
        assert growth(before, after, "protoserve_confidence_sum", level=label) == pytest.approx(level["probability"])
        if level["evidence"]:
            greatest = growth(before, after, "protoserve_greatest_similarity_sum", level=label)
            assert greatest >= max(item["similarity"] for item in level["evidence"]) - 1e-5
    for level in prediction["levels"][:2]:
        labels = {"level": str(level["level"]), "node": level["node"]}
        assert growth(before, after, "protoserve_predictions_total", **labels) == 1
    assert growth(before, after, "protoserve_predictions_total") == len(prediction["levels"][:2])
    assert after["protoserve_queued", frozenset()] == 0
    # The request for the metrics is itself in flight.
    assert after["protoserve_in_flight", frozenset()] == 1


def test_evidence_is_observed_even_when_the_response_omits_it(client: TestClient, photograph: Path) -> None:
    before = read_samples(client)
    client.post("/v1/predict?maps=none", content=photograph.read_bytes())
    assert growth(before, read_samples(client), "protoserve_greatest_similarity_count") >= 1


def test_refusals_are_counted_by_code_also_within_batches(client: TestClient, photograph: Path) -> None:
    before = read_samples(client)
    client.post("/v1/predict", content=b"no picture")
    client.post("/v1/predict?nothing=1", content=b"x")
    files = [("image", ("a", photograph.read_bytes())), ("image", ("b", b"no picture"))]
    client.post("/v1/predict/batch", files=files)
    after = read_samples(client)
    assert growth(before, after, "protoserve_rejected_total", code="unsupported_image") == 2
    assert growth(before, after, "protoserve_rejected_total", code="unknown_parameter") == 1
    assert growth(before, after, "protoserve_rejected_total") == 3


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
    before = read_samples(client)
    counts = PredictionCounts(classifier.table)
    counts.count(prediction.model_copy(update={"levels": levels}), outputs)
    after = read_samples(client)
    assert growth(before, after, "protoserve_novelty_total", parent="(root)", known="true") == 1
    assert growth(before, after, "protoserve_novelty_total", parent="Animal", known="false") == 1
    # Levels below the first unknown one are not judged.
    assert growth(before, after, "protoserve_novelty_total") == 2


def test_labels_stay_few_in_a_large_taxonomy(
    classifier: Classifier, client: TestClient, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_LABELS", 0)
    prediction = classifier.predict(photograph)
    before = read_samples(client)
    counts = PredictionCounts(classifier.table)
    counts.count(prediction, classifier.engine.run(classifier.fit(photograph).array[None]))
    after = read_samples(client)
    assert growth(before, after, "protoserve_predictions_total", node="(other)") == min(2, len(prediction.levels))
    assert growth(before, after, "protoserve_predictions_total") == min(2, len(prediction.levels))


def test_the_current_model_is_1_and_earlier_ones_are_0(client: TestClient, tiny_bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    holder = ModelHolder(lambda: link, Settings(device="cpu", threads=1))
    other = rename_bundle(tiny_bundle, tmp_path / "other")
    link.unlink()
    link.symlink_to(other)
    assert holder.reload()
    gauges = [(dict(labels), value) for (name, labels), value in read_samples(client).items() if name == MODEL_INFO]
    values = {labels["name"]: value for labels, value in gauges if labels["device"] == "cpu"}
    assert (values["tiny"], values["other"]) == (0, 1)


def test_metrics_of_ended_workers_leave_the_gauges(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    files = {pid: tmp_path / f"gauge_livesum_{pid}.db" for pid in (int(ended.stdout), os.getpid())}
    for file in files.values():
        file.touch()
    counter = tmp_path / f"counter_{int(ended.stdout)}.db"
    counter.touch()
    code = "from service.operations.metrics import remove_dead_workers; remove_dead_workers()"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert [file.exists() for file in files.values()] == [False, True]
    assert counter.exists()


def test_a_port_of_its_own_serves_the_metrics_of_all_workers(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    count = "from service.operations.metrics import RELOADS; RELOADS.labels('done').inc()"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", count], cwd=ROOT, env=environment, check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics.serve_metrics(tmp_path, port)
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert 'protoserve_reloads_total{outcome="done"} 2.0' in text
    with pytest.raises(InputError, match=f"PROTOSERVE_METRICS_PORT={port}"):
        metrics.serve_metrics(tmp_path, port)


def expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "protoserve.json").read_text())
    dashboard_expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return dashboard_expressions + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def declared() -> dict[str, set[str]]:
    """Return the samples of every metric that the service declares, with their labels."""
    names: dict[str, set[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        kind, name, labels = metric._type, metric._name, set(metric._labelnames)
        if kind == "counter":
            names[f"{name}_total"] = labels
        elif kind == "gauge":
            names[name] = labels
        else:
            names |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
    return names


@pytest.mark.parametrize("expression", expressions())
def test_dashboards_and_alerts_use_existing_metrics_and_labels(expression: str) -> None:
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
    budget = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = {
        (x, y)
        for place in budget
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(cells) == sum(place["w"] * place["h"] for place in budget)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(budget)
