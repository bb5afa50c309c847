"""A truth card as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from protoserve.bundle.folder import Bundle
from protoserve.bundle.truth_card import BoxEffect, Comparison, Estimate, PrototypeFlags, TruthCard
from protoserve.data.folders import told

if TYPE_CHECKING:
    from rich.console import RenderableType

# Prototypes off the object that are shown at most.
SUSPECTS = 20
# The words for a fill and a replacement.
_FILLS = {"mean": "mean colour", "blur": "blurred", "swap": "other picture"}
_REPLACEMENTS = {"noise": "noise", "picture": "other picture", "attack": "attack"}


def audit_report(card: TruthCard, bundle: Bundle) -> Iterator[RenderableType]:
    """Yield a truth card part by part: one table per metric, then the checks.

    Every row has a figure with its 95 % interval, its baseline, the interval of their difference, and the number of
    images.
    """
    yield Text.assemble(
        (bundle.name, "bold"),
        f"  {card.images} pictures of {card.data}/{card.split}, seed {card.seed}, 95 % intervals of "
        f"{card.resamples} resamples",
    )
    if card.passed_over:
        yield Text(told(card.passed_over))
    yield _additivity(card)
    yield _comparisons(
        "Locality: change when the pixels outside the box are replaced, beside inside",
        (
            (f"level {found.level}, {_REPLACEMENTS[found.replacement]}: {name}", comparison, form)
            for found in card.locality
            for name, comparison, form in (
                ("similarity (PAC)", found.activation_change, _percent_points),
                ("place (PLC)", found.place_change, _percent_points),
                ("rank (PRC)", found.rank_change, _number),
                ("accuracy (AC)", found.accuracy_change, _share),
            )
        ),
    )
    if bounded := sum(found.bounded + found.unknown for found in card.locality):
        yield Text(
            f"  of {bounded} pieces the graph did not give the similarity at the cell: a fall counts as the least "
            "possible, a rise is left out",
            "dim",
        )
    if card.perturbation:
        yield _comparisons(
            "Perturbation: share of the similarity lost when the box is perturbed, beside the rest of the picture",
            ((f"level {found.level}: {found.kind}", found.drop, _share) for found in card.perturbation),
        )
    if card.necessity:
        yield _effects(
            "Necessity: nats lost when the evidence boxes are filled, mean over 0 to 10 boxes", card.necessity
        )
        yield _effects("Sufficiency: nats gained when only they are kept, mean over 0 to 10 boxes", card.sufficiency)
    if card.parts:
        yield _comparisons(
            "Parts: share of evidence with its box's centre on the part, beside chance",
            (
                (f"level {hits.level}, {hits.part}: {name}", comparison, _share)
                for hits in card.parts
                for name, comparison in (("first", hits.first), ("first three", hits.first_three))
            ),
        )
        yield Text(f"  {on_object(card)}")
    if card.stability:
        yield _comparisons(
            "Stability: share of first evidence with the same parts after noise, beside all cells",
            ((f"level {found.level}: same parts", found.same_parts, _share) for found in card.stability),
        )
    for kept in card.consistency:
        yield Text(
            f"level {kept.level}: {kept.consistent:.0%} of {kept.prototypes} prototypes keep to one part, "
            f"{kept.shuffled:.0%} with shuffled places"
        )
    yield from _interventions(card)
    for pure in card.purity:
        yield Text(
            f"level {pure.level}: {pure.pure:.0%} of the most similar patches of {pure.prototypes} prototypes hold the "
            f"same part, {pure.shuffled:.0%} with shuffled places (pictures of {pure.split})"
        )
    yield _comparisons(
        "Sparsity, beside the group's prototypes at random",
        (
            (f"level {found.level}: {name}", comparison, form)
            for found in card.sparsity
            for name, comparison, form in (
                ("prototypes for 80 %", found.prototypes_for_80, _number),
                ("first evidence always on", found.always_on, _share),
                ("first evidence telling", found.telling, _share),
                ("boxes differ", found.distinctiveness, _share),
            )
        ),
    )
    flags = card.prototypes
    off_object = f"{len(flags.off_object)} off the object, " if card.parts else ""
    yield Text(
        f"  {flags.prototypes} prototypes: {flags.telling} telling, {len(flags.always_on)} always on, "
        f"{len(flags.border)} at the border, {off_object}{len(flags.duplicates)} duplicates "
        f"({flags.images} pictures of {flags.split}); --json lists them"
    )
    if flags.suspects:
        yield from _suspects(flags, bundle)
    yield Text("Checks", "bold")
    for check in card.checks:
        level = "" if check.level is None else f"level {check.level}: "
        mark = ("passed", "green") if check.passed else ("failed", "bold red")
        yield Text.assemble("  ", mark, f"  {level}{check.statement}")


def _interventions(card: TruthCard) -> Iterator[RenderableType]:
    """What pictures with one thing changed tell."""
    if card.part_effects:
        yield _comparisons(
            "Parts left out (FunnyBirds), beside contributions that are spread evenly",
            (
                (f"level {found.level}: {name}", comparison, _share)
                for found in card.part_effects
                for name, comparison in (
                    ("complete", found.complete),
                    ("not distracted", found.undistracted),
                    ("correct", found.correct),
                    ("contrastive", found.contrastive),
                )
            ),
        )
    if card.backgrounds:
        yield _comparisons(
            "Background independence: share that stays on another background, beside another object",
            (
                (f"level {found.level}, {found.background}: {name}", comparison, _share)
                for found in card.backgrounds
                for name, comparison in (("answers", found.answers), ("first evidence", found.first))
            ),
        )


def _suspects(flags: PrototypeFlags, bundle: Bundle) -> Iterator[RenderableType]:
    """The prototypes that speak by what lies off the object, and the command that switches them off."""
    shown = flags.suspects[:SUSPECTS]
    table = Table("prototype", "speaks for", "share from there", "chance", "adds", "cut from", box=None)
    for suspect in shown:
        record = bundle.prototypes[suspect.prototype]
        table.add_row(
            str(suspect.prototype),
            Text(suspect.node),
            _share(suspect.share),
            _share(suspect.chance),
            f"{suspect.adds:+.2f}",
            Text(f"{record.source_image} {list(record.source_box)}"),
        )
    place = shown[0].place
    yield _titled(
        f"Prototypes whose contributions come from {place.removeprefix('at ')}, on pictures of {flags.split}", table
    )
    if more := len(flags.suspects) - len(shown):
        yield Text(f"  and {more} more; --json lists them", "dim")
    listed = ",".join(str(suspect.prototype) for suspect in shown)
    yield Text(
        f"  Look at them in the run's report or on the service's page. If they should not count:\n"
        f'  protoserve curate {bundle.directory} --output NEW --disable {listed} --reason "…" --refit RUN'
    )


def evidence_lines(card: TruthCard | None, bundle: str = "BUNDLE") -> Iterator[str]:
    """Yield the main lines of a bundle's truth card; without one, the command that makes it."""
    if card is None:
        yield f"evidence not audited; run 'protoserve audit {bundle} --data DIR --write'"
    else:
        yield from card_lines(card)


