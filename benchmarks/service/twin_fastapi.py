"""A twin of the service for benchmarks/service/throughput.py: the same work behind a bare FastAPI.

One process, each request's work in a thread of a pool. `python benchmarks/service/twin_fastapi.py PORT`, with
TWIN_BUNDLE and TWIN_LANES in the environment.
"""

import os
import sys

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request, Response

from protoserve.inference.classifier import load

classifier = load(os.environ["TWIN_BUNDLE"], device="cpu", threads=1)
# More threads than lanes would only compete for the same cores.
limiter = anyio.CapacityLimiter(int(os.environ["TWIN_LANES"]))
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """One photograph's prediction."""
    body = await request.body()
    document = await anyio.to_thread.run_sync(lambda: classifier.predict(body).model_dump_json(), limiter=limiter)
    return Response(document, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False)
