"""The sections of a report that are tables of a run's records: scores, calibration, provenance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protoserve.pages.html import Child, Markup, make
from protoserve.reporting.prototypes import GroupSeparation
from protoserve.run.provenance import Provenance
from protoserve.run.records import Metrics, Scores, SelectionAccuracy, Split
from protoserve.similarity_statistics import ALWAYS_ON, TELLING

# The splits, that by which a model is judged first.
ORDER: Final[tuple[Split, ...]] = ("test", "validation", "selection")


def section(name: str, title: str, *children: Child) -> Markup:
    """Make a section with its heading, to which the navigation leads."""
    return make("section", make("h2", title, id=name), *children, aria_labelledby=name)


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], picked: int | None = None) -> Markup:
    """Make a table whose first column names its rows, with or without a head; the row `picked` stands out."""
    body = [
        make(
            "tr",
            make("th", row[0], scope="row"),
            [make("td", cell) for cell in row[1:]],
            class_="picked" if index == picked else None,
            aria_current="true" if index == picked else None,
        )
        for index, row in enumerate(rows)
    ]
    header = make("thead", make("tr", [make("th", name, scope="col") for name in head])) if head else None
    return make("div", make("table", header, make("tbody", body)), class_="scroll", tabindex=0, role="group")


def details(title: str, note: str, *children: Child, opened: bool = False) -> Markup:
    """Make a part that is opened by a click."""
    return make(
        "details", make("summary", make("b", title), " ", make("span", note, class_="soft")), *children, open=opened
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share in percent, without the sign; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def figure(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def spoken(key: str) -> str:
    """Write a key such as `level_1` as words."""
    return key.replace("_", " ")


# ---- scores ----------------------------------------------------------------------------------------------------------


def tiles(metrics: Metrics, prototypes: int, nodes: int) -> Markup | None:
    """The main numbers on top of the page; None for a model without scores."""
    scores = metrics.of(ORDER)
    if not scores:
        return None
    split, main = next(iter(scores.items()))
    told: list[tuple[str, Child, str]] = [
        (f"{spoken(level)} accuracy, {split}", f"{percent(main.accuracy[level])} %", "")
        for level in main.accuracy
        if level in ("leaf", "level_1")
    ]
    if prototypes:
        told.append(("prototypes", str(prototypes), f"of {nodes} nodes"))
    if metrics.purity is not None:
        told.append(("nearest patches of own class", f"{percent(metrics.purity.mean)} %", ""))
    if (separation := metrics.separation) is not None:
        rest = f"of {separation.prototypes}; {separation.always_on} always on"
        told.append(("prototypes that tell classes apart", str(separation.telling), rest))
    if main.mistake_severity is not None:
        told.append(("mistake severity", f"{main.mistake_severity:.2f}", "levels"))
    if main.expected_calibration_error:
        told.append(("calibration error, leaf", f"{percent(main.expected_calibration_error['leaf'])} %", ""))
    return make(
        "dl",
        [
            make("div", make("dt", name), make("dd", value, make("small", f" {note}") if note else None))
            for name, value, note in told
        ],
        class_="tiles",
    )


def scores_section(metrics: Metrics) -> Markup:
    """Accuracy at every level on every split, and before and after the stages that change prototypes."""
    scores = metrics.of(ORDER)
    if not scores:
        return section("scores", "Scores", make("p", "There are no scores."))
    main = next(iter(scores.values()))
    head = ["split", "images", *(f"{spoken(level)}, %" for level in main.accuracy), "macro, %"]
    head += ["hierarchical F1, %", "mistake severity, levels"] if main.hierarchical else []
    rows = [_scores_row(split, found, main) for split, found in scores.items()]
    note = (
        "Training chose epochs, weights and numbers of prototypes by the accuracy on the selection images, which "
        "include the validation images, so scores on both are optimistic. The test split was scored once, at the end. "
        "Mistake severity is the mean number of levels from the true leaf up to its lowest common ancestor with a "
        "wrong prediction."
    )
    return section("scores", "Scores", table(head, rows), make("p", note, class_="soft"))


def _scores_row(split: str, found: Scores, main: Scores) -> list[str]:
    row = [split, str(found.images), *(percent(found.accuracy[level], 2) for level in main.accuracy)]
    row.append(percent(found.macro_accuracy, 2))
    if main.hierarchical:
        row += [percent(found.hierarchical.f1 if found.hierarchical else None, 2), figure(found.mistake_severity)]
    return row


def stage_rows(metrics: Metrics) -> list[tuple[str, SelectionAccuracy]]:
    """Return (label, accuracies on the selection images) of the plain classifier on the same features, and before and
    after the stages that change prototypes or their weights."""
    stages = {
        "projection": metrics.projection,
        "anchoring": metrics.anchored,
        "pruning": metrics.prune,
        "last layers": metrics.last_layers,
    }
    rows: list[tuple[str, SelectionAccuracy]] = []
    if metrics.plain is not None:
        accuracy = metrics.plain.accuracy
        found = SelectionAccuracy(selection_leaf=accuracy["leaf"], selection_level_1=accuracy["level_1"])
        rows.append(("plain classifier on the same features", found))
    for label, record in stages.items():
        if record is not None:
            # Omit the row "before" if it equals the row "after" of the previous stage.
            if not rows or rows[-1][1] != record.before:
                rows.append((f"before {label}", record.before))
            rows.append((f"after {label}", record.after))
    return rows


def stages_table(metrics: Metrics) -> Child:
    """The accuracies of `stage_rows` as a table; nothing without stages."""
    rows = stage_rows(metrics)
    if not rows:
        return None
    told = [(label, percent(found.selection_leaf, 2), percent(found.selection_level_1, 2)) for label, found in rows]
    title = make("h3", "Accuracy on the selection images, before and after each stage")
    return title, table(("stage", "leaf, %", "level 1, %"), told)


def calibration_section(metrics: Metrics, picture: str | None) -> Markup:
    """Calibration errors, temperatures and novelty thresholds; `picture` is a `data:` URI of reliability diagrams."""
    scores = metrics.of(ORDER)
    levels = list(next(iter(scores.values())).accuracy) if scores else []
    parts: list[Child] = []
    calibration = metrics.calibration
    if calibration is not None:
        rows = [
            (f"{split}, {state}", *(percent(found.expected_calibration_error.get(level), 2) for level in levels))
            for split in scores
            if (change := getattr(calibration, split)) is not None
            for state, found in (("before", change.before), ("after", change.after))
        ]
        parts.append(table(["expected calibration error, %", *map(spoken, levels)], rows))
        if picture is not None:
            words = "Accuracy against confidence at every level, before and after calibration"
            caption = f"{words}. On the diagonal, probabilities are accurate."
            parts.append(make("figure", make("img", src=picture, alt=words), make("figcaption", caption)))
        parent_rows = [(parent or "the root", figure(value)) for parent, value in calibration.temperature.items()]
        note = f"– common {figure(calibration.common)}; above 1, the parent was overconfident"
        parts.append(details("Temperatures per parent", note, table(("parent", "temperature"), parent_rows)))
    elif scores and (errors := next(iter(scores.values())).expected_calibration_error):
        told = ", ".join(f"{spoken(level)} {percent(errors.get(level), 2)} %" for level in levels)
        parts.append(make("p", f"No temperatures were fitted. Expected calibration error: {told}."))
    else:
        parts.append(make("p", "There is no measure of calibration."))
    if (novelty := metrics.novelty) is not None:
        share = f"{percent(novelty.true_positive_rate, 0)} % of the known images below a parent reach its threshold"
        threshold_rows = [(parent or "the root", figure(value, 4)) for parent, value in novelty.thresholds.items()]
        inner = table(("parent", "lowest known score"), threshold_rows)
        parts.append(details("Novelty thresholds", f"– score {spoken(novelty.score)}; {share}", inner))
    return section("calibration", "Calibration and novelty", *parts)


# ---- prototypes and origin -------------------------------------------------------------------------------------------


def separation_table(rows: Sequence[GroupSeparation], chart: Child = None) -> Child:
    """How well the prototypes of each parent tell classes apart, as a table beside a `chart`."""
    if not rows:
        return None
    words = (
        "Own and siblings are the mean similarities to pictures of a prototype's own class and of the siblings, and "
        "the effect is their difference in pooled standard deviations. From an effect of "
        f"{TELLING:g} on, a prototype tells its class from its siblings; below {ALWAYS_ON:g} it is always on: it fires "
        "on all of them nearly alike and hardly decides between them."
    )
    told = [
        (row.parent or "the root", str(row.prototypes), str(row.telling), str(row.always_on), f"{row.effect:.2f}")
        for row in rows
    ]
    head = ("competing below", "prototypes", "tell classes apart", "always on", "median effect")
    both = make("div", table(head, told), chart, class_="charts")
    return make("p", words, class_="soft"), details("How well they tell classes apart", "– by parent", both)


def provenance_section(provenance: Provenance, configuration: str, facts: Mapping[str, str]) -> Markup:
    """Where a model comes from: data, images, software and configuration, after other `facts`."""
    data, images = provenance.data, provenance.images
    software = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    rows: list[tuple[Child, ...]] = [(name, make("code", value)) for name, value in facts.items()]
    rows += [
        ("data", "–" if data is None else (f"{data.root}, ", make("code", data.fingerprint))),
        ("images", "–" if images is None else f"{images.fit} to fit, {images.selection} to select"),
        ("software", f"Python {provenance.python or '–'}" + (f", {software}" if software else "")),
    ]
    configured = details("Configuration", "", make("pre", configuration, tabindex=0))
    return section("provenance", "Provenance", table((), rows), configured)
