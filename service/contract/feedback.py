"""The body of `POST /v1/feedback`, checked as far as that is possible without the model; and the receipt of a
picture."""

from __future__ import annotations

from pydantic import Field, ValidationError

from protoserve.errors import nearest
from protoserve.feedback.record import Feedback
from protoserve.schema import Contract
from service.contract.problems import Problem

MEDIA_TYPE = "application/json"


class PictureReceipt(Contract):
    """A picture that is kept."""

    sha256: str = Field(description="of its bytes; the `image` of feedback on it")


def parse_feedback(content_type: str, body: bytes) -> Feedback:
    """Parse a body of JSON.

    Raises Problem `unsupported_media_type`, or `invalid_feedback`, which names the field and the nearest known one.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise Problem(
            "unsupported_media_type",
            f"Content-Type {media_type[:80]!r} is not supported by this route; send JSON with Content-Type "
            f"{MEDIA_TYPE}",
        )
    try:
        return Feedback.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))[:80]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"there is no such field{nearest(field, Feedback.model_fields)}"
        raise Problem("invalid_feedback", f"{field or 'the feedback'}: {message}") from error
