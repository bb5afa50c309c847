"""What a model was made from, and records of older versions that say less."""

from __future__ import annotations

from protoserve.run.provenance import Provenance


def test_provenance_of_any_version_reads_and_the_left_out_leaves_have_a_field() -> None:
    assert Provenance.model_validate({"seed": 0}).left_out == {}
    assert Provenance.model_validate({"left_out": {"A/b": "A/b"}}).left_out == {"A/b": "A/b"}
    content = {"config": {"name": "x"}, "seed": 0, "data": {"root": "d", "fingerprint": "f"}, "python": "3.11.7"}
    assert Provenance.model_validate(content).model_dump() == content


def test_pictures_that_were_left_out_stay_in_the_record() -> None:
    content = {
        "broken": ["test/A/1.jpg"],
        "passed_over": {"train": {"other_suffix": 2}},
        "copies": {"test": 1, "two_classes": 3},
    }
    assert Provenance.model_validate(content).model_dump() == content
    older = Provenance.model_validate({"seed": 0})
    assert (older.broken, older.passed_over, older.copies) == ([], {}, {})
