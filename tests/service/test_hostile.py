"""Hostile uploads: any bytes get a prediction or a problem of status 4xx, in time."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract.problems import STATUS_OF
from tests.service import corpus
from tests.service.running import TestClient

# `make test-faults` asks for 10,000.
COUNT = int(os.environ.get("PROTOSERVE_HOSTILE_UPLOADS", "250"))
SECONDS = 20.0


def send(client: TestClient, upload: corpus.Upload) -> int:
    """Send an upload, check the shape of the response and return its status."""
    headers = {b"content-type": upload.media_type.encode("latin-1")} if upload.media_type else {}
    start = time.monotonic()
    response = client.post("/v1/predict", content=upload.body, headers=headers)
    assert time.monotonic() - start < SECONDS, upload.kind
    if response.status_code == 200:
        assert response.json()["levels"], upload.kind
        return 200
    assert response.headers["content-type"] == "application/problem+json", (upload.kind, response.text)
    document = response.json()
    assert 400 <= response.status_code < 500, (upload.kind, document)
    assert (document["status"], STATUS_OF[document["code"]]) == (response.status_code, response.status_code)
    return response.status_code


def test_a_corpus_of_hostile_uploads(client: TestClient) -> None:
    statuses: list[int] = []
    process, level = psutil.Process(), 0
    for seed in range(COUNT):
        if seed == COUNT // 5:
            level = process.memory_info().rss
        try:
            statuses.append(send(client, corpus.upload(seed)))
        except AssertionError as error:
            raise AssertionError(f"upload {seed}: {error}") from error
    # The corpus reaches predictions and several kinds of refusal.
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
def test_an_upload_changed_at_any_position(
    client: TestClient, seed: int, cut: float, insert: bytes, media_type: str
) -> None:
    body = corpus.upload(seed).body
    position = int(cut * len(body))
    send(client, corpus.Upload("changed", body[:position] + insert + body[position:], media_type))


@pytest.mark.parametrize("bomb", corpus.BOMBS, ids=[bomb.__name__ for bomb in corpus.BOMBS])
def test_a_bomb_in_every_format_costs_neither_time_nor_memory(
    client: TestClient, bomb: Callable[[random.Random], bytes]
) -> None:
    process = psutil.Process()
    client.post("/v1/predict", content=corpus.picture(random.Random(0)))
    before = process.memory_info().rss
    for seed in range(3):
        upload = corpus.Upload(bomb.__name__, bomb(random.Random(seed)), "image/jpeg")
        # The process's own time: other work of the machine counts little. A bomb that goes off takes minutes.
        own, start = time.process_time(), time.monotonic()
        send(client, upload)
        assert time.process_time() - own < 5.0 and time.monotonic() - start < 60.0
    assert process.memory_info().rss - before < 100_000_000
