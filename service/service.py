"""The BentoML service: BentoML starts, watches, stops and packs it; `service.app` answers.

BentoML imports this file in its supervisor, again in every worker, and for `bentoml build`.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.context import server_context
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel
from starlette.types import ASGIApp, Receive, Scope, Send

from protoserve.bundle.ensemble import read_model
from protoserve.errors import InputError, ProtoServeError
from service.model.store import bundle_directory, published_model
from service.operations.metrics_folder import DIRECTORY, claim_folder, use_folder
from service.settings import read_settings

SETTINGS = read_settings()
IS_WORKER = server_context.worker_index is not None
# Before the first metric is declared, by one of the imports below.
if IS_WORKER:
    use_folder()
else:
    # Only workers count. A folder that the environment names may be missing, or another server's.
    os.environ.pop(DIRECTORY, None)

from service.app import create_app  # noqa: E402
from service.model.holder import ModelHolder, watch  # noqa: E402
from service.operations import metrics  # noqa: E402
from service.operations.logs import configure_logs  # noqa: E402
from service.routes.feedback import prepare_feedback  # noqa: E402
from service.scheduling.decoding import hide_main_module  # noqa: E402
from service.server.process import (  # noqa: E402
    allow_connections,
    end_with_parent,
    stop_listening_before_workers_stop,
)
from service.server.protocol import ConnectionLimits, install_strict_protocol  # noqa: E402

LOG = logging.getLogger("protoserve.service")

if IS_WORKER:
    end_with_parent()
    hide_main_module()
    install_strict_protocol(
        ConnectionLimits(SETTINGS.header_seconds, SETTINGS.write_seconds, allow_connections(SETTINGS.max_connections))
    )
    metrics.remove_dead_workers()
else:
    # In a container, BentoML does not restart a worker that ends and relies on the container's restart. With several
    # workers, the container would keep running without the one that ended. BentoML reads this variable when it starts
    # the workers, after it has imported this file.
    os.environ.pop("BENTOML_CONTAINERIZED", None)


@cache
def model_holder() -> ModelHolder:
    """Load, verify and warm up this process's model, on the first call."""
    holder = ModelHolder(_locate_bundle, SETTINGS)
    if SETTINGS.reload_seconds:
        watch(holder, SETTINGS.reload_seconds)
    return holder


def bundle_in_use() -> Path:
    """Return the folder of the bundle to serve: PROTOSERVE_BUNDLE, the one packed into the Bento, or a published one.

    Raises bentoml.exceptions.NotFound when there is none, or when PROTOSERVE_MODEL is not the one packed.
    """
    if SETTINGS.bundle is not None:
        return SETTINGS.bundle
    service: Any = ProtoServe
    if service.bento is None:
        return bundle_directory(published_model(SETTINGS.model))
    # A Bento always serves the bundle that was packed into it, whatever is published later.
    packed = [model.tag for model in service.bento.info.all_models]
    if len(packed) != 1:
        raise NotFound(f"the Bento {service.bento.tag} holds {len(packed)} models, not one; build it again")
    if SETTINGS.model is not None and SETTINGS.model not in {str(packed[0]), packed[0].name}:
        raise NotFound(
            f"PROTOSERVE_MODEL={SETTINGS.model!r}, but the Bento {service.bento.tag} holds {packed[0]}; "
            "unset it, or build a Bento with that model"
        )
    return bundle_directory(bentoml.models.get(packed[0]))


def _locate_bundle() -> Path:
    try:
        return bundle_in_use()
    except BentoMLException as error:
        # `ModelHolder.reload` refuses a missing model by our own error type.
        raise InputError(str(error)) from error


def _declared_model() -> Any:
    # Names the version, so that `bentoml build` packs this one. Serving a folder is the only case without a model.
    try:
        return BentoModel(published_model(SETTINGS.model).tag)
    except NotFound:
        if SETTINGS.bundle is None or SETTINGS.model is not None:
            raise
        return None


@cache
def _application() -> ASGIApp:
    return create_app(SETTINGS, model_holder().current)


class ApplicationMiddleware:
    """ASGI middleware that sends every request to our application instead of BentoML's routes.

    BentoML answers probes, unknown paths and wrong methods itself, in a shape that differs from ours. Middleware runs
    before its routes. BentoML's lifespan still starts and stops the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (_application() if scope["type"] == "http" else self.app)(scope, receive, send)


def _tracing() -> dict[str, Any]:
    if SETTINGS.otlp_endpoint is None:
        # Respects tracing that an operator configures by BentoML's own variables.
        if any(name.startswith("BENTOML_CONFIG") for name in os.environ):
            return {}
        # Otherwise BentoML creates a span for every message that no exporter receives, which costs more time than our
        # own middleware.
        return {"tracing": {"excluded_urls": [".*"]}}
    return {
        "tracing": {
            "exporter_type": "otlp",
            "sample_rate": SETTINGS.trace_share,
            "excluded_urls": ["livez", "readyz", "healthz", "metrics"],
            "otlp": {"protocol": "http", "endpoint": SETTINGS.otlp_endpoint},
        }
    }


@bentoml.service(
    name="protoserve",
    workers=SETTINGS.workers,
    # BentoML's metrics use raw paths as labels, so that any client could grow them without bound; see
    # `service.operations.metrics`.
    metrics={"enabled": False},
    # Our access log has one line per request, with its id.
    logging={"access": {"enabled": False}},
    # BentoML's time-out answers without a problem document, so it must come later than our own limits.
    traffic={"timeout": SETTINGS.read_seconds + SETTINGS.answer_seconds + 60.0},
    **_tracing(),
)
class ProtoServe:
    """Image classification at every level of a taxonomy, with the evidence for each level."""

    model = _declared_model()

    def __init__(self) -> None:
        # Here, in the worker, because BentoML has configured its own logs before.
        configure_logs(SETTINGS.log_format, SETTINGS.log_level)
        # Loads and warms up the model before the worker accepts requests.
        model = model_holder().current()
        _application()
        LOG.info("ready", extra={"model": model.version, "device": model.classifier.engine.device, "pid": os.getpid()})

    # BentoML does not annotate this decorator.
    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def verify() -> None:
        """Verify the bundle and open what all workers share, once, in the supervisor.

        Otherwise BentoML would restart failing workers forever.
        """
        configure_logs(SETTINGS.log_format, SETTINGS.log_level)
        stop_listening_before_workers_stop()
        try:
            read_model(bundle_in_use())
            prepare_feedback(SETTINGS)
            folder = claim_folder(SETTINGS.metrics_directory, SETTINGS.workers)
            if SETTINGS.metrics_port is not None:
                metrics.serve_metrics(folder, SETTINGS.metrics_port)
        except ProtoServeError as error:
            raise BentoMLException(str(error)) from error
        LOG.info("settings", extra={"settings": SETTINGS.for_log()})


# mypy ignores what a class decorator returns, here BentoML's `Service`.
ProtoServe.add_asgi_middleware(ApplicationMiddleware)  # type: ignore[attr-defined]
