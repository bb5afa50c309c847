"""An answer as HTML without a script: how far it goes, and each level's evidence as pairs of parts that look alike.

The service's page shows the same (`service/page/`). A notebook shows it for a prediction, and `protoserve explain`
writes it into a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from protoserve.names import one_line
from protoserve.pages.html import Child, Markup, make, page, style
from protoserve.pages.words import (
    Piece,
    Step,
    contrast_waterfall,
    extent,
    is_absence,
    label_of,
    likeness,
    number,
    percent,
    readable,
    signed,
    terms,
    waterfall,
)
from protoserve.schema import Box, Contrast, Evidence, Level, Prediction

if TYPE_CHECKING:
    from protoserve.pages.crops import Pictures

# The height of the picture with frames and the side of a number on it, in display pixels.
_SHOWN: Final = 330
_BADGE: Final = 21


def answer_page(prediction: Prediction, pictures: Pictures | None, name: str) -> str:
    """Make a page of one answer; `name` is that of its picture."""
    title = f"{extent(prediction).title} · {one_line(name)}"
    return page(title, make("main", answer(prediction, pictures, one_line(name))), styles=("page", "answer"))


def notebook_html(prediction: Prediction, pictures: Pictures | None) -> str:
    """Make what a notebook shows for a prediction; it brings its own style."""
    return str(make("div", make("style", style("answer")), answer(prediction, pictures)))


def brief(prediction: Prediction) -> str:
    """Write a prediction in one short line.

    >>> from protoserve.schema import ImageSize, ModelReference
    >>> levels = [Level(level=1, node="Fruit", label="Fruit", probability=0.9, conditional=0.9)]
    >>> model, image = ModelReference(name="m", version="v"), ImageSize(width=3, height=2)
    >>> brief(Prediction(model=model, image=image, path=["Fruit"], known_through_level=1, levels=levels))
    '<Prediction Fruit 90.0 %: Fruit, 90.0 % sure; 3 × 2 pixels, model m>'
    """
    path, found = " › ".join(prediction.path), extent(prediction)
    size, last = prediction.image, prediction.levels[-1]
    told = f"{found.title}, {found.reason.removesuffix('.')}"
    return one_line(
        f"<Prediction {path} {percent(last.probability)}: {told}; {size.width} × {size.height} pixels, "
        f"model {prediction.model.name}>"
    )


def answer(prediction: Prediction, pictures: Pictures | None, name: str = "") -> Markup:
    """Make the answer as one element, without its style."""
    held = extent(prediction)
    kind = "sure" if held.sure else "part" if held.levels else "none"
    shown = _shown_level(prediction.levels, held.levels)
    sections = [
        _level(prediction, level, pictures, held.levels, opened=level.level - 1 == shown) for level in prediction.levels
    ]
    if prediction.contrast is not None:
        sections.append(_contrast(prediction, prediction.contrast, pictures))
    photograph = None
    if pictures is not None:
        from protoserve.pages.crops import PHOTOGRAPH, data_uri, thumbnail, webp

        photograph = f"--photograph: url({data_uri(webp(thumbnail(pictures.photograph, PHOTOGRAPH), 82))})"
    return make(
        "article",
        make(
            "header",
            make("h2", held.title, class_=f"title {kind}"),
            make("p", held.reason, class_=f"reason {kind}"),
            _path(prediction.levels, held.levels),
            [make("p", line, class_="supposed") for line in supposed(prediction)],
        ),
        sections,
        make("p", _origin(prediction, name), class_="soft origin"),
        class_="protoserve",
        style=photograph,
    )


def supposed(prediction: Prediction) -> Iterator[str]:
    """Yield what the answer supposes: prototypes that are left out, classes that can't be in the picture."""
    if without := prediction.without:
        kind = "prototype" if len(without) == 1 else "prototypes"
        yield f"As if {kind} {', '.join(map(str, without))} were switched off."
    effect = prediction.restriction
    if effect is not None and effect.contradicted:
        yield f"The picture speaks against the restriction: {percent(effect.excluded)} lies outside of it."
    if effect is not None and effect.unrestricted is not None:
        other = effect.unrestricted
        yield f"Without the restriction: {' › '.join(map(readable, other.path))}, {percent(other.probability)}."


def _origin(prediction: Prediction, name: str) -> str:
    model, size = prediction.model, prediction.image
    picture = f"{name}, " if name else ""
    return f"{picture}{size.width} × {size.height} pixels. {model.name} {model.version[:19]}"


