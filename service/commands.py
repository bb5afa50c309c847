"""The commands `serve`, `publish` and `key`. They import BentoML only when they need it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from protoserve.cli.options import DeviceOption, JsonOption
from protoserve.cli.output import say
from protoserve.errors import InputError, MissingExtraError
from protoserve.files import make_folder

GRACE_SECONDS = 10
_TARGET = "service.service:ProtoServe"


def serve(
    bundle: Annotated[
        Path,
        typer.Argument(help="Folder of a bundle or an ensemble; 'demo' comes with the package.", show_default=False),
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    host: Annotated[str, typer.Option(help="Address or name to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, max=1024, help="Number of worker processes.")] = 1,
    device: DeviceOption = "auto",
) -> None:
    """Serve a bundle over HTTP until Ctrl-C, with a page to try it.

    Example: protoserve serve bundles/grocery --port 3000
    """
    _require("serve")
    from protoserve.bundle.packaged import located
    from protoserve.inference.classifier import load
    from service.settings import read_settings

    settings = read_settings()
    if settings.metrics_directory is not None:
        make_folder(settings.metrics_directory)
    if settings.feedback is not None:
        from service.routes.feedback import prepare_feedback

        prepare_feedback(settings)
    # Load it here, where an error ends the command with a clear message; in a worker it would cause a restart loop.
    classifier = load(bundle, device=device)
    name = classifier.bundle.name
    del classifier
    address = _free_address(host, port)
    # Import it now, because the new process must not import anything between fork and exec.
    import service.server.process  # noqa: F401

    with _scratch_folder() as scratch:
        environment = {
            **os.environ,
            "BENTOML_DO_NOT_TRACK": "true",
            # BentoML makes folders there, and a service account may have no home. A bundle needs no model store.
            "BENTOML_HOME": str(scratch),
            # Keep a link unresolved, so that it can be moved to another bundle.
            "PROTOSERVE_BUNDLE": str(located(bundle).absolute()),
            "PROTOSERVE_DEVICE": device,
            "PROTOSERVE_WORKERS": str(workers),
        }
        environment.pop("PROTOSERVE_MODEL", None)
        environment.setdefault("PROTOSERVE_LOG_FORMAT", "text" if sys.stderr.isatty() else "json")
        say(f"serving {name} at {_shown_address(host, port)} (Ctrl-C stops it)", error=True)
        code = _run(_server_command(address, port), environment)
    if code != 0:
        raise InputError(f"the server ended with exit code {code}; its messages above say why")


def publish(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle or an ensemble.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle into the BentoML model store, where 'bentoml build' finds it.

    Example: protoserve publish bundles/grocery && bentoml build
    """
    _require("publish")
    try:
        # BentoML makes its folders at import.
        from service.model.store import publish_bundle

        published = publish_bundle(bundle)
    except OSError as error:
        store = os.environ.get("BENTOML_HOME") or "~/bentoml"
        raise InputError(
            f"{error.filename or store}: can't write the model store ({error.strerror or error}); make room, or set "
            "BENTOML_HOME to a folder that you can write"
        ) from error
    if as_json:
        document = {"tag": published.tag, "directory": str(published.directory), "created": published.created}
        say(json.dumps(document))
    else:
        say(f"{'published' if published.created else 'already published as'} {published.tag}")


def key(
    name: Annotated[str, typer.Argument(help="Name of the client, for logs: letters, digits, '_', '.', '-'.")],
    as_json: JsonOption = False,
) -> None:
    """Make an API key: a secret for the client, and its hash for PROTOSERVE_API_KEYS. Neither is stored.

    Example: protoserve key warehouse-camera
    """
    from service.api_keys import create_key

    try:
        secret, api_key = create_key(name)
    except ValueError as error:
        raise InputError(str(error)) from None
    setting = f"{api_key.name}:{api_key.hash}"
    if as_json:
        say(json.dumps({"key": secret, "setting": setting}))
    else:
        say(f"for the client:                  {secret}")
        say(f"to add to PROTOSERVE_API_KEYS:   {setting}")


def _require(command: str) -> None:
    for module in ("bentoml", "starlette", "prometheus_client", "pydantic_settings", "python_multipart"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(command, "serve")
    # BentoML reads this variable at import.
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="protoserve-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write to the folder for temporary files ({error.strerror or error}); make room, or set TMPDIR to "
            "another folder"
        ) from error
    with folder as name:
        yield Path(name)


def _free_address(host: str, port: int) -> str:
    """Return the numeric address of `host`, which BentoML requires: IPv4 if it has one.

    Raises InputError if it has none, or the port is taken.
    """
    try:
        # IPv4 first, which is what "localhost" means to most programs.
        found = sorted(
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), key=lambda entry: entry[0] != socket.AF_INET
        )
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host} port {port} ({reason}); stop the program that uses it, or give another --port or "
            "--host"
        ) from error
    return str(address[0])


def _shown_address(host: str, port: int) -> str:
    """Return an address that a browser on this machine can open."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _server_command(host: str, port: int) -> list[str]:
    # BentoML puts its working directory first on the import path. It must be the folder that holds this package;
    # elsewhere, a user's own service.py would be served instead.
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
    """Runs in the new process before the server, so that a killed command leaves no server on the port."""
    from service.server.process import end_with_parent

    end_with_parent()


def _run(command: list[str], environment: Mapping[str, str]) -> int:
    """Run the server until it ends. SIGTERM and Ctrl-C stop it cleanly, with exit code 0."""
    server: subprocess.Popen[bytes] | None = None
    stopped = False

    def stop(signal_number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        if server is not None:
            server.send_signal(signal.SIGTERM)

    # Set before the start, so that no signal can end this process without the server.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # A session of its own keeps the terminal's Ctrl-C from the workers, which the supervisor would restart.
        server = subprocess.Popen(command, env=dict(environment), start_new_session=True, preexec_fn=_end_with_parent)
        if stopped:
            server.send_signal(signal.SIGTERM)
        code = server.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if stopped else code
