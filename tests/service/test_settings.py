"""What the environment may set."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.errors import InputError
from service.settings import Settings, read_settings, settings_table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_BUNDLE", "bundles/grocery")
    monkeypatch.setenv("PROTOSERVE_MAX_BYTES", "1000")
    monkeypatch.setenv("PROTOSERVE_THREADS", "")
    settings = read_settings()
    assert (settings.bundle, settings.max_bytes, settings.threads) == (Path("bundles/grocery"), 1000, None)


def test_what_kubernetes_sets_beside_a_service_named_protoserve_does_no_harm(
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
def test_a_value_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PROTOSERVE_{name}", value)
    with pytest.raises(InputError, match=rf"PROTOSERVE_{name}='{value}'"):
        read_settings()


def test_a_key_that_does_not_fit_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_settings_that_do_not_fit_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"PROTOSERVE_{name}", value)
    with pytest.raises(InputError, match=said):
        read_settings()


def test_lists_have_commas_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOSERVE_FORMATS", "jpeg, png")
    monkeypatch.setenv("PROTOSERVE_CORS_ORIGINS", "https://a.example,https://b.example")
    settings = read_settings()
    assert settings.formats == ("JPEG", "PNG")
    assert settings.cors_origins == ("https://a.example", "https://b.example")


def test_the_document_lists_every_setting() -> None:
    """`python -m service.settings` writes it."""
    assert settings_table() in DOCUMENT.read_text(encoding="utf-8")
    assert all(field.description for field in Settings.model_fields.values())
