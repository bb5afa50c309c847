"""The page of all configuration keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from training.config import Config
from training.config_document import configuration_document

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description


def test_the_document_is_that_of_the_code() -> None:
    """`python -m training.config_document > docs/configuration.md` writes it."""
    assert DOCUMENT.read_text(encoding="utf-8") == configuration_document()


def test_every_key_has_a_meaning_and_a_row() -> None:
    document = configuration_document()
    for key, description in fields(Config):
        assert description, f"{key} has no description"
        assert document.count(f"| `{key}` |") == 1


@pytest.mark.parametrize(
    "row",
    [
        "| `data.hold_out` | number or `auto` | `0.1` | ≥ 0, < 1 | ",
        "| `data.noise_share` | number | `0.1` | > 0, ≤ 1 | ",
        "| `data.zoom` | 2 values of number | `[0.75, 1.25]` |",
        "| `data.seed` | integer or null | `null` | ≥ 0 | ",
        "| `compile` | `auto` or true or false | `auto` |",
        "| `loss.average` | `image`, `parent` | `image` |",
        "| `autoencoder.channels` | list of integer | `[32, 32, 32, 10]` | 1 to 8 values |",
        "| `autoencoder.elastic.alpha` | number | `20.0` | ≥ 0 |",
        "| `name` | text | required |",
    ],
)
def test_rows_give_type_default_and_range(row: str) -> None:
    assert row in configuration_document()
