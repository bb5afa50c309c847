"""The ASGI application with the service's routes. It does not depend on BentoML."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protoserve.errors import InputError
from service.contract.problems import Problem, handle_error
from service.middleware.api_key import ApiKeyMiddleware
from service.middleware.cors import CorsMiddleware
from service.middleware.response import ResponseMiddleware
from service.model.holder import LoadedModel
from service.routes.feedback import FeedbackRoutes, prepare_feedback
from service.routes.inference import InferenceRoutes
from service.routes.model import ModelRoutes
from service.routes.operations import OperationsRoutes
from service.routes.predict import PredictRoutes
from service.settings import Settings

_LOG = logging.getLogger("protoserve.service")


def create_app(settings: Settings, current_model: Callable[[], LoadedModel]) -> Starlette:
    """Create the application that answers every route of the HTTP contract.

    `current_model` returns the model for a new request. The event loop calls it on every request, so it must be fast.
    All errors are `application/problem+json`, including those for unknown routes and methods. Raises InputError where
    the feedback of the settings can't be kept.
    """
    predict = PredictRoutes(settings, current_model)
    model = ModelRoutes(settings, current_model)
    inference = InferenceRoutes(predict, current_model)
    operations = OperationsRoutes(settings, current_model, predict.is_stalled)
    routes = [
        Route("/", operations.page),
        Route("/v1/predict", predict.predict, methods=["POST"]),
        Route("/v1/predict/batch", predict.predict_batch, methods=["POST"]),
        Route("/v1/input", predict.input, methods=["POST"]),
        Route("/v1/model", model.model),
        Route("/v1/taxonomy", model.taxonomy),
        Route("/v1/prototypes", model.prototypes),
        Route("/v1/prototypes/{id}", model.prototype),
        Route("/v1/prototypes/{id}/image", model.prototype_image),
        Route("/v1/samples/{id}", model.sample),
        Route("/v2", inference.server),
        Route("/v2/health/live", inference.live),
        Route("/v2/health/ready", inference.ready),
        *(
            Route(f"/v2/models/{{name}}{version}{suffix}", endpoint, methods=[method])
            for version in ("/versions/{version}", "")
            for suffix, endpoint, method in (
                ("", inference.model, "GET"),
                ("/ready", inference.model_ready, "GET"),
                ("/infer", inference.infer, "POST"),
            )
        ),
        Route("/livez", operations.live),
        Route("/healthz", operations.live),
        Route("/readyz", operations.ready),
        Route("/openapi.json", operations.openapi),
    ]
    store = prepare_feedback(settings)
    if store is not None:
        feedback = FeedbackRoutes(settings, store, current_model, predict.body_budget)
        routes.append(Route("/v1/feedback", feedback.feedback, methods=["POST"]))
        routes.append(Route("/v1/feedback/picture", feedback.picture, methods=["POST"]))
    if settings.metrics_port is None:
        routes.append(Route("/metrics", operations.metrics))
    templates: dict[object, str] = {route.endpoint: route.path for route in routes}
    templates[operations.live] = "/livez"
    middleware = [Middleware(ResponseMiddleware, routes=templates)]
    if settings.cors_origins:
        middleware.append(Middleware(CorsMiddleware, origins=settings.cors_origins))
    if settings.api_keys:
        middleware.append(Middleware(ApiKeyMiddleware, keys=settings.api_keys))
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            HTTPException: handle_error,
            Problem: handle_error,
            InputError: handle_error,
            ClientDisconnect: _handle_disconnect,
        },
    )
    # A redirect to the path without its trailing slash would be neither a document nor a problem.
    app.router.redirect_slashes = False
    return app


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    # No client reads this response. Without it, the log would show every aborted upload as a failure of the service.
    _LOG.debug("the client disconnected")
    return Response(status_code=499)
