"""Reads `/metrics` as a Prometheus server does."""

from __future__ import annotations

from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from tests.service.running import TestClient

Labels: TypeAlias = frozenset[tuple[str, str]]
Samples: TypeAlias = dict[tuple[str, Labels], float]


def read_samples(client: TestClient) -> Samples:
    """Return the value of every sample, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }


def growth(before: Samples, after: Samples, sample_name: str, **labels: str) -> float:
    """Return how much the samples with this name and these labels grew, summed."""
    return sum(
        value - before.get((name, found), 0.0)
        for (name, found), value in after.items()
        if name == sample_name and labels.items() <= found
    )