def _crumb(level: Level, held: int) -> Markup:
    guess = " · a guess" if level.level > held else ""
    return make(
        "li", readable(level.label), " ", make("small", percent(level.probability) + guess), class_=guess and "open"
    )


def _path(levels: Sequence[Level], held: int) -> Markup | None:
    """The levels of the path in one line; nothing for a single level, which the title names."""
    return make("ol", [_crumb(level, held) for level in levels], class_="path") if len(levels) > 1 else None


def _shown_level(levels: Sequence[Level], held: int) -> int:
    """The index of the deepest level that holds and has evidence; without any, of the first that has evidence."""
    told = [index for index, level in enumerate(levels) if level.evidence]
    return max((index for index in told if index < held), default=told[0] if told else max(0, held - 1))


# ---- one level -------------------------------------------------------------------------------------------------------


def _level(prediction: Prediction, level: Level, pictures: Pictures | None, held: int, *, opened: bool) -> Markup:
    facts = [] if level.level == 1 or level.forced else [f"{percent(level.conditional)} given its parent"]
    if level.level > held:
        facts.append("a guess")
    if level.alternatives:
        others = ", ".join(f"{readable(other.label)} {percent(other.probability)}" for other in level.alternatives)
        facts.append(f"else {others}")
    summary = make(
        "summary",
        make("b", readable(level.label)),
        " ",
        make("span", percent(level.probability), class_="share"),
        " ",
        make("span", " · ".join(facts), class_="soft"),
    )
    if level.logit is None:
        words = (
            "The only child of its parent: certain given the parent, so it needs no evidence."
            if level.forced
            else "The sum over the classes below it: it has no evidence of its own."
        )
        return make("details", summary, make("p", words, class_="soft"), open=opened)
    body = make("div", _photograph(prediction, level, pictures), _sum(waterfall(level), pictures), class_="body")
    return make("details", summary, body, make("p", _footer(level), class_="soft"), open=opened)


def _footer(level: Level) -> str:
    lines = []
    if level.sufficient:
        whatever = "whatever the rest of the picture may show"
        lines.append(
            f"One piece suffices, {whatever}."
            if level.sufficient == 1
            else f"{level.sufficient} pieces suffice, {whatever}."
        )
    if level.evidence_share is not None and level.evidence:
        lines.append(f"Shown: {100 * level.evidence_share:.0f} % of what speaks for it.")
    if not level.forced:
        lines.append(f"Against its siblings' scores, that makes {percent(level.conditional)}.")
    return " ".join(lines)


def _contrast(prediction: Prediction, contrast: Contrast, pictures: Pictures | None) -> Markup:
    """Why the predicted node and not another one."""
    if contrast.relation != "beside" or contrast.predicted is None or contrast.instead is None:
        why = "is part of the answer" if contrast.relation == "predicted" else "lies below the answer"
        return make("p", f"{label_of(contrast.node)} {why}.", class_="supposed")
    others = " › ".join(f"{readable(node.label)} {percent(node.probability)}" for node in contrast.path)
    instead = label_of(contrast.instead)
    summary = make(
        "summary",
        make("b", f"Why {label_of(contrast.predicted)} and not {instead}?"),
        " ",
        make("span", others, class_="soft"),
    )
    steps = contrast_waterfall(contrast)
    return make("details", summary, make("div", _sum(steps, pictures, instead), class_="body"), open=True)


def _photograph(prediction: Prediction, level: Level, pictures: Pictures | None) -> Markup | None:
    """The picture with a numbered frame around each piece of evidence for the node."""
    if pictures is None:
        return None
    size = prediction.image
    frames: list[Markup] = []
    placed: list[tuple[float, float]] = []
    for step in waterfall(level):
        if step.kind != "evidence" or step.piece is None:
            continue
        left, top = (_SHOWN * edge / size.height for edge in step.piece.box[:2])
        shift = 0
        # Numbers that would cover each other stand side by side.
        while any(abs(x - left - shift) < _BADGE and abs(y - top) < _BADGE for x, y in placed):
            shift += _BADGE
        placed.append((left + shift, top))
        badge = make("b", str(step.number), style=f"margin-left: {shift}px" if shift else None)
        frames.append(_frame(step.piece, (0, 0, size.width, size.height), "evidence", badge))
    ratio = f"aspect-ratio: {size.width} / {size.height}; --ratio: {size.width / size.height:.4f}"
    # The strongest lies on top.
    return make(
        "div",
        frames[::-1],
        class_="photograph",
        style=ratio,
        role="img",
        aria_label=f"the picture, with frames around the evidence for {readable(level.label)}",
    )


