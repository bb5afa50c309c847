"""Routes that take feedback on answers, and the pictures that belong to it. There are none without the setting."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import anyio
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from protoserve.bundle.ensemble import Model
from protoserve.errors import ImageError, InputError, nearest
from protoserve.feedback.lines import FullError
from protoserve.feedback.pictures import keep_picture
from protoserve.feedback.record import Feedback, FeedbackRecord
from protoserve.feedback.store import FeedbackStore, is_url, open_store
from protoserve.files import make_folder
from protoserve.images.signatures import format_of, listed
from service.contract.feedback import PictureReceipt, parse_feedback
from service.contract.problems import Problem
from service.contract.queries import NoQuery, parse_query
from service.contract.responses import NO_STORE
from service.contract.uploads import read_body, single_image
from service.model.holder import LoadedModel
from service.operations import metrics
from service.operations.request_context import current_context, measure_stage
from service.scheduling.limits import RETRY_SOON, CapacityBudget, ConcurrencyLimiter
from service.scheduling.rate import RateLimit
from service.settings import Settings

T = TypeVar("T")

# The largest body of feedback; a comment and all names that it may hold take less.
FEEDBACK_BYTES: Final = 64_000

_LOG = logging.getLogger("protoserve.service")
# Threads of a worker that wait for the disk or the database.
_WRITERS: Final = 2


def prepare_feedback(settings: Settings) -> FeedbackStore | None:
    """Open the store of the settings, and make the folders that are missing; None where feedback is off.

    Raises InputError, which names the setting, for a place that can't be used, and MissingExtraError.
    """
    if settings.feedback is None:
        return None
    if not is_url(settings.feedback):
        file = Path(settings.feedback)
        if file.is_dir():
            raise InputError(f"PROTOSERVE_FEEDBACK={settings.feedback!r} is a folder; name a file in it")
        make_folder(file.parent)
    if settings.feedback_pictures is not None:
        make_folder(settings.feedback_pictures)
    return open_store(settings.feedback, limit=settings.feedback_bytes)


class FeedbackRoutes:
    """Handlers of these routes; `current_model` returns the model for a new request, and `body_budget` is that of all
    routes that take pictures.

    Records and pictures are on the disk, or in the database, before a request is answered.
    """

    def __init__(
        self,
        settings: Settings,
        store: FeedbackStore,
        current_model: Callable[[], LoadedModel],
        body_budget: CapacityBudget,
    ) -> None:
        self.settings = settings
        self.store = store
        self.current_model = current_model
        self.writers = ConcurrencyLimiter(_WRITERS, settings.wait_seconds)
        self.rate = RateLimit(settings.feedback_per_minute)
        self.body_budget = body_budget

    async def feedback(self, request: Request) -> Response:
        """`POST /v1/feedback`: what a person says about one answer."""
        parse_query(request, NoQuery)
        self.rate.count("pieces of feedback")
        with measure_stage("read"):
            body = await read_body(request, limit=FEEDBACK_BYTES, seconds=self.settings.read_seconds)
        said = parse_feedback(request.headers.get("content-type", ""), body)
        bundle = self.current_model().classifier.bundle
        context = current_context()
        record = FeedbackRecord(
            **said.model_dump(),
            at=datetime.now(UTC),
            request=context.id,
            key=context.key,
            checked=_check(said, bundle),
        )
        await self._keep(lambda: self.store.append(record))
        metrics.FEEDBACK.labels(record.verdict).inc()
        return _created(record)

    async def picture(self, request: Request) -> Response:
        """`POST /v1/feedback/picture`: a picture to keep, as the raw body or as the only part of a form."""
        parse_query(request, NoQuery)
        folder, limit = self.settings.feedback_pictures, self.settings.feedback_bytes
        if folder is None:
            raise Problem(
                "unexpected_part",
                "this service keeps no pictures; send the feedback alone. PROTOSERVE_FEEDBACK_PICTURES turns it on",
            )
        self.rate.count("pictures")
        with self.body_budget.reserve() as reserve_bytes:
            body = await read_body(
                request, limit=self.settings.max_bytes, seconds=self.settings.read_seconds, reserve=reserve_bytes
            )
            image = single_image(request.headers.get("content-type", ""), body)
            if format_of(image) not in self.settings.formats:
                raise ImageError(
                    f"the picture is not one of the formats {listed(self.settings.formats)}; send the bytes that you "
                    "sent for the answer",
                    "unsupported_image",
                )
            name = await self._keep(lambda: keep_picture(folder, image, limit=limit))
        metrics.FEEDBACK_PICTURES.inc()
        return _created(PictureReceipt(sha256=name))

    async def _keep(self, write: Callable[[], T]) -> T:
        """Write in a thread. Only the log names the place and the reason where that fails."""
        try:
            with anyio.fail_after(self.settings.answer_seconds):
                return await self.writers.run(write)
        except TimeoutError:
            raise Problem(
                "answer_timeout",
                f"keeping this took more than {self.settings.answer_seconds:g} seconds; try again later",
                {"Retry-After": "5"},
            ) from None
        except FullError as error:
            _LOG.error("no room for feedback: %s", error)
            raise Problem(
                "storage_full", "the service has no room for more feedback; its operator has to make some"
            ) from None
        except InputError as error:
            _LOG.error("feedback can't be kept: %s", error)
            raise Problem(
                "storage_unavailable",
                "the service can't keep feedback now, and its log says why; try again later",
                RETRY_SOON,
            ) from None


def _check(said: Feedback, bundle: Model) -> bool:
    """Return whether the nodes and prototypes could be checked: only where the answer is of this version.

    A worker may have loaded another version since the answer. Raises Problem `unknown_node` or `unknown_prototype`.
    """
    if said.model != bundle.version:
        return False
    known = bundle.taxonomy.index
    for name in (said.predicted, said.node):
        if name is not None and name not in known:
            raise Problem(
                "unknown_node",
                f"the taxonomy has no node {name[:200]!r}{nearest(name[:200], known)}; /v1/taxonomy lists them",
            )
    count = len(bundle.prototypes)
    if unknown := [prototype for prototype in said.prototypes if prototype >= count]:
        raise Problem(
            "unknown_prototype",
            f"no prototype has the id {unknown[0]}; ids are 0 to {count - 1}, /v1/prototypes lists them",
        )
    return True


def _created(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), 201, headers=NO_STORE, media_type="application/json")
