"""A twin of the service for benchmarks/service/throughput.py: the same decoding, graph and document behind LitServe.

One process per lane, as is usual with LitServe. Photographs are sent as forms, because LitServe reads JSON and forms.
`python benchmarks/service/twin_litserve.py PORT`, with TWIN_BUNDLE and TWIN_LANES in the environment.
"""

import os
import sys
from typing import Any

import litserve
from fastapi import Request, Response

from protoserve.inference.classifier import load


class Predict(litserve.LitAPI):
    """Decodes, predicts and encodes in a worker process."""

    def setup(self, device: str) -> None:
        """Load the model once per worker."""
        self.classifier = load(os.environ["TWIN_BUNDLE"], device="cpu", threads=1)

    def decode_request(self, request: Request) -> bytes:
        """The photograph's bytes."""
        content: bytes = request["image"].file.read()
        return content

    def predict(self, x: bytes) -> Any:
        """The prediction."""
        return self.classifier.predict(x)

    def encode_response(self, output: Any) -> Response:
        """The JSON document, encoded in the worker."""
        return Response(output.model_dump_json(), media_type="application/json")


if __name__ == "__main__":
    lanes = int(os.environ["TWIN_LANES"])
    server = litserve.LitServer(Predict(), accelerator="cpu", workers_per_device=lanes, timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
