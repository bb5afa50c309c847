#!/usr/bin/env python3
"""Measure the cost of FastAPI compared with the service's own query parsing and OpenAPI document.

Two applications have the same route over the same documents, without a model: `POST /v1/predict` parses the query,
counts the body and returns a prediction. Both are called in process, without sockets, in turns. Needs the extra
`bench`, which installs FastAPI. docs/decisions/0003-starlette-without-fastapi.md discusses the figures.

Example: python -m benchmarks.service.web_framework
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Annotated, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from benchmarks.measuring import described, machine
from protoserve.errors import MissingExtraError
from protoserve.files import write_text
from protoserve.schema import ImageSize, Level, ModelReference, Prediction
from service.contract.openapi import openapi_document
from service.contract.problems import Problem, handle_error
from service.contract.queries import PredictQuery, parse_query
from service.contract.uploads import read_body

try:
    import fastapi
except ModuleNotFoundError as missing:
    print(f"error: {MissingExtraError('benchmarks.service.web_framework', 'bench')}", file=sys.stderr)
    raise SystemExit(2) from missing

LEVEL = Level(level=1, node="Fruit", label="Fruit", probability=0.9, conditional=0.9)
PREDICTION = Prediction(
    model=ModelReference(name="grocery", version="sha256:0"),
    image=ImageSize(width=348, height=464),
    path=["Fruit"],
    levels=[LEVEL] * 3,
)
BODY = b"x" * 50_000
LIMIT = 200_000


def starlette_app() -> ASGIApp:
    """The route as the service has it."""

    async def predict(request: Request) -> Response:
        parse_query(request, PredictQuery)
        await read_body(request, limit=LIMIT, seconds=30)
        return Response(PREDICTION.model_dump_json(), media_type="application/json")

    return Starlette(
        routes=[Route("/v1/predict", predict, methods=["POST"])], exception_handlers={Problem: handle_error}
    )


def fastapi_app(*, returns_response: bool) -> ASGIApp:
    """The route with FastAPI's query model, and either our `Response` or FastAPI's serialisation of the document."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None)

    if returns_response:

        @app.post("/v1/predict")
        async def predict(query: Annotated[PredictQuery, fastapi.Query()], request: fastapi.Request) -> Response:
            await read_body(request, limit=LIMIT, seconds=30)
            return Response(PREDICTION.model_dump_json(), media_type="application/json")

    else:

        @app.post("/v1/predict")
        async def predict_document(
            query: Annotated[PredictQuery, fastapi.Query()], request: fastapi.Request
        ) -> Prediction:
            await read_body(request, limit=LIMIT, seconds=30)
            return PREDICTION

    return app


def upload_app() -> ASGIApp:
    """A route with FastAPI's own upload parameter, which refuses every file."""
    app = fastapi.FastAPI()

    @app.post("/v1/predict")
    async def predict(image: fastapi.UploadFile) -> None:
        raise fastapi.HTTPException(413)

    return app


async def call(app: ASGIApp, body: list[bytes], content_type: bytes = b"image/jpeg") -> tuple[int, int]:
    """Send one request; return the status and the bytes that the application took before it answered."""
    status = taken = 0
    chunks = iter(body)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/predict",
        "raw_path": b"/v1/predict",
        "query_string": b"top_k=2&maps=heat",
        "headers": [(b"host", b"service"), (b"content-type", content_type)],
        "scheme": "http",
        "server": ("service", 80),
        "client": ("client", 1),
        "root_path": "",
    }

    async def receive() -> Any:
        nonlocal taken
        chunk = next(chunks, b"")
        taken += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status, taken


async def microseconds(app: ASGIApp, requests: int) -> float:
    """The mean processor time of one request, which other processes on the machine disturb least."""
    start = time.process_time()
    for _ in range(requests):
        status, _ = await call(app, [BODY])
        assert status == 200
    return (time.process_time() - start) / requests * 1e6


def import_seconds(code: str) -> float:
    """The processor time of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def dependencies(names: set[str]) -> set[str]:
    """The distributions that these need, all the way down, as installed here."""
    closure: set[str] = set()
    waiting = {canonicalize_name(name) for name in names}
    while waiting:
        name = waiting.pop()
        closure.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(requirement.name)} - closure
    return closure


def installed_bytes(name: str) -> int:
    """The size of a distribution's files."""
    files = distribution(name).files or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file())


def stated_statuses(document: dict[str, Any]) -> dict[str, list[str]]:
    """The statuses that an OpenAPI document states for `POST /v1/predict`, with their media types."""
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    return {status: sorted(response.get("content", {})) for status, response in responses.items()}


