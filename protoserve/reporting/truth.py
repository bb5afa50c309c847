"""The section of a report that shows a truth card: every statement, and every figure beside its baseline."""

from __future__ import annotations

from collections.abc import Iterator

from protoserve.bundle.truth_card import Comparison, TruthCard
from protoserve.pages.html import Markup, make
from protoserve.reporting.sections import details, percent, section, table


def truth_section(card: TruthCard | None) -> Markup:
    """What the audit measured: every statement, and every figure beside its baseline."""
    if card is None:
        asked = (
            "The evidence was not audited. ",
            make("code", "protoserve audit BUNDLE --data DIR --write"),
            " measures how true it is, and keeps the result in the bundle.",
        )
        return section("truth", "Truth card", make("p", asked))
    held = sum(check.passed for check in card.checks)
    checks = [
        make(
            "li",
            make("b", "holds" if check.passed else "fails"),
            "" if check.level is None else f" level {check.level}:",
            f" {check.statement}",
            class_="passed" if check.passed else "failed",
        )
        for check in card.checks
    ]
    found = card.additivity
    words = f"{held} of {len(card.checks)} statements hold on {card.images} pictures of {card.data}/{card.split}."
    sums = (
        f"Prior and contributions add up to the logit to within {found.largest_gap:.2g}; allowed are "
        f"{found.tolerance:.2g}."
    )
    rows = [
        (name, _estimate(one), f"{one.baseline.mean:.3g}", _difference(one), str(one.measured.images))
        for name, one in card_figures(card)
    ]
    rows += [
        (name, f"{share:.3g}", f"{chance:.3g}", f"{share - chance:.3g}", "–")
        for name, share, chance in prototype_shares(card)
    ]
    head = ("figure", "measured [95 %]", "baseline", "difference [95 %]", "images")
    return section(
        "truth",
        "Truth card",
        make(
            "p",
            f"{words} {sums}",
        ),
        make("ul", checks, class_="checks"),
        details("Every figure", "– beside its baseline on the same pictures", table(head, rows)),
        _suspects(card),
    )


def _suspects(card: TruthCard) -> Markup | None:
    """The prototypes that speak by what lies off the object or at the border; each leads to its picture."""
    found = card.prototypes.suspects
    rows = [
        (
            make("a", f"prototype {one.prototype} of {one.node}", href=f"#prototype={one.prototype}"),
            one.place,
            f"{percent(one.share, 0)} % (chance {percent(one.chance, 0)} %)",
            f"{one.adds:+.2f}",
        )
        for one in found
    ]
    if not rows:
        return None
    note = f"– {len(rows)} prototypes speak by what lies there; what adds most comes first"
    inner = table(("prototype", "place", "share of what it adds", "adds, logits"), rows)
    return details("Off the object or at the border", note, inner)


def card_figures(card: TruthCard) -> Iterator[tuple[str, Comparison]]:
    """Yield every figure of a truth card that has a baseline, with its name."""
    for local in card.locality:
        place = f"level {local.level}, {local.replacement} outside the box"
        named = {
            "similarity changes, %": local.activation_change,
            "place changes, %": local.place_change,
            "rank changes": local.rank_change,
            "accuracy falls": local.accuracy_change,
        }
        yield from ((f"{place}: {name}", one) for name, one in named.items() if one is not None)
    for found in card.perturbation:
        if found.drop is not None:
            yield f"level {found.level}, {found.kind} in the box: share of the similarity lost", found.drop
    for name, effects in (("nats lost without the boxes", card.necessity), ("nats gained by them", card.sufficiency)):
        for effect in effects:
            yield f"level {effect.level}, {effect.fill}: {name}", effect.over_random
    for hits in card.parts:
        yield f"level {hits.level}: first evidence on the {hits.part}", hits.first
        yield f"level {hits.level}: first three on the {hits.part}", hits.first_three
    for stable in card.stability:
        yield f"level {stable.level}: same parts after noise", stable.same_parts
    for parts in card.part_effects:
        named = {
            "the evidence names a decisive part": parts.complete,
            "it names no part without effect": parts.undistracted,
            "it ranks the parts by their effect": parts.correct,
            "decisive parts speak for the node": parts.contrastive,
        }
        yield from ((f"level {parts.level}: {name}", one) for name, one in named.items() if one is not None)
    for kept in card.backgrounds:
        yield f"level {kept.level}, background {kept.background}: same answer", kept.answers
        if kept.first is not None:
            yield f"level {kept.level}, background {kept.background}: same first evidence", kept.first
    for sparse in card.sparsity:
        yield f"level {sparse.level}: prototypes for 80 %", sparse.prototypes_for_80
        yield f"level {sparse.level}: first evidence always on", sparse.always_on
        yield f"level {sparse.level}: first evidence telling", sparse.telling


def prototype_shares(card: TruthCard) -> Iterator[tuple[str, float, float]]:
    """Yield the figures over prototypes, which have no interval: name, figure, baseline."""
    for kept in card.consistency:
        name = f"level {kept.level}: keep to one part, of {kept.prototypes} prototypes"
        yield name, kept.consistent, kept.shuffled
    for pure in card.purity:
        name = f"level {pure.level}: part purity of {pure.prototypes} prototypes"
        yield name, pure.pure, pure.shuffled


def _estimate(one: Comparison) -> str:
    return f"{one.measured.mean:.3g} [{one.measured.low:.3g}, {one.measured.high:.3g}]"


def _difference(one: Comparison) -> str:
    return f"{one.difference.mean:.3g} [{one.difference.low:.3g}, {one.difference.high:.3g}]"
