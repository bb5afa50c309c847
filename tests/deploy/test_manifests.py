"""The Compose file and the Kubernetes manifests: valid by their schemas, and in line with this service."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema

from service.middleware.api_key import PUBLIC_PATHS
from service.operations import metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# The oldest version that Kubernetes supported at the time of writing, and the newest that the checker knows.
VERSIONS = ("1.35.0", kubernetes_validate.latest_version())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


def resources(variant: str) -> list[dict[str, Any]]:
    """The manifests of a variant as written, without the additions of kustomize."""
    files = sorted((DEPLOY / "kubernetes" / variant).glob("*.yaml"))
    return [yaml.safe_load(file.read_text()) for file in files if file.name != "kustomization.yaml"]


def rendered(variant: str) -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the variants, is not installed")
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / variant)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "kustomize" in done.stderr and "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    [resource] = [resource for resource in found if resource["kind"] == kind]
    return resource


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_what_kubernetes_takes(version: str) -> None:
    kinds = []
    for resource in resources("cpu"):
        kubernetes_validate.validate(resource, version, strict=True)
        kinds.append(resource["kind"])
    assert set(kinds) == {
        "ServiceAccount",
        "ConfigMap",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "HorizontalPodAutoscaler",
    }


def test_the_checker_would_notice_a_wrong_key() -> None:
    deployment = of_kind(resources("cpu"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


# What KServe's resource v1beta1 adds around a pod (V1beta1InferenceServiceSpec and V1beta1PredictorSpec of its Python
# SDK, without the model servers that it brings). The rest of a predictor is a PodSpec.
PREDICTOR_ADDS = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer", "minimum": 0},
    "scaleTarget": {"type": "integer", "minimum": 0},
    "scaleMetric": {"enum": ["cpu", "memory", "concurrency", "rps"]},
    "containerConcurrency": {"type": "integer", "minimum": 0},
    "timeout": {"type": "integer", "minimum": 1},
    "canaryTrafficPercent": {"type": "integer", "minimum": 0, "maximum": 100},
}
INFERENCE_SERVICE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "additionalProperties": False,
            "properties": {"predictor": {"type": "object", "required": ["containers"], "properties": PREDICTOR_ADDS}},
        },
    },
}


def inference_service() -> dict[str, Any]:
    [resource] = resources("kserve")
    return resource


def validate_inference_service(resource: dict[str, Any]) -> None:
    jsonschema.validate(resource, INFERENCE_SERVICE)
    predictor = resource["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in PREDICTOR_ADDS}
    wrapped = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": pod}
    kubernetes_validate.validate(wrapped, VERSIONS[-1], strict=True)


def test_the_inference_service_is_what_kserve_takes() -> None:
    validate_inference_service(inference_service())


@pytest.mark.parametrize(("key", "value"), [("minReplicaz", 1), ("scaleMetric", "queue"), ("timeout", "90")])
def test_the_checker_would_notice_a_wrong_inference_service(key: str, value: Any) -> None:
    wrong = inference_service()
    wrong["spec"]["predictor"][key] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        validate_inference_service(wrong)


def test_the_inference_service_is_confined_as_the_deployment_and_probed_by_its_protocol() -> None:
    predictor = inference_service()["spec"]["predictor"]
    [container] = predictor["containers"]
    deployed = of_kind(resources("cpu"), "Deployment")["spec"]["template"]["spec"]
    assert container["name"] == "kserve-container"
    for key in ("securityContext", "resources", "volumeMounts", "imagePullPolicy"):
        assert container[key] == deployed["containers"][0][key], key
    for key in ("securityContext", "enableServiceLinks", "automountServiceAccountToken", "volumes"):
        assert predictor[key] == deployed[key], key
    probes = {container[name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")}
    assert probes <= PUBLIC_PATHS and all(path.startswith("/v2/health/") for path in probes)
    settings = Settings()
    assert predictor["timeout"] >= settings.read_seconds + settings.answer_seconds


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_rendered_variants_are_what_kubernetes_takes(variant: str) -> None:
    found = rendered(variant)
    for resource in found:
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)
    [container] = of_kind(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"protoserve:{variant}"
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (1 if variant == "gpu" else None)
    # The patch keeps the base's description of the container.
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_the_autoscaler_reads_a_metric_that_the_service_counts_and_the_adapter_passes_on(variant: str) -> None:
    found = rendered(variant) if variant == "gpu" else resources(variant)
    autoscaler = of_kind(found, "HorizontalPodAutoscaler")
    named = {metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if metric["type"] == "Pods"}
    gauges = {sample.name for metric in metrics.IN_FLIGHT.collect() for sample in metric.samples}
    assert named and named <= gauges
    adapter = yaml.safe_load((DEPLOY / "kubernetes" / "metrics-adapter.yaml").read_text())
    assert {rule["name"]["as"] for rule in adapter["rules"]["custom"]} == named
    assert all(rule["seriesQuery"].startswith(rule["name"]["as"] + "{") for rule in adapter["rules"]["custom"])


def test_the_pod_selectors_find_the_pods() -> None:
    found = resources("cpu")
    labels = of_kind(found, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        of_kind(found, "Deployment")["spec"]["selector"]["matchLabels"],
        of_kind(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(found, "Service")["spec"]["selector"],
    ):
        assert selector and selector.items() <= labels
    assert of_kind(found, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "protoserve"


def test_a_pod_drains_before_it_is_killed_and_may_write_only_to_its_scratch() -> None:
    pod = of_kind(resources("cpu"), "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe")} == {"/readyz"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= pause + graceful_seconds()
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def graceful_seconds() -> int:
    """How many seconds the image's server keeps answering after SIGTERM."""
    template = (DEPLOY / "container" / "Dockerfile.template").read_text()
    [entrypoint] = [line for line in template.splitlines() if line.startswith("ENTRYPOINT")]
    words = json.loads(entrypoint.removeprefix("ENTRYPOINT "))
    return int(words[words.index("--timeout-graceful-shutdown") + 1])


