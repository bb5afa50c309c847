"""Hostile uploads: whatever the bytes, an answer in time, a prediction or a problem, and never a failure of ours."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.problems import STATUS_OF

if TYPE_CHECKING:
    from starlette.testclient import TestClient

# `make test-faults` asks for 10,000.
COUNT = int(os.environ.get("PROTOSERVE_HOSTILE_UPLOADS", "250"))
SECONDS = 20.0


def load_corpus() -> ModuleType:
    # The tests are no package, so that a neighbour is found by its file.
    spec = importlib.util.spec_from_file_location("service_corpus", Path(__file__).with_name("corpus.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = load_corpus()


def send(client: TestClient, made: Any) -> int:
    """Send it, check the answer's shape, and give its status."""
    headers = {"content-type": made.media_type.encode("latin-1")} if made.media_type else {}
    begun = time.monotonic()
    response = client.post("/v1/predict", content=made.body, headers=headers)
    assert time.monotonic() - begun < SECONDS, made.what
    if response.status_code == 200:
        assert response.json()["levels"], made.what
        return 200
    assert response.headers["content-type"] == "application/problem+json", (made.what, response.text)
    document = response.json()
    assert 400 <= response.status_code < 500, (made.what, document)
    assert (document["status"], STATUS_OF[document["code"]]) == (response.status_code, response.status_code)
    return response.status_code


def test_a_corpus_of_hostile_uploads(client: TestClient) -> None:
    statuses = []
    process, level = psutil.Process(), 0
    for seed in range(COUNT):
        if seed == COUNT // 5:
            level = process.memory_info().rss
        try:
            statuses.append(send(client, corpus.upload(seed)))
        except AssertionError as error:
            raise AssertionError(f"upload {seed}: {error}") from error
    # The corpus tries what it says: some are answered, and several kinds of refusal come up.
    assert statuses.count(200) > COUNT * 0.05
    assert {400, 413, 415, 422} <= set(statuses)
    gc.collect()
    assert process.memory_info().rss - level < 60_000_000


@settings(max_examples=max(30, COUNT // 10), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1 << 40),
    cut=st.floats(0, 1),
    insert=st.binary(max_size=30),
    media_type=st.sampled_from(corpus.MEDIA_TYPES),
)
def test_any_upload_changed_anywhere(client: TestClient, seed: int, cut: float, insert: bytes, media_type: str) -> None:
    body = corpus.upload(seed).body
    place = int(cut * len(body))
    send(client, corpus.Upload("changed", body[:place] + insert + body[place:], media_type))


@pytest.mark.parametrize("bomb", corpus.BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_in_every_format_costs_neither_time_nor_memory(client: TestClient, bomb: Any) -> None:
    import random

    process = psutil.Process()
    client.post("/v1/predict", content=corpus.picture(random.Random(0)))
    before = process.memory_info().rss
    for seed in range(3):
        begun = time.monotonic()
        send(client, corpus.Upload(bomb.__name__, bomb(random.Random(seed)), "image/jpeg"))
        assert time.monotonic() - begun < 5.0
    assert process.memory_info().rss - before < 100_000_000
