"""The commands `serve` and `publish`; BentoML is imported only when one of them runs."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from protoserve.errors import InputError, MissingExtraError

GRACE_SECONDS = 10
_TARGET = "service.service:ProtoServe"


def commands(app: typer.Typer) -> None:
    """Add this room's commands to the root command."""
    app.command()(serve)
    app.command()(publish)
    app.command()(key)


def serve(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle or an ensemble.", show_default=False)],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 3000,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Processes that answer requests.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Serve a bundle over HTTP until Ctrl-C, with a page to try it.

    Example: protoserve serve bundles/grocery --port 3000
    """
    _require("serve")
    from protoserve.inference.classifier import load
    from service.settings import read_settings

    read_settings()
    # Here and now, with one clear message: in a worker it would be a restart loop.
    classifier = load(bundle, device=device)  # type: ignore[arg-type]  # load refuses other words itself
    name = classifier.bundle.manifest.name
    del classifier
    _check_address(host, port)
    # Imported before the server is started, for its process must not import anything between its start and itself.
    import service.process  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="protoserve-metrics-") as metrics:
        environment = {
            **os.environ,
            "BENTOML_DO_NOT_TRACK": "true",
            # A link stays one, so that it can be moved to another bundle.
            "PROTOSERVE_BUNDLE": str(bundle.absolute()),
            "PROTOSERVE_DEVICE": device,
            "PROTOSERVE_WORKERS": str(workers),
            "PROTOSERVE_METRICS_DIRECTORY": metrics,
        }
        environment.pop("PROTOSERVE_MODEL", None)
        environment.setdefault("PROTOSERVE_LOG_FORMAT", "text" if sys.stderr.isatty() else "json")
        shown = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        typer.echo(f"serving {name} at http://{shown}:{port} (Ctrl-C stops it)", err=True)
        code = _run(_server_command(host, port), environment)
    if code != 0:
        raise InputError(f"the server ended with the exit code {code}; its messages above say why")


def publish(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle or an ensemble.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Copy a bundle into the BentoML model store, from which 'bentoml build' packs it.

    Example: protoserve publish bundles/grocery && bentoml build
    """
    _require("publish")
    from service.publish import publish_bundle

    published = publish_bundle(bundle)
    if as_json:
        document = {"tag": published.tag, "directory": str(published.directory), "created": published.created}
        typer.echo(json.dumps(document))
    else:
        typer.echo(f"{'published' if published.created else 'already published as'} {published.tag}")


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for logs: letters, digits, '_', '.', '-'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make an API key: the key for a client, and its hash for PROTOSERVE_API_KEYS. Neither is kept.

    Example: protoserve key warehouse-camera
    """
    from service.access import new_key

    try:
        secret, known = new_key(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    setting = f"{known.name}:{known.hash}"
    if as_json:
        typer.echo(json.dumps({"key": secret, "setting": setting}))
    else:
        typer.echo(f"for the client:                  {secret}")
        typer.echo(f"to add to PROTOSERVE_API_KEYS:   {setting}")


def _require(command: str) -> None:
    for module in ("bentoml", "starlette", "prometheus_client", "pydantic_settings", "python_multipart"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(command, "serve")
    # BentoML reads it when it is imported.
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"


def _check_address(host: str, port: int) -> None:
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise InputError(
            f"can't listen on {host} port {port} ({error.strerror or error}); stop what uses it, or give "
            "another --port or --host"
        ) from error


def _server_command(host: str, port: int) -> list[str]:
    # BentoML puts its working directory first on the import path, so it must be the one that holds this
    # package: in any other, a file service.py of the user's would be served instead.
    return [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        _TARGET,
        "--working-dir",
        str(Path(__file__).resolve().parent.parent),
        "--host",
        host,
        "--port",
        str(port),
        "--timeout-graceful-shutdown",
        str(GRACE_SECONDS),
    ]


def _end_with_parent() -> None:
    """In the new process, before the server: when this command is killed, the server must not hold the port."""
    from service.process import end_with_parent

    end_with_parent()


def _run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run the server to its end; SIGTERM and Ctrl-C end it cleanly, and then the exit code is 0."""
    server: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        if server is not None:
            server.send_signal(signal.SIGTERM)

    # From before the start, so that no signal can end this process alone.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # In a session of its own, or the terminal's Ctrl-C would reach the workers before their supervisor,
        # which would start new ones.
        server = subprocess.Popen(command, env=dict(environment), start_new_session=True, preexec_fn=_end_with_parent)
        if stopped:
            server.send_signal(signal.SIGTERM)
        code = server.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if stopped else code
