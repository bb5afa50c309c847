"""Errors that people read: one base class, and suggestions for misspelt names."""

from __future__ import annotations

import time

import pytest

from protoserve import errors
from protoserve.errors import ImageError, InputError, MissingExtraError, ProtoServeError, ServiceError, nearest


def test_every_error_is_one_that_the_commands_print() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 8
    assert all(issubclass(kind, ProtoServeError) for kind in kinds)


def test_a_bad_picture_is_bad_input_with_a_code() -> None:
    assert issubclass(ImageError, InputError)
    assert ImageError("torn").code == "broken_image"
    assert ImageError("too large", "image_too_large").code == "image_too_large"


def test_a_service_s_error_carries_code_and_status() -> None:
    error = ServiceError("busy", "overloaded", 503)
    assert (str(error), error.code, error.status) == ("busy", "overloaded", 503)


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtraError("reading Parquet", "train")
    assert error.extra == "train"
    assert str(error) == "reading Parquet needs the extra 'train': pip install 'protoserve[train]'"


@pytest.mark.parametrize(
    ("given", "hint"),
    [("epoch", "; did you mean 'epochs'?"), ("sed", "; did you mean 'seed'?"), ("zzz", ""), ("", "")],
)
def test_a_hint_names_the_nearest_known_name(given: str, hint: str) -> None:
    assert nearest(given, ["epochs", "seed"]) == hint
    assert nearest(given, []) == ""


def test_a_hint_among_very_many_names_is_still_the_nearest() -> None:
    names = [f"Fruit/Apple/Variety-{number:05d}" for number in range(50_000)]
    assert "4999" in nearest("Fruit/Apple/Variety-4999", names)
    assert nearest("Fruit/Appel/Granny-Smith", [*names, "Fruit/Apple/Granny-Smith"]).endswith("Granny-Smith'?")


def test_a_hint_costs_little_however_long_the_names_are() -> None:
    """Comparing them all takes more than a minute."""
    names = ["ab" * 100 + "x" * (number % 50) for number in range(20_000)]
    begun = time.process_time()
    nearest("ba" * 100, names)
    assert time.process_time() - begun < 5
