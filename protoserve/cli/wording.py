"""How a prediction's sums and evidence are put into words, for terminals and figures alike."""

from __future__ import annotations

from dataclasses import dataclass

from protoserve.pages import words
from protoserve.pages.words import extent, headline
from protoserve.schema import Contrast, Evidence, Level, Prediction


@dataclass(frozen=True)
class LevelSum:
    """A level's logit and its parts, to two digits that add up: logit = prior + supporting + opposing + rest."""

    logit: float
    prior: float
    supporting: float
    opposing: float
    rest: float


def level_sum(level: Level) -> LevelSum | None:
    """Return the sum that a level shows; None for a level without a logit.

    The contributions are rounded one by one, as they are shown, and the rest closes the sum.
    """
    if level.logit is None:
        return None
    logit, prior = round(level.logit, 2), round(level.prior or 0.0, 2)
    supporting, opposing = (
        round(sum(round(piece.contribution, 2) for piece in pieces), 2) for pieces in (level.evidence, level.against)
    )
    return LevelSum(logit, prior, supporting, opposing, round(logit - prior - supporting - opposing, 2))


def sum_line(level: Level) -> str:
    """Write a level's sum with the share of the positive contributions that is shown; empty without a logit.

    >>> sum_line(Level(level=1, node="Fruit", label="Fruit", probability=0.9, conditional=0.9, logit=1.5, prior=0.25))
    'score 1.50 = +0.25 prior, +0.00 for, +0.00 against, +1.25 rest; 100% of what speaks for it is shown'
    """
    found = level_sum(level)
    if found is None:
        return ""
    parts = {"prior": found.prior, "for": found.supporting, "against": found.opposing, "rest": found.rest}
    # Adding 0.0 turns −0.0 into 0.0.
    terms = ", ".join(f"{value + 0.0:+.2f} {name}" for name, value in parts.items())
    share = "" if level.evidence_share is None else f"; {level.evidence_share:.0%} of what speaks for it is shown"
    return f"score {found.logit + 0.0:.2f} = {terms}{share}"


def contrast_sum(contrast: Contrast) -> str:
    """Write what a contrast's difference is made of, to two digits that add up; empty without a difference.

    >>> contrast_sum(Contrast(node="B", relation="beside", level=1, predicted="A", instead="B", logit_difference=1.5,
    ...     prior_difference=0.25, rest=1.25))
    'A leads B by 1.50 = +0.25 prior, +0.00 shown, +1.25 rest'
    """
    if contrast.logit_difference is None:
        return ""
    lead, prior = round(contrast.logit_difference, 2), round(contrast.prior_difference or 0.0, 2)
    shown = round(sum(round(piece.difference, 2) for piece in (*contrast.evidence, *contrast.missing)), 2)
    rest = round(lead - prior - shown, 2)
    # Adding 0.0 turns −0.0 into 0.0.
    parts = f"{prior + 0.0:+.2f} prior, {shown + 0.0:+.2f} shown, {rest + 0.0:+.2f} rest"
    return f"{contrast.predicted} leads {contrast.instead} by {lead + 0.0:.2f} = {parts}"


def terms(evidence: Evidence) -> str:
    """Write the factors of a contribution: centred weight × (similarity − usual similarity).

    >>> terms(Evidence(prototype=1, similarity=1.75, usual=0.98, weight=0.75, contribution=0.5775, box=(0, 0, 1, 1)))
    '0.75 × (1.75 - 0.98)'
    """
    return words.terms(evidence).replace("−", "-")


def answer_lines(prediction: Prediction) -> list[tuple[str, str]]:
    """Say in lines, each with its style, how far a prediction goes, and what the request's restriction did."""
    found = extent(prediction)
    style = "bold green" if found.sure else "bold yellow"
    lines = [(headline(prediction), style)]
    if (effect := prediction.restriction) is not None and effect.contradicted:
        lines.append((f"the picture contradicts the list: {effect.excluded:.1%} for what it excludes", "bold yellow"))
    if effect is not None and effect.unrestricted is not None:
        other = effect.unrestricted
        lines.append((f"without the list: {' › '.join(other.path)}  {other.probability:.1%}", "dim"))
    return lines
