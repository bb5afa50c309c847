"""The BentoML service: BentoML starts, watches, stops and packs it; `service.app` answers.

BentoML loads this file by itself: in its supervisor, again in every worker, and for `bentoml build`.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel
from starlette.types import Receive, Scope, Send

from protoserve.classifier import Classifier, load
from protoserve.ensemble import read_model
from protoserve.errors import ProtoServeError
from service.app import create_app
from service.publish import bundle_directory, published_model
from service.settings import read_settings

SETTINGS = read_settings()
if SETTINGS.metrics_directory is not None:
    # In place of what BentoML has set; read when the first count is made.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(SETTINGS.metrics_directory)


@cache
def classifier() -> Classifier:
    """This process's model, loaded and verified once."""
    return load(bundle_in_use(), device=SETTINGS.device, threads=SETTINGS.threads)


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


def _declared_model() -> Any:
    # With its version, so that `bentoml build` packs this one. Only somebody who serves a folder needs none.
    try:
        return BentoModel(published_model(SETTINGS.model).tag)
    except NotFound:
        if SETTINGS.bundle is None or SETTINGS.model is not None:
            raise
        return None


_APP = create_app(SETTINGS, classifier)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """All requests that BentoML does not answer itself (GET on /livez, /readyz, /healthz and /schema.json).

    BentoML looks into a mounted Starlette application, and answers a path that it lacks with a plain-text 404
    of its own; a function it can't look into gets everything.
    """
    await _APP(scope, receive, send)


@bentoml.asgi_app(answer)
@bentoml.service(
    name="protoserve",
    workers=SETTINGS.workers,
    # It counts paths as they are sent, so that anybody can grow it without end; see `service.metrics`.
    metrics={"enabled": False},
    # Cuts a request off with an answer that is no problem document, so it must come later than our own
    # limits: one for reading, and one wait for each picture's decoding, for inference and for encoding.
    traffic={"timeout": SETTINGS.read_seconds + (SETTINGS.max_images + 2) * SETTINGS.wait_seconds + 60.0},
)
class ProtoServe:
    """Image classification at every level of a class tree, with the evidence for each level."""

    model = _declared_model()

    def __init__(self) -> None:
        # A worker takes no request before its model is loaded.
        classifier()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def verify() -> None:
        """Once, in the supervisor: without it, BentoML would start workers that fail again and again."""
        try:
            read_model(bundle_in_use())
        except ProtoServeError as error:
            raise BentoMLException(str(error)) from error
