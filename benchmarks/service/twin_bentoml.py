"""A twin of the service for benchmarks/service/throughput.py: the same work behind a native BentoML API.

One process, with as many threads as the others have lanes. It does not include the cost of a layer that converts its
errors to ours. `bentoml serve twin_bentoml:Twin`, with TWIN_BUNDLE and TWIN_LANES in the environment.
"""

import os
from pathlib import Path

import bentoml

from protoserve.inference.classifier import load
from protoserve.schema import Prediction


@bentoml.service(name="twin", workers=1, threads=int(os.environ["TWIN_LANES"]), logging={"access": {"enabled": False}})
class Twin:
    """Predictions of one bundle."""

    def __init__(self) -> None:
        self.classifier = load(os.environ["TWIN_BUNDLE"], device="cpu", threads=1)

    @bentoml.api(route="/predict")
    def predict(self, image: Path) -> Prediction:
        """The prediction for one photograph."""
        return self.classifier.predict(image)