def card_lines(card: TruthCard) -> Iterator[str]:
    """Yield the main lines of a truth card: how many checks hold, which do not, and where the first evidence lies."""
    failed = [check for check in card.checks if not check.passed]
    held = len(card.checks) - len(failed)
    audited = f"evidence audited on {card.images} pictures of {card.data}/{card.split}"
    named = [check.name if check.level is None else f"{check.name} (level {check.level})" for check in failed]
    yield f"{audited}: {held} of {len(card.checks)} checks hold" + (f"; not: {', '.join(named)}" if named else "")
    if card.parts:
        yield on_object(card)


def on_object(card: TruthCard) -> str:
    """Return one line on how often the first evidence lies on the object."""
    found = [hits for hits in card.parts if hits.part == "object"]
    shares = ", ".join(f"{hits.first.measured.mean:.0%} at level {hits.level}" for hits in found)
    return f"first evidence on the object: {shares} (chance {found[0].first.baseline.mean:.0%})"


def _additivity(card: TruthCard) -> Text:
    found = card.additivity
    text = Text("Additivity", "bold")
    text.append(
        f": logit − (prior + Σ contributions) is at most {found.largest_gap:.2g}, one contribution off by at most "
        f"{found.largest_piece_gap:.2g}; allowed {found.tolerance:.2g}",
        "not bold",
    )
    if found.gap is not None:
        other = found.gap.baseline
        text.append(f"; with another picture's contributions {other.mean:.2g} ({other.images} images)", "not bold")
    return text


def _effects(title: str, effects: Iterable[BoxEffect]) -> Group:
    table = _table("evidence", "random", "least", "more than random", "more than least", "images")
    for effect in effects:
        random, least = effect.over_random, effect.over_least
        table.add_row(
            f"level {effect.level}, {_FILLS[effect.fill]}",
            _interval(random.measured, _nats),
            _nats(random.baseline.mean),
            _nats(least.baseline.mean),
            _interval(random.difference, _nats),
            _interval(least.difference, _nats),
            str(random.measured.images),
        )
    return _titled(title, table)


def _comparisons(title: str, rows: Iterable[tuple[str, Comparison | None, Callable[[float], str]]]) -> Group:
    table = _table("figure", "baseline", "difference", "images")
    for name, comparison, form in rows:
        if comparison is not None:
            table.add_row(
                name,
                _interval(comparison.measured, form),
                form(comparison.baseline.mean),
                _interval(comparison.difference, form),
                str(comparison.measured.images),
            )
    return _titled(title, table)


def _titled(title: str, table: Table) -> Group:
    # A title of the table itself would be wrapped at the table's width.
    return Group(Text(title, "bold"), table)


def _table(*columns: str) -> Table:
    table = Table("", box=None)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    return f"{form(estimate.mean)} [{form(estimate.low)}, {form(estimate.high)}]"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _number(value: float) -> str:
    return f"{value:.1f}"


def _nats(value: float) -> str:
    return f"{value:.3f}"


def _percent_points(value: float) -> str:
    return f"{value:.1f} %"
