"""The BentoML service: BentoML starts, watches, stops and packs it; `service.app` answers.

BentoML loads this file by itself: in its supervisor, again in every worker, and for `bentoml build`.
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
from protoserve.cores import usable_cores
from protoserve.errors import InputError, ProtoServeError
from service.logs import configure_logs
from service.process import end_with_parent
from service.publish import bundle_directory, published_model
from service.settings import read_settings

SETTINGS = read_settings()
if SETTINGS.metrics_directory is not None:
    # In place of what BentoML has set, and before the first count is declared, for then it is read.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(SETTINGS.metrics_directory)

from service import metrics  # noqa: E402
from service.app import create_app  # noqa: E402
from service.current import CurrentModel, watch  # noqa: E402
from service.predicting import BATCH_ON_A_GPU  # noqa: E402
from service.protocol import use_strict_protocol  # noqa: E402

LOG = logging.getLogger("protoserve.service")
IS_WORKER = server_context.worker_index is not None

if IS_WORKER:
    end_with_parent()
    use_strict_protocol(SETTINGS.header_seconds)
    metrics.forget_the_dead()
else:
    # In its containers BentoML starts no worker again, and leaves that to whoever starts containers; but one of several
    # workers would then be missed by nobody. It reads this when it starts them, which is after it has loaded this file.
    os.environ.pop("BENTOML_CONTAINERIZED", None)


@cache
def current_model() -> CurrentModel:
    """This process's model, loaded, verified and asked once."""
    threads = SETTINGS.threads or max(1, usable_cores() // SETTINGS.workers)
    batch = SETTINGS.max_batch or (BATCH_ON_A_GPU if SETTINGS.device == "cuda" else 1)
    model = CurrentModel(_place, SETTINGS.device, threads, batch)
    if SETTINGS.reload_seconds:
        watch(model, SETTINGS.reload_seconds)
    return model


def bundle_in_use() -> Path:
    """The bundle to answer with: PROTOSERVE_BUNDLE's, the one packed into the Bento, or a published one.

    Raises bentoml.exceptions.NotFound when there is none, or when PROTOSERVE_MODEL is not the one packed.
    """
    if SETTINGS.bundle is not None:
        return SETTINGS.bundle
    service: Any = ProtoServe
    if service.bento is None:
        return bundle_directory(published_model(SETTINGS.model))
    # A Bento answers with what was packed into it, whatever has been published since.
    packed = [model.tag for model in service.bento.info.all_models]
    if len(packed) != 1:
        raise NotFound(f"the Bento {service.bento.tag} holds {len(packed)} models, not one; build it again")
    if SETTINGS.model is not None and SETTINGS.model not in {str(packed[0]), packed[0].name}:
        raise NotFound(
            f"PROTOSERVE_MODEL={SETTINGS.model!r}, but the Bento {service.bento.tag} holds {packed[0]}; "
            "unset it, or build a Bento with that model"
        )
    return bundle_directory(bentoml.models.get(packed[0]))


def _place() -> Path:
    try:
        return bundle_in_use()
    except BentoMLException as error:
        # To be refused like any other model that is not there, when it is looked for again.
        raise InputError(str(error)) from error


def _declared_model() -> Any:
    # With its version, so that `bentoml build` packs this one. Only somebody who serves a folder needs none.
    try:
        return BentoModel(published_model(SETTINGS.model).tag)
    except NotFound:
        if SETTINGS.bundle is None or SETTINGS.model is not None:
            raise
        return None


@cache
def _application() -> ASGIApp:
    return create_app(SETTINGS, current_model())


class AnswerAll:
    """ASGI middleware that hands all requests to our application, and BentoML's routes none.

    BentoML answers probes, unknown paths and wrong methods itself, in a shape that is not ours; as its middleware we
    come before its routes. Its lifespan still starts and ends the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (_application() if scope["type"] == "http" else self.app)(scope, receive, send)


def _tracing() -> dict[str, Any]:
    if SETTINGS.otlp_endpoint is None:
        # Who configures BentoML's tracing by BentoML's own variables gets it.
        if any(name.startswith("BENTOML_CONFIG") for name in os.environ):
            return {}
        # BentoML makes spans for every message all the same, for nobody, and they take longer than our own middleware.
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
    # It counts paths as they are sent, so that anybody can grow it without end; see `service.metrics`.
    metrics={"enabled": False},
    # Ours has the request's id, and one line for each.
    logging={"access": {"enabled": False}},
    # Cuts a request off with an answer that is no problem document, so it must come later than our own limits.
    traffic={"timeout": SETTINGS.read_seconds + SETTINGS.answer_seconds + 60.0},
    **_tracing(),
)
class ProtoServe:
    """Image classification at every level of a class tree, with the evidence for each level."""

    model = _declared_model()

    def __init__(self) -> None:
        # In a worker, after BentoML has set its own.
        configure_logs(SETTINGS.log_format, SETTINGS.log_level)
        # A worker takes no request before its model is loaded and has answered.
        current = current_model()()
        _application()
        if IS_WORKER:
            metrics.reserve_disk()
        LOG.info(
            "ready", extra={"model": current.version, "device": current.classifier.engine.device, "pid": os.getpid()}
        )

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def verify() -> None:
        """Once, in the supervisor: without it, BentoML would start workers that fail again and again."""
        configure_logs(SETTINGS.log_format, SETTINGS.log_level)
        try:
            read_model(bundle_in_use())
        except ProtoServeError as error:
            raise BentoMLException(str(error)) from error
        LOG.info("settings", extra={"settings": SETTINGS.shown()})


ProtoServe.add_asgi_middleware(AnswerAll)  # type: ignore[attr-defined]
