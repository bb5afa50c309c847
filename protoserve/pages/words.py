"""What is said about an answer: how far it goes, its sum, numbers.

`service/page/words.mjs` says the same in browsers; a test compares the two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from protoserve.schema import Answer, Contrast, ContrastEvidence, Evidence, Level, Prediction

Piece: TypeAlias = Evidence | ContrastEvidence
EVEN_ODDS: Final = 0.5


def rounded(value: float) -> float:
    """Round to two digits as numbers are shown, half up; never −0."""
    return math.floor(100 * value + 0.5) / 100 + 0.0


def number(value: float) -> str:
    """Write a number with two digits.

    >>> number(-1.5)
    '−1.50'
    """
    return f"{value:.2f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a number with its sign.

    >>> signed(0.25), signed(-0.25)
    ('+0.25', '−0.25')
    """
    return ("" if value < 0 else "+") + number(value)


def percent(value: float) -> str:
    """Write a probability. None is told as 0 or as certain, unless it is.

    >>> percent(0.8), percent(0.99999), percent(0.00002)
    ('80.0 %', '> 99.99 %', '< 0.01 %')
    """
    if 0.9999 < value < 1:
        return "> 99.99 %"
    if 0 < value < 0.0001:
        return "< 0.01 %"
    return f"{100 * value:.{2 if value > 0.9995 or value < 0.0005 else 1}f} %"


def readable(label: str) -> str:
    """Write a label such as Granny-Smith as words.

    >>> readable("Granny-Smith")
    'Granny Smith'
    """
    return re.sub("[-_]+", " ", label)


def label_of(node: str) -> str:
    """Write the label at the end of a node's path as words.

    >>> label_of("Fruit/Apple/Granny-Smith")
    'Granny Smith'
    """
    return readable(node.rpartition("/")[2])


def is_absence(piece: Piece) -> bool:
    """Return whether the picture is less similar to the prototype than pictures usually are: even its most similar
    place is."""
    return piece.similarity < piece.usual


def likeness(piece: Piece) -> str:
    """Say how the most similar place in the picture relates to the prototype.

    >>> likeness(Evidence(prototype=1, similarity=0.6, usual=0.9, weight=-1, contribution=0.3, box=(0, 0, 1, 1)))
    'looks less than usual like'
    """
    return "looks less than usual like" if is_absence(piece) else "looks like"


def terms(piece: Evidence) -> str:
    """Write the factors of a contribution: centred weight × (similarity − usual similarity).

    >>> terms(Evidence(prototype=1, similarity=1.75, usual=0.98, weight=0.75, contribution=0.5775, box=(0, 0, 1, 1)))
    '0.75 × (1.75 − 0.98)'
    """
    sign = "+" if piece.usual < 0 else "−"
    return f"{number(piece.weight)} × ({number(piece.similarity)} {sign} {number(abs(piece.usual))})"


# ---- how far an answer goes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Extent:
    """How far an answer goes: `levels` of the path that hold (0 for none), a `title` that claims no more, the `reason`
    why it stops there, and whether it goes all the way (`sure`)."""

    levels: int
    sure: bool
    title: str
    reason: str


def extent(prediction: Prediction) -> Extent:
    """Say how far an answer goes.

    It goes as far as the stated precision holds. Without one, or where too few pictures were held out to promise it at
    any level, it goes as far as the picture is of a known class and the odds are even or better.
    """
    stated = prediction.answer
    promises = stated is not None and (stated.level > 0 or "too few" not in stated.reason)
    if stated is not None and promises:
        return _promised(stated, prediction.levels)
    levels, known = prediction.levels, prediction.known_through_level
    certain = next((index for index, level in enumerate(levels) if level.probability < EVEN_ODDS), len(levels))
    held = min(len(levels) if known is None else known, certain)
    if held == len(levels):
        last = levels[-1]
        lack, doubt = _lacking(last), ", if it is of a class I know" if known is None else ""
        few = "" if stated is None else f"; too few pictures were held out to promise {_share(stated.precision)}"
        return Extent(held, not lack, readable(last.label), f"{percent(last.probability)} sure{doubt}{lack}{few}")
    guess = f"{readable(levels[held].label)}, {percent(levels[held].probability)}"
    unknown = known is not None and known <= certain
    if not held and unknown:
        return Extent(0, False, "Nothing I know", f"Unlike all that I learned from. The closest is {guess}.")
    if not held:
        return Extent(0, False, "Not sure", f"The best guess, {guess}, has less than even odds.")
    title = readable(levels[held - 1].label)
    if unknown:
        return Extent(held, False, title, f"None of the kinds of {title} I know. The closest is {guess}.")
    reason = f"Which kind is not sure. The best guess, {guess}, has less than even odds."
    return Extent(held, False, title, reason)


