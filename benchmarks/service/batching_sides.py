"""The sides of benchmarks/service/batching.py, as BentoML services: one route around three ways to form batches.

benchmarks/service/batching.py starts them; this module is not a command. `BATCHING_SIDE` names the side: `ours`
(service.scheduling.batching), `bentoml` (BentoML's batcher in the same process), `separate` (BentoML's batcher in a
service of its own, behind `bentoml.depends`). An image whose first sample is 255 fails in the engine, as an image may
when memory runs out. Also set BATCHING_BUNDLE (the bundle), BATCHING_MOST (the largest batch) and BATCHING_LANES
(inference threads).
"""

import argparse
import os
from typing import Any

import anyio.to_thread
import bentoml
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from protoserve.errors import DeviceError
from protoserve.inference.classifier import Classifier, load
from protoserve.inference.engine import Outputs
from protoserve.inference.options import PredictOptions
from service.scheduling.batching import Batcher

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    parser.error("start the sides with python -m benchmarks.service.batching BUNDLE")

SIDE = os.environ["BATCHING_SIDE"]
MOST = int(os.environ["BATCHING_MOST"])
LANES = int(os.environ["BATCHING_LANES"])
LIMITS = {"batchable": True, "max_batch_size": MOST, "max_latency_ms": 60_000}
ENDPOINT: Any = None


class Spoiled:
    """An engine that fails for such images."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.device = engine.device

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Like `Engine.run`; raises DeviceError for such images."""
        if (images[:, 0, 0, 0] == 255).any():
            raise DeviceError("out of memory")
        found: Outputs = self.engine.run(images)
        return found


def opened() -> Classifier:
    """The model; each inference runs on one thread."""
    classifier = load(os.environ["BATCHING_BUNDLE"], device="cpu", threads=1)
    classifier.engine = Spoiled(classifier.engine)  # type: ignore[assignment]
    return classifier


def decoded(body: bytes) -> NDArray[np.uint8]:
    """A raw picture of model size, uint8 [H, W, 3]; the benchmark sends raw pixels to measure only batching."""
    height, width, _ = SHAPE
    return np.frombuffer(body, np.uint8).reshape(height, width, 3)


class Infer:
    """The batchable method of the two BentoML sides; returns log-probabilities of nodes [N, V]."""

    def __init__(self) -> None:
        self.classifier = opened()

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One inference; what a service sends to itself goes as JSON, and comes as int64."""
        return self.classifier.engine.run(np.ascontiguousarray(images, dtype=np.uint8)).log_probability


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """`POST /predict`: a picture's most probable node."""
    request = Request(scope, receive)
    body = await request.body()
    try:
        values = await ENDPOINT(await anyio.to_thread.run_sync(decoded, body)) if body else np.zeros(1)
    except Exception as error:  # noqa: BLE001 - each side has its own, and all that counts is whose pictures fail
        await PlainTextResponse(str(error), 500)(scope, receive, send)
        return
    response: Response = PlainTextResponse(str(int(np.argmax(values))))
    await response(scope, receive, send)


SHAPE = (int(os.environ["BATCHING_HEIGHT"]), int(os.environ["BATCHING_WIDTH"]), 3)

if SIDE == "ours":

    @bentoml.asgi_app(answer)
    @bentoml.service(name="sides")
    class Sides:
        """Our batcher in the worker."""

        def __init__(self) -> None:
            global ENDPOINT
            classifier, batcher = opened(), Batcher(LANES, MOST, 60.0)
            options = PredictOptions().resolved(classifier.table)

            async def infer(image: NDArray[np.uint8]) -> Any:
                return (await batcher.run(classifier, image, options)).log_probability

            ENDPOINT = infer

elif SIDE == "bentoml":

    @bentoml.asgi_app(answer)
    @bentoml.service(name="sides", threads=LANES)
    class Sides:  # type: ignore[no-redef]
        """BentoML's batcher in the same worker, called as BentoML lets a service call itself."""

        def __init__(self) -> None:
            global ENDPOINT
            self.infer = Infer()

            async def infer(image: NDArray[np.uint8]) -> Any:
                return await self.to_async.run(image[None])  # type: ignore[attr-defined]

            ENDPOINT = infer

        @bentoml.api(**LIMITS)
        def run(self, images: np.ndarray) -> np.ndarray:
            """One inference."""
            return self.infer.run(images)

else:

    @bentoml.service(name="inner", threads=LANES)
    class Inner:
        """BentoML's batcher in a service of its own."""

        def __init__(self) -> None:
            self.infer = Infer()

        @bentoml.api(**LIMITS)
        def run(self, images: np.ndarray) -> np.ndarray:
            """One inference."""
            return self.infer.run(images)

    @bentoml.asgi_app(answer)
    @bentoml.service(name="sides")
    class Sides:  # type: ignore[no-redef]
        """The route in front of it."""

        inner = bentoml.depends(Inner)

        def __init__(self) -> None:
            global ENDPOINT

            async def infer(image: NDArray[np.uint8]) -> Any:
                return await self.inner.to_async.run(image[None])

            ENDPOINT = infer
