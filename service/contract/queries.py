"""Query parameters as frozen pydantic models. Unknown, repeated and out-of-range parameters are refused."""

from __future__ import annotations

from typing import Final, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request

from protoserve.errors import nearest
from protoserve.inference.option_text import levels_of, names_of, numbers_of, weights_of
from protoserve.inference.options import PredictOptions
from protoserve.schema import Contract
from service.contract.problems import Problem

MAX_PARAMETERS: Final = 32

Query = TypeVar("Query", bound=BaseModel)


class NoQuery(Contract):
    """For routes without parameters."""


class PredictQuery(Contract):
    """Selects what a prediction shows and supposes."""

    top_k: int | None = Field(
        default=None,
        ge=0,
        description="evidence per level, at most the model's own top_k (/v1/model); the default is 5, or the model's "
        "top_k if that is less",
    )
    maps: Literal["none", "boxes", "heat"] = Field(
        default="boxes",
        description="how evidence is located: `boxes` gives its box, `heat` also its similarity at every "
        "cell; `none` leaves the evidence out and returns the nodes alone",
    )
    alternatives: int = Field(default=3, ge=0, le=1000, description="other nodes per level")
    contrast: str | None = Field(
        default=None, description="why not this node? Named by its path (`Fruit/Lemon`), compared with the answer"
    )
    without: str | None = Field(
        default=None,
        description="prototypes, separated by commas (`12,17`): the answer as if these were switched off",
    )
    precision: float | None = Field(
        default=None,
        ge=0.5,
        lt=1,
        description="the share of answers that must be right; the default is the model's own (/v1/model)",
    )
    allow: str | None = Field(
        default=None,
        description="nodes, separated by commas: the picture's class lies in one of their branches "
        "(`Fruit,Vegetables/Pepper`)",
    )
    deny: str | None = Field(default=None, description="nodes in whose branches it does not lie, separated by commas")
    depth: str | None = Field(
        default=None,
        description="NODE:LEVEL, separated by commas: paths through the node end at this level at the latest "
        "(`Fruit/Apple:2`); a lone level holds for the whole tree",
    )
    prior: str | None = Field(
        default=None,
        description="NODE:WEIGHT, separated by commas: how much more frequent its leaves are than in training, "
        "relative to others (`Fruit:3`)",
    )
    list: str | None = Field(default=None, description="the name of a list of the model (/v1/model), which holds, too")

    def options(self) -> PredictOptions:
        """Return what the query asks of the prediction; raises Problem where its parameters contradict each other."""
        if self.maps == "none" and self.top_k:
            raise Problem(
                "invalid_parameter",
                f"maps=none leaves the evidence out, but top_k={self.top_k} asks for it; give only one of them",
            )
        return PredictOptions(
            top_k=0 if self.maps == "none" else self.top_k,
            alternatives=self.alternatives,
            maps=self.maps == "heat",
            contrast=self.contrast,
            without=numbers_of(self.without),
            precision=self.precision,
            allow=names_of(self.allow),
            deny=names_of(self.deny),
            depth=levels_of(names_of(self.depth)),
            prior=weights_of(names_of(self.prior)),
            list=self.list,
        )


class PrototypeImageQuery(Contract):
    """Selects what the picture of a prototype shows."""

    view: Literal["context", "patch"] = Field(
        default="context",
        description="`context` is the training picture with the patch framed, `patch` a square around the patch",
    )


class PrototypesQuery(Contract):
    """Selects which prototypes to list."""

    node: str | None = Field(
        default=None, description="list only the prototypes of this node, named by its path (`Fruit/Apple`)"
    )
    cursor: str | None = Field(
        default=None, pattern="^[0-9]{1,9}$", description="the `cursor` of the previous page; continues after it"
    )


def parse_query(request: Request, model: type[Query]) -> Query:
    """Parse the request's query string as `model`.

    Raises Problem `unknown_parameter`, which suggests the nearest known name, or `invalid_parameter`.
    """
    known = sorted(model.model_fields)
    try:
        pairs = parse_qsl(
            request.scope["query_string"].decode("latin-1"),
            keep_blank_values=True,
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as error:
        raise Problem("invalid_parameter", f"the query has more than {MAX_PARAMETERS} parameters") from error
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in model.model_fields:
            choice = f"this route takes {', '.join(known)}" if known else "this route takes none"
            raise Problem("unknown_parameter", f"unknown parameter {name[:80]!r}: {choice}{nearest(name[:80], known)}")
        if name in values:
            raise Problem("invalid_parameter", f"the parameter {name!r} is given twice; give it once")
        values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        value = str(first["input"])[:80]
        raise Problem("invalid_parameter", f"{first['loc'][0]}={value!r}: {first['msg']}; correct it") from error
