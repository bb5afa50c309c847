"""Settings from the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import yaml

from protoserve.errors import InputError
from protoserve.images.geometry import InputRule
from service.api_keys import create_key, match_key
from service.scheduling.decoding import Decoder
from service.settings import Settings, read_settings, settings_table
from tests import bombs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "settings.md"


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_BUNDLE", "bundles/grocery")
    monkeypatch.setenv("PROTOSERVE_MAX_BYTES", "1000")
    monkeypatch.setenv("PROTOSERVE_THREADS", "")
    settings = read_settings()
    assert (settings.bundle, settings.max_bytes, settings.threads) == (Path("bundles/grocery"), 1000, None)


def test_variables_that_kubernetes_sets_are_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "PROTOSERVE_PORT": "tcp://10.0.0.1:3000",
        "PROTOSERVE_PORT_3000_TCP": "tcp://10.0.0.1:3000",
        "PROTOSERVE_SERVICE_HOST": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    read_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BYTES", "20MB"),
        ("WORKERS", "0"),
        ("DEVICE", "gpu"),
        ("READ_SECONDS", "0"),
        ("MAX_IMAGES", "65"),
        ("FORMATS", "JPEG,SVG"),
        ("FORMATS", ","),
        ("LOG_FORMAT", "xml"),
        ("TRACE_SHARE", "2"),
    ],
)
def test_an_invalid_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PROTOSERVE_{name}", value)
    with pytest.raises(InputError, match=rf"PROTOSERVE_{name}='{value}'"):
        read_settings()


def test_an_invalid_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_API_KEYS", "camera:hunter2")
    with pytest.raises(InputError, match="PROTOSERVE_API_KEYS: a key is written NAME:HASH") as raised:
        read_settings()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MAX_QUEUE": "4"}, "a full batch request could never be answered"),
        ({"MAX_MEMORY": "1000"}, "the largest request could never be read"),
    ],
)
def test_contradicting_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"PROTOSERVE_{name}", value)
    with pytest.raises(InputError, match=said):
        read_settings()


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_FORMATS", "jpeg, png")
    monkeypatch.setenv("PROTOSERVE_CORS_ORIGINS", "https://a.example,https://b.example")
    settings = read_settings()
    assert settings.formats == ("JPEG", "PNG")
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_the_document_lists_every_setting() -> None:
    """`python -m service.settings` prints the table."""
    assert settings_table() in DOCUMENT.read_text(encoding="utf-8")
    assert all(field.description for field in Settings.model_fields.values())


def test_api_keys_are_given_as_hashes_and_logged_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    secret, key = create_key("camera-1")
    monkeypatch.setenv("PROTOSERVE_API_KEYS", f"{key.name}:{key.hash}, other:{'0' * 64}")
    settings = Settings()
    assert match_key(secret, settings.api_keys) == key
    assert settings.for_log()["api_keys"] == ["camera-1", "other"]
    assert key.hash not in json.dumps(settings.for_log())


@pytest.mark.parametrize(
    ("device", "max_batch", "limit"), [("cpu", None, 1), ("cuda", None, 16), ("cpu", 8, 8), ("cuda", 8, 8)]
)
def test_the_batch_limit_follows_the_device_unless_it_is_set(
    device: Literal["cpu", "cuda"], max_batch: int | None, limit: int
) -> None:
    assert Settings(max_batch=max_batch).batch_limit(device) == limit
    description = Settings.model_fields["max_batch"].description or ""
    assert "1 on a CPU and 16 on a GPU" in description


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.usable_cores", lambda: 8)
    assert [Settings(workers=workers).inference_threads() for workers in (1, 3, 8, 20)] == [8, 2, 1, 1]
    assert Settings(workers=3, threads=5).inference_threads() == 5


@pytest.mark.parametrize(
    ("memory", "workers", "expected"),
    [
        (None, 1, 1_000_000_000),
        (1 << 30, 1, 465_741_824),
        (2 << 30, 2, 540_741_824),
        (1 << 29, 1, 200_000_000),
        (64 << 30, 1, 1_000_000_000),
    ],
)
def test_the_memory_for_decoding_is_what_the_container_leaves(
    memory: int | None, workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.settings.usable_memory", lambda: memory)
    monkeypatch.setattr("service.settings.usable_cores", lambda: 2)
    assert Settings(workers=workers).decoding_budget() == expected
    assert Settings(workers=workers, max_decoding=300_000_000).decoding_budget() == 300_000_000


def test_every_core_decodes_a_photograph_where_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.usable_memory", lambda: None)
    monkeypatch.setattr("service.settings.usable_cores", lambda: 16)
    assert Settings().decoding_budget() == 2_250_000_000
    assert Settings(workers=16).decoding_budget() == 1_000_000_000


def test_a_large_model_leaves_less_memory_for_decoding() -> None:
    settings = Settings()
    assert settings.decoding_budget(2 << 30, worker=1_000_000_000) == 719_483_648
    # A small one leaves what is kept for any.
    assert settings.decoding_budget(1 << 30, worker=180_000_000) == settings.decoding_budget(1 << 30) == 465_741_824


def shipped() -> dict[str, tuple[int, dict[str, str]]]:
    """The memory limit in bytes and the settings of each deployment that we ship."""
    found = {}
    units = {"g": 1 << 30, "m": 1 << 20, "Gi": 1 << 30, "Mi": 1 << 20}

    def number(text: str) -> int:
        digits = text.rstrip("gmiGM")
        return int(digits) * units[text[len(digits) :]]

    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    for name, service in compose["services"].items():
        if "mem_limit" in service:
            environment = {key: value.partition(":-")[2].rstrip("}") for key, value in service["environment"].items()}
            found[f"compose {name}"] = (number(service["mem_limit"]), environment)
    for variant in ("cpu", "gpu"):
        folder = ROOT / "deploy/kubernetes" / variant
        documents = [
            document
            for source in (ROOT / "deploy/kubernetes/cpu", folder)
            for file in sorted(source.glob("*.yaml"))
            for document in yaml.safe_load_all(file.read_text())
            if document
        ]
        settings: dict[str, str] = {}
        memory = 0
        for document in documents:
            if document.get("kind") == "ConfigMap":
                settings |= document["data"]
            if document.get("kind") == "Deployment":
                for container in document["spec"]["template"]["spec"]["containers"]:
                    if limit := container.get("resources", {}).get("limits", {}).get("memory"):
                        memory = number(limit)
        found[f"kubernetes {variant}"] = (memory, settings)
    return found


@pytest.mark.parametrize("deployment", shipped())
def test_the_shipped_limits_hold_the_photographs_of_todays_phones(
    deployment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, variables = shipped()[deployment]
    for name, value in variables.items():
        if value and name.startswith("PROTOSERVE_"):
            monkeypatch.setenv(name, value)
    settings = read_settings()
    budget = settings.decoding_budget(memory)
    # Bodies, decoding and processes together fit.
    assert budget + settings.max_memory + 480_000_000 * settings.workers <= memory
    decoder = Decoder(settings.model_copy(update={"max_decoding": budget}))
    rule = InputRule(height=224, width=224, resize="crop")
    # 50 megapixels, decoded whole; 108 and 200, at half their size; 24 megapixels without loss.
    for width, height in ((8160, 6120), (12_000, 9000), (16_320, 12_240)):
        decoder.examine(rule, bombs.stated_jpeg(width, height, 19_000_000))
    decoder.examine(rule, bombs.stated_png(6000, 4000) + bytes(19_000_000))
    assert decoder.examine(rule, bombs.stated_jpeg(4032, 3024, 6_000_000)).is_small


def test_feedback_needs_keys_and_its_password_stays_out_of_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://ann:secret@db/shop"
    monkeypatch.setenv("PROTOSERVE_FEEDBACK", url)
    with pytest.raises(InputError, match="PROTOSERVE_FEEDBACK is set without PROTOSERVE_API_KEYS") as raised:
        read_settings()
    assert "secret" not in str(raised.value)
    _, key = create_key("kiosk")
    monkeypatch.setenv("PROTOSERVE_API_KEYS", f"{key.name}:{key.hash}")
    assert read_settings().for_log()["feedback"] == "postgresql://ann@db/shop"
    monkeypatch.delenv("PROTOSERVE_FEEDBACK")
    monkeypatch.setenv("PROTOSERVE_FEEDBACK_PICTURES", "pictures")
    with pytest.raises(InputError, match="PICTURES is set without PROTOSERVE_FEEDBACK"):
        read_settings()
