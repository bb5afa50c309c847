"""Settings from the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from protoserve.errors import InputError
from service.api_keys import create_key, match_key
from service.settings import Settings, read_settings, settings_table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


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
