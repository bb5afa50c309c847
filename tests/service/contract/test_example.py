"""The example of the OpenAPI document is an answer that the service could give."""

from __future__ import annotations

import pytest

from protoserve.schema import Prediction
from service.contract.example import EXAMPLE
from service.contract.openapi import openapi_document


def test_its_sums_close() -> None:
    for level in EXAMPLE.levels:
        for piece in (*level.evidence, *level.against):
            assert piece.contribution == pytest.approx(piece.weight * (piece.similarity - piece.usual))
        assert all(piece.contribution > 0 for piece in level.evidence)
        assert all(piece.contribution < 0 for piece in level.against)
        if level.logit is not None:
            assert level.prior is not None and level.rest is not None
            told = sum(piece.contribution for piece in (*level.evidence, *level.against))
            assert level.prior + told + level.rest == pytest.approx(level.logit)
    assert any(level.against for level in EXAMPLE.levels)


def test_the_document_shows_it() -> None:
    content = openapi_document()["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]
    assert Prediction.model_validate(content["example"]) == EXAMPLE