def test_the_compose_file_is_valid() -> None:
    jsonschema.validate(COMPOSE, get_builtin_schema("vendor.compose-spec"))
    wrong = {**COMPOSE, "services": {"protoserve": {"image": "protoserve", "readonly": True}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, get_builtin_schema("vendor.compose-spec"))


@pytest.mark.parametrize("name", ["protoserve", "protoserve-gpu"])
def test_a_composed_service_is_confined_and_has_time_to_drain(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert int(service["stop_grace_period"].removesuffix("s")) > graceful_seconds()
    assert "/readyz" in service["healthcheck"]["test"][-1]


def test_settings_that_are_named_exist() -> None:
    named = {*of_kind(resources("cpu"), "ConfigMap")["data"]}
    for service in COMPOSE["services"].values():
        named |= {*service.get("environment", {})}
    assert named and named <= SETTINGS


def test_files_that_are_mounted_or_named_exist_and_prometheus_asks_services_that_do() -> None:
    for path in mounted():
        assert (DEPLOY / path).is_file(), path
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    [job] = prometheus["scrape_configs"]
    targets = [target for entry in job["static_configs"] for target in entry["targets"]]
    ports = {
        f"{name}:{COMPOSE['services'][name]['environment']['PROTOSERVE_METRICS_PORT']}"
        for name in ("protoserve", "protoserve-gpu")
    }
    assert set(targets) == ports
    assert prometheus["rule_files"] == [
        mount.split(":")[1] for mount in COMPOSE["services"]["prometheus"]["volumes"] if "alerts" in mount
    ]


def mounted() -> Iterator[str]:
    for service in COMPOSE["services"].values():
        yield from (mount.split(":")[0] for mount in service.get("volumes", ()) if mount.startswith("./"))


def test_prometheus_scrapes_the_port_that_the_pods_open_for_it() -> None:
    found = resources("cpu")
    port = of_kind(found, "ConfigMap")["data"]["PROTOSERVE_METRICS_PORT"]
    template = of_kind(found, "Deployment")["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == port
    opened = {entry["name"]: entry["containerPort"] for entry in template["spec"]["containers"][0]["ports"]}
    assert opened == {"http": 3000, "metrics": int(port)}
    # Without a key, it is for the cluster's inside alone.
    assert [entry["targetPort"] for entry in of_kind(found, "Service")["spec"]["ports"]] == ["http"]
