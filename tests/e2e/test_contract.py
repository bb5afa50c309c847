"""The OpenAPI document against the running routes: schemathesis makes requests from it and checks every answer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.contract.openapi import openapi_document
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.e2e.serving import serving

with warnings.catch_warnings():
    # Its own requirements raise deprecation warnings on import.
    warnings.simplefilter("ignore")
    import schemathesis
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as examples
    from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 200 if "PROTOSERVE_TEST_FAULTS" in os.environ else 25

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def contract(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The routes alone, and for `make test-faults` those of the real service with BentoML."""
    if "PROTOSERVE_TEST_FAULTS" in os.environ:
        limits = {"PROTOSERVE_MAX_BYTES": "200000", "PROTOSERVE_MAX_IMAGES": "3"}
        with serving(tiny_bundle, tmp_path_factory.mktemp("contract"), **limits) as server:
            yield schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        return
    app = create_app(
        Settings(max_bytes=200_000, max_images=3),
        ModelHolder(lambda: tiny_bundle, Settings(device="cpu", threads=1)).current,
    )
    yield schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, path) for path, operations in openapi_document(feedback=False)["paths"].items() for method in operations],
)
def test_every_answer_is_one_that_the_document_states(contract: Any, method: str, path: str) -> None:
    # Not through its pytest plugin, which depends on pytest's internals.
    operation = contract[path][method]

    @examples(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Ordinary test runs make the same requests every time.
        derandomize="PROTOSERVE_TEST_FAULTS" not in os.environ,
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        # No schema can require that bytes are a picture, so a request that it allows may still be refused.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()