def _promised(answer: Answer, levels: Sequence[Level]) -> Extent:
    """The same, where the answer states a precision and how deep that holds."""
    held, unknown = answer.level, "unknown" in answer.reason
    title = "Nothing I know" if unknown else "Not sure"
    if held and answer.node is not None:
        title = label_of(answer.node)
    promise = _share(answer.precision)
    doubt = _lacking(levels[held - 1]) if held else ""
    if held == len(levels):
        reason = f"{percent(levels[-1].probability)} sure; of such answers, at least {promise} are right{doubt}"
        return Extent(held, not doubt, title, reason)
    where = f"Stops at {title}" if held else "Stops at once"
    if unknown:
        why = f"None of the kinds of {title} I know" if held else "Unlike all that I learned from"
    elif "below" in answer.reason:
        why = f"{where}: below {promise}"
    else:
        told = re.sub(r"0\.\d+", promise, answer.reason.removeprefix("stops: "), count=1)
        why = f"{where}: {told}"
    guess = f"{readable(levels[held].label)}, {percent(levels[held].probability)}"
    return Extent(held, False, title, f"{why}. The closest is {guess}{doubt}.")


def _share(precision: float) -> str:
    return f"{rounded(100 * precision):g} %"


def _lacking(level: Level) -> str:
    """What to say where more speaks for a node that the picture lacks than that it shows: no reason for confidence."""
    total = sum(piece.contribution for piece in level.evidence)
    lacks = sum(piece.contribution for piece in level.evidence if is_absence(piece))
    return ", more by what the picture lacks than by what it shows" if 2 * lacks > total else ""


def headline(prediction: Prediction) -> str:
    """Say in one line how far an answer goes, and why.

    >>> from protoserve.schema import ImageSize, ModelReference
    >>> levels = [Level(level=1, node="Fruit", label="Fruit", probability=0.9, conditional=0.9)]
    >>> model, image = ModelReference(name="m", version="v"), ImageSize(width=1, height=1)
    >>> headline(Prediction(model=model, image=image, path=["Fruit"], known_through_level=1, levels=levels))
    'Fruit — 90.0 % sure'
    """
    found = extent(prediction)
    return f"{found.title} — {found.reason.removesuffix('.')}"


# ---- the sum ---------------------------------------------------------------------------------------------------------


StepKind: TypeAlias = Literal["prior", "evidence", "against", "rest", "score"]
_Told: TypeAlias = tuple[StepKind, Piece, float]


@dataclass(frozen=True)
class Step:
    """A step of a waterfall from `start` to `end`, in logits. A step of a `piece` of evidence has its `number`, from
    1."""

    kind: StepKind
    value: float
    start: float
    end: float
    piece: Piece | None = None
    number: int = 0


def waterfall(level: Level) -> list[Step]:
    """Make the steps of a level's sum: prior, pieces, rest, score; none for a level without a logit."""
    pieces: list[_Told] = [("evidence", piece, piece.contribution) for piece in level.evidence]
    pieces += [("against", piece, piece.contribution) for piece in level.against]
    return [] if level.logit is None else _steps(level.prior or 0.0, pieces, level.logit)


def contrast_waterfall(contrast: Contrast) -> list[Step]:
    """Make the steps of a contrast, from the difference of the priors to the lead of the predicted node; none without a
    difference. Pieces for the predicted node come first, the largest difference first."""
    told = sorted((*contrast.evidence, *contrast.missing), key=lambda piece: -abs(piece.difference))
    pieces: list[_Told] = [("evidence", piece, piece.difference) for piece in told if piece.difference > 0]
    pieces += [("against", piece, piece.difference) for piece in told if piece.difference < 0]
    lead = contrast.logit_difference
    return [] if lead is None else _steps(contrast.prior_difference or 0.0, pieces, lead)


def _steps(prior: float, pieces: Sequence[_Told], total: float) -> list[Step]:
    """Round contributions one by one, as they are shown; the rest closes the sum. A piece that rounds to 0 has no
    step."""
    at = rounded(prior)
    steps = [Step("prior", at, 0.0, at)]
    for kind, piece, contribution in pieces:
        if value := rounded(contribution):
            end = rounded(at + value)
            steps.append(Step(kind, value, at, end, piece, len(steps)))
            at = end
    rest = rounded(rounded(total) - at)
    end = rounded(at + rest)
    return [*steps, Step("rest", rest, at, end), Step("score", end, 0.0, end)]
