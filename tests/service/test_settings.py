"""What the environment may set."""

from __future__ import annotations

from pathlib import Path

import pytest

from protoserve.errors import InputError
from service.settings import read_settings


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
    [("MAX_BYTES", "20MB"), ("WORKERS", "0"), ("DEVICE", "gpu"), ("READ_SECONDS", "0"), ("MAX_IMAGES", "65")],
)
def test_a_value_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"PROTOSERVE_{name}", value)
    with pytest.raises(InputError, match=rf"PROTOSERVE_{name}='{value}'"):
        read_settings()
