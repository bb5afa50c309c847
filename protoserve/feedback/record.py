"""Feedback on one answer: what a person says about it, and the record of that.

A service keeps no answers, so feedback names all that tells which answer it is about: the answer's id, the model's
version, the SHA-256 of the picture, and the predicted path.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AwareDatetime, Field, model_validator

from protoserve.schema import Contract

Verdict: TypeAlias = Literal["right", "wrong", "wrong reason"]

MAX_COMMENT: Final = 2000
MAX_PROTOTYPES: Final = 100
MAX_NAME: Final = 400

Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Node: TypeAlias = Annotated[str, Field(min_length=1, max_length=4 * MAX_NAME)]
PrototypeId: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Feedback(Contract):
    """What a person says about one answer.

    `right` needs nothing more. `wrong` names the right `node`, a leaf or an inner node, if it is known. `wrong reason`
    names the `prototypes` that should not have counted, whether or not the answer was right.
    """

    answer: str = Field(pattern="^[0-9a-f]{32}$", description="the answer's `id`")
    model: str = Field(pattern="^sha256:[0-9a-f]{64}$", description="the answer's `model.version`")
    image: str = Field(pattern="^[0-9a-f]{64}$", description="the answer's `image.sha256`")
    path: list[Name] = Field(min_length=1, max_length=100, description="the answer's `path`")
    verdict: Verdict
    node: Node | None = Field(
        default=None, description="the right node, named by its path (`Fruit/Apple`); only if the answer is wrong"
    )
    prototypes: list[PrototypeId] = Field(
        default=[],
        max_length=MAX_PROTOTYPES,
        description="the prototypes that should not have counted; only for a wrong reason",
    )
    comment: str = Field(default="", max_length=MAX_COMMENT)
    by: str = Field(default="", max_length=MAX_NAME, description="who says so")

    @property
    def predicted(self) -> str:
        """The predicted leaf."""
        return "/".join(self.path)

    @model_validator(mode="after")
    def _check_verdict(self) -> Feedback:
        if self.verdict != "wrong" and self.node is not None:
            raise ValueError(f"the verdict {self.verdict!r} takes no node; say 'wrong' if {self.node!r} is right")
        if self.verdict == "wrong" and self.node == self.predicted:
            raise ValueError(f"the answer was {self.node!r}, so it is not wrong; name the right node or say 'right'")
        if self.verdict == "wrong reason" and not self.prototypes:
            raise ValueError("a wrong reason names the prototypes that should not have counted; give 'prototypes'")
        if self.verdict != "wrong reason" and self.prototypes:
            raise ValueError(f"the verdict {self.verdict!r} takes no prototypes; say 'wrong reason' to name them")
        if len(set(self.prototypes)) < len(self.prototypes):
            raise ValueError(f"a prototype is named twice: {self.prototypes}; name each once")
        return self


class FeedbackRecord(Feedback):
    """Feedback as it is kept."""

    at: AwareDatetime = Field(description="when it was received")
    request: str = Field(
        max_length=128, description="the id of the request; a repeated request makes equal records, which count once"
    )
    key: str | None = Field(default=None, description="name of the API key that sent it")
    checked: bool = Field(
        description="whether its node and prototypes are known to be those of its model; false where the service had "
        "another version by then"
    )

    @property
    def said(self) -> tuple[object, ...]:
        """All but the time: equal for records of one repeated request."""
        return tuple(sorted((name, str(value)) for name, value in self.model_dump(exclude={"at"}).items()))