def _frame(piece: Piece, window: tuple[float, float, float, float], kind: str, *children: Child) -> Markup:
    """A frame around a piece's box inside a window (left, top, right, bottom in pixels of the picture)."""
    left, top, right, bottom = piece.box
    width, height = window[2] - window[0], window[3] - window[1]
    shares = (
        (top - window[1]) / height,
        (window[2] - right) / width,
        (window[3] - bottom) / height,
        (left - window[0]) / width,
    )
    # At the border of the window the frame moves inwards, so that all its sides are visible.
    inset = " ".join(f"max(4px, {100 * max(0.0, share):.2f}%)" for share in shares)
    absent = " absent" if is_absence(piece) else ""
    return make("i", *children, class_=f"frame {kind}{absent}", style=f"inset: {inset}")


# ---- the sum ---------------------------------------------------------------------------------------------------------


def _sum(steps: Sequence[Step], pictures: Pictures | None, instead: str = "") -> Markup:
    """The waterfall, from the prior over each piece to the score; `instead` names the other node of a contrast."""
    ends = [0.0, *(step.end for step in steps), *(step.start for step in steps)]
    low, span = min(ends), max(ends) - min(ends) or 1.0
    names = {
        "prior": "Every similarity as usual",
        "rest": "All other prototypes",
        "score": f"Lead over {instead}" if instead else "Score",
    }
    rows = []
    for step in steps:
        start, end = sorted((step.start, step.end))
        bar = make(
            "i",
            class_="total" if step.kind == "score" else "down" if step.end < step.start else "up",
            style=f"left: {100 * (start - low) / span:.2f}%; width: {100 * (end - start) / span:.2f}%",
        )
        value = number(step.value) if step.kind == "score" else signed(step.value)
        name = make("span", names[step.kind], class_="name") if step.piece is None else _piece(step, pictures, instead)
        flow = make("span", bar, class_="flow")
        rows.append(make("li", name, make("b", value, class_="value"), flow, class_=f"step {step.kind}"))
    return make("ol", rows, class_="sum")


def _piece(step: Step, pictures: Pictures | None, instead: str) -> Child:
    """A pair of parts that look alike, and what the piece's contribution is made of."""
    piece = step.piece
    assert piece is not None
    if isinstance(piece, Evidence):
        formula = terms(piece)
    else:
        formula = f"{signed(piece.predicted)} for it, {signed(piece.instead)} for {instead}"
    source = "" if piece.source is None else one_line(piece.source.image)
    member = "" if piece.member is None else f" of member {piece.member}"
    tell = make(
        "span",
        make("span", formula, class_="formula"),
        make("span", f"prototype {piece.prototype}{member}"),
        make("span", source.rpartition("/")[2], title=source, class_="source"),
        class_="tell",
    )
    like = make("span", likeness(piece), class_="like")
    count = make("span", str(step.number), class_="number")
    pair = _crops(step, piece, pictures)
    if pair is None:
        patch = "" if piece.source is None else f"{_corners(piece.source.box)} of its picture"
        pair = (make("span", _corners(piece.box), class_="box"), make("span", patch, class_="box"))
    return make("span", count, pair[0], like, pair[1], class_="pair"), tell


def _crops(step: Step, piece: Piece, pictures: Pictures | None) -> tuple[Markup, Markup] | None:
    if pictures is None:
        return None
    from protoserve.pages.crops import crop, crop_square, data_uri, webp

    photograph = pictures.photograph
    x, y, side = crop_square(piece.box, photograph.size)
    own = make(
        "span",
        make(
            "img",
            src=data_uri(webp(crop(photograph, piece.box))),
            alt=f"the part at {_corners(piece.box)}",
        ),
        _frame(piece, (x, y, x + side, y + side), step.kind),
        class_="crop",
    )
    content = pictures.patch(piece.prototype)
    if content is None:
        return own, make("span", "no picture", class_="box")
    alt = f"the training patch of prototype {piece.prototype}"
    return own, make("span", make("img", src=data_uri(content), alt=alt), class_="crop")


def _corners(box: Box) -> str:
    left, top, right, bottom = box
    return f"{left}, {top} – {right}, {bottom}"
