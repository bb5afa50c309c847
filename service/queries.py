"""Query parameters as frozen pydantic models; what is unknown, repeated or out of range is refused."""

from __future__ import annotations

from typing import Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request

from protoserve.errors import nearest
from protoserve.schema import Contract
from service.problems import Problem

MOST_PARAMETERS = 32

Query = TypeVar("Query", bound=BaseModel)


class NoQuery(Contract):
    """For routes without parameters."""


class PredictQuery(Contract):
    """How much a prediction tells."""

    top_k: int | None = Field(
        default=None,
        ge=0,
        description="evidence per level, at most the model's own top_k (/v1/model); by default 5 or that",
    )
    maps: Literal["none", "boxes", "heat"] = Field(
        default="boxes",
        description="where the evidence is: `boxes` gives each its box, `heat` also its similarity at every "
        "cell; `none` leaves the evidence out and gives the nodes alone",
    )
    alternatives: int = Field(default=3, ge=0, le=1000, description="other nodes per level")


class PrototypesQuery(Contract):
    """Which prototypes to list."""

    node: str | None = Field(default=None, description="only those of this node, by its identity (`Fruit/Apple`)")
    cursor: str | None = Field(
        default=None, pattern="^[0-9]{1,9}$", description="from an earlier answer: where the next page begins"
    )


def read_query(request: Request, model: type[Query]) -> Query:
    """The request's query as `model`.

    Raises Problem `unknown_parameter` (with the nearest known name) or `invalid_parameter`.
    """
    known = sorted(model.model_fields)
    try:
        pairs = parse_qsl(
            request.scope["query_string"].decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=MOST_PARAMETERS,
        )
    except ValueError as error:
        raise Problem("invalid_parameter", f"the query has more than {MOST_PARAMETERS} parameters") from error
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in model.model_fields:
            choice = f"this route takes {', '.join(known)}" if known else "this route takes none"
            raise Problem("unknown_parameter", f"unknown parameter {name[:80]!r}: {choice}{nearest(name[:80], known)}")
        if name in given:
            raise Problem("invalid_parameter", f"the parameter {name!r} is given twice; give it once")
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        value = str(first["input"])[:80]
        raise Problem("invalid_parameter", f"{first['loc'][0]}={value!r}: {first['msg']}; correct it") from error