def main() -> None:
    """Measure and write benchmarks/results/web_framework.{md,json}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/web_framework"))
    options = parser.parse_args()

    sides: dict[str, ASGIApp] = {
        "Starlette, as the service": starlette_app(),
        "FastAPI, our `Response`": fastapi_app(returns_response=True),
        "FastAPI, its own serialisation": fastapi_app(returns_response=False),
    }
    imports = {"service.app": "import service.app", "with fastapi": "import service.app, fastapi"}
    times: dict[str, list[float]] = {name: [] for name in (*sides, *imports)}
    for _ in range(options.rounds):
        for name, app in sides.items():
            times[name].append(asyncio.run(microseconds(app, options.requests)))
        for name, code in imports.items():
            times[name].append(import_seconds(code))
    medians = {name: statistics.median(values) for name, values in times.items()}

    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    upload = [part, *[b"x" * 65_536] * 160, b"\r\n--x--\r\n"]
    form = b"multipart/form-data; boundary=x"
    taken: dict[str, Callable[[], Any]] = {
        "Starlette, as the service": lambda: call(sides["Starlette, as the service"], upload, form),
        "FastAPI's UploadFile": lambda: call(upload_app(), upload, form),
    }
    uploads = {name: asyncio.run(send()) for name, send in taken.items()}

    served = {"anyio", "bentoml", "httptools", "opentelemetry-api", "prometheus-client", "pydantic-settings"}
    served |= {"python-multipart", "starlette", "uvicorn", "uvloop", "numpy", "pillow", "rich", "typer"}
    added = sorted(dependencies({"fastapi"}) - dependencies(served))
    results = {
        "options": {"rounds": options.rounds, "requests": options.requests},
        "medians": medians,
        "uploads": {name: {"status": status, "bytes": size} for name, (status, size) in uploads.items()},
        "added_distributions": {name: installed_bytes(name) for name in added},
        "stated": {
            "ours": stated_statuses(openapi_document()),
            "fastapi": stated_statuses(fastapi_openapi()),
        },
        "lines": {
            name: len((Path("service") / "contract" / f"{name}.py").read_text().splitlines())
            for name in ("openapi", "queries")
        },
        "machine": machine(),
    }
    write_text(options.out.with_suffix(".json"), json.dumps(results, indent=2) + "\n")
    write_text(options.out.with_suffix(".md"), report(results))
    print(report(results))


def fastapi_openapi() -> dict[str, Any]:
    """The OpenAPI document that FastAPI makes of the route by itself."""
    app = fastapi_app(returns_response=False)
    assert isinstance(app, fastapi.FastAPI)
    document: dict[str, Any] = app.openapi()
    return document


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    medians, options = results["medians"], results["options"]
    base = medians["Starlette, as the service"]
    lines = [
        "# FastAPI beside the service's own query parsing and OpenAPI document",
        "",
        f"`python -m benchmarks.service.web_framework --rounds {options['rounds']} --requests {options['requests']}`: "
        f"medians of {options['rounds']} rounds of {options['requests']} requests in process, the sides in turns; "
        "all times are processor time.",
        "",
        "| | per request, µs | against Starlette |",
        "|---|---|---|",
    ]
    for name, value in medians.items():
        if name not in ("service.app", "with fastapi"):
            lines.append(f"| {name} | {value:.0f} | {value / base:.2f} |")
    ours, theirs = results["uploads"].values()
    sizes = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in results["added_distributions"].items())
    stated = results["stated"]
    lines += [
        "",
        f"- import of the application in a fresh interpreter: {medians['service.app']:.2f} s, with FastAPI "
        f"{medians['with fastapi']:.2f} s",
        f"- distributions that the extra `serve` would gain: {sizes or 'none'}",
        f"- of an upload of 10.5 MB where {LIMIT:,} bytes are allowed, the service takes {ours['bytes']:,} bytes and "
        f"answers {ours['status']}; a route with FastAPI's `UploadFile` takes {theirs['bytes']:,} before it is called",
        f"- statuses in the OpenAPI document of `POST /v1/predict`: ours {', '.join(stated['ours'])}; FastAPI's by "
        f"itself {', '.join(stated['fastapi'])} (422 is its own `HTTPValidationError`, which we never send)",
        f"- lines: `openapi.py` {results['lines']['openapi']}, `queries.py` {results['lines']['queries']}",
        "",
        described(results["machine"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
