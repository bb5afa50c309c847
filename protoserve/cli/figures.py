"""Figures of evidence: a prediction level by level, and a prototype's source patch in context."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from protoserve.bundle.ensemble import Model
from protoserve.bundle.folder import Bundle
from protoserve.cli.lettering import INK, Pen
from protoserve.cli.wording import sum_line, terms
from protoserve.images.decoded import DecodedImage
from protoserve.images.decoding import decode
from protoserve.images.geometry import Cells, Geometry, geometry_of
from protoserve.pages.words import extent, is_absence, likeness
from protoserve.schema import Box, Evidence, Level, Prediction

PROTOTYPE_SIDE: Final = 224

_WIDTH = 1200
_MARGIN = 32
_GAP = 20
_PHOTOGRAPH = (440, 400)
_THUMBNAIL = (160, 136)
# The pictures of the evidence against a node, and their cards in a row.
_SMALL = (96, 96)
_CARDS = 3
_FAINT = (104, 112, 124)
_RULE = (222, 226, 232)
_PAPER = (255, 255, 255)
_OUTLINE = (255, 214, 0)
# The colours of Okabe and Ito, which colour-blind readers can distinguish (https://jfly.uni-koeln.de/color/).
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))
_FOR, _AGAINST = _COLOURS[5], _COLOURS[4]
# The colour map of similarities, from low to high: dark blue, violet, orange, pale yellow.
_HEAT = np.array([(20, 20, 80), (150, 30, 120), (245, 110, 40), (255, 245, 170)], dtype=np.float32)


def prototype_picture(picture: Image.Image, box: Box) -> Image.Image:
    """Draw a prototype's source picture with the patch `box` outlined; its longer side is 224 pixels."""
    scale = PROTOTYPE_SIDE / max(picture.size)
    resized = picture.convert("RGB").resize(_scaled(picture.size, scale), Image.Resampling.LANCZOS)
    _outline(resized, box, scale, _OUTLINE, 3)
    return resized


def explain_figure(bundle: Model, image: DecodedImage, prediction: Prediction) -> Image.Image:
    """Draw a prediction as one picture, 1200 pixels wide, with a row per level.

    Each row shows the photograph with the boxes of its evidence and the similarity map of the strongest piece. Next to
    it, each prototype that speaks for the node has a line: where it was found in the photograph, its training patch,
    and its contribution = weight × (similarity − usual similarity). Smaller cards below show the prototypes that speak
    against the node. The title has the whole sum. A dashed box is the most similar place of a prototype to which the
    picture is *less* similar than usual. Where a network is not tiled, a thin frame marks what the network mostly saw
    for a box. Maps are drawn only if the prediction has them (`maps=True`). The headline says how
    far the answer goes.
    """
    geometry = geometry_of(image.width, image.height, bundle.input)
    sections = [_header(prediction)]
    sections += [_level_row(bundle, image, geometry, prediction, level) for level in prediction.levels]
    height = sum(section.height for section in sections) + _MARGIN
    figure = Image.new("RGB", (_WIDTH, height), _PAPER)
    top = 0
    for section in sections:
        figure.paste(section, (0, top))
        top += section.height
    return figure


def _header(prediction: Prediction) -> Image.Image:
    section = Image.new("RGB", (_WIDTH, 138), _PAPER)
    pen = Pen(ImageDraw.Draw(section))
    width = _WIDTH - 2 * _MARGIN
    goes = extent(prediction)
    pen.write((_MARGIN, 24), goes.title, 34, width=width)
    pen.write((_MARGIN, 72), goes.reason, 20, _FAINT, width)
    model, size = prediction.model, prediction.image
    path = "  ›  ".join(prediction.path)
    facts = f"{path}    {model.name}  {model.version[:19]}   photograph {size.width} x {size.height} pixels"
    pen.write((_MARGIN, 104), facts, 16, _FAINT, width)
    return section


def _level_row(
    bundle: Model, image: DecodedImage, geometry: Geometry, prediction: Prediction, level: Level
) -> Image.Image:
    photograph = _thumbnail(image.picture, _PHOTOGRAPH) if level.evidence else None
    title_height = 84
    line_height = _THUMBNAIL[1] + 14
    body = max(line_height * len(level.evidence), photograph.height + 8) if photograph is not None else 0
    cards = _against_cards(bundle, image, level)
    below = 0 if cards is None else cards.height + 8
    section = Image.new("RGB", (_WIDTH, title_height + body + below + _GAP), _PAPER)
    draw = ImageDraw.Draw(section)
    draw.line((_MARGIN, 0, _WIDTH - _MARGIN, 0), fill=_RULE, width=2)
    _write_title(Pen(draw), prediction, level)
    if cards is not None:
        section.paste(cards, (_MARGIN, title_height + body + 8))
    if photograph is None:
        return section

    scale = photograph.width / image.width
    strongest = level.evidence[0]
    if strongest.map is not None:
        photograph = _with_heat_map(photograph, strongest.map, _cells(bundle, strongest), geometry, scale)
    ranked = list(enumerate(level.evidence))
    # The strongest is drawn last, on top of the others, and all numbers on top of all frames.
    for rank, evidence in reversed(ranked):
        _outline(photograph, evidence.box, scale, _COLOURS[rank % len(_COLOURS)], 3, dashed=is_absence(evidence))
    for rank, evidence in reversed(ranked):
        _badge(photograph, evidence.box, scale, str(rank + 1), _COLOURS[rank % len(_COLOURS)])
    section.paste(photograph, (_MARGIN, title_height))
    left = _MARGIN + _PHOTOGRAPH[0] + _GAP
    pen = Pen(draw)
    thin = any(evidence.seen is not None for evidence in level.evidence)
    pen.write((left, 64), "this part (thin: seen)" if thin else "this part", 14, _FAINT)
    pen.write((left + _THUMBNAIL[0] + 40, 64), "and this training patch", 14, _FAINT)
    for rank, evidence in ranked:
        line = _evidence_line(bundle, image, geometry, level, evidence, rank)
        section.paste(line, (left, title_height + line_height * rank))
    return section


def _write_title(pen: Pen, prediction: Prediction, level: Level) -> None:
    end = pen.write((_MARGIN, 16), f"Level {level.level}", 16, _FAINT)
    end = pen.write((end + 14, 10), level.label, 24, width=640)
    end = pen.write((end + 14, 10), f"{level.probability:.1%}", 24, _COLOURS[5])
    if level.known is False:
        end = pen.write((end + 14, 10), "unknown", 24, _COLOURS[4])
    if level.forced:
        note = "an only child: certain given its parent, so it needs no evidence"
    elif level.level > 1:
        note = f"{level.conditional:.1%} given {prediction.path[level.level - 2]}"
    else:
        note = ""
    if level.alternatives:
        others = ", ".join(f"{other.label} {other.probability:.1%}" for other in level.alternatives)
        note = f"{note}   else {others}".strip()
    pen.write((end + 18, 17), note, 16, _FAINT, _WIDTH - _MARGIN - end - 18)
    if level.logit is None and not level.forced:
        pen.write((_MARGIN, 48), "the sum over the leaves below it; it has no evidence of its own", 16, _FAINT)
    elif level.logit is not None:
        pen.write((_MARGIN, 44), sum_line(level), 16, _FAINT, _WIDTH - 2 * _MARGIN)


def _evidence_line(
    bundle: Model, image: DecodedImage, geometry: Geometry, level: Level, evidence: Evidence, rank: int
) -> Image.Image:
    """Draw one piece of evidence: the photograph, the prototype's training patch, and its contribution."""
    left = _MARGIN + _PHOTOGRAPH[0] + _GAP
    line = Image.new("RGB", (_WIDTH - _MARGIN - left, _THUMBNAIL[1]), _PAPER)
    colour = _COLOURS[rank % len(_COLOURS)]
    photograph = _thumbnail(image.picture, _THUMBNAIL)
    scale = photograph.width / image.width
    if evidence.map is not None:
        photograph = _with_heat_map(photograph, evidence.map, _cells(bundle, evidence), geometry, scale)
    absence = is_absence(evidence)
    if evidence.seen is not None:
        _thin_frame(photograph, evidence.seen, scale)
    _outline(photograph, evidence.box, scale, colour, 2, dashed=absence)
    patch = _thumbnail(decode(bundle.picture(evidence.prototype)).picture, _THUMBNAIL)
    for picture, start in ((photograph, 0), (patch, _THUMBNAIL[0] + 40)):
        line.paste(picture, (start, (_THUMBNAIL[1] - picture.height) // 2))
    draw = ImageDraw.Draw(line)
    _arrow(draw, (_THUMBNAIL[0] + 8, _THUMBNAIL[1] // 2), 24, colour, crossed=absence)
    pen = Pen(draw)
    left = 2 * _THUMBNAIL[0] + 60
    width = line.width - left
    _disc(draw, (left + 13, 15), 13, str(rank + 1), colour)
    pen.write((left + 36, 4), _owner(bundle, evidence), 18, width=width - 36)
    sum_start = pen.write((left, 34), f"{evidence.contribution:+.2f}", 24, _FOR)
    pen.write((sum_start + 10, 41), f"= {terms(evidence)}", 16, width=width - (sum_start + 10 - left))
    draw.rectangle((left, 68, left + width - 1, 73), fill=_RULE)
    draw.rectangle((left, 68, left + max(round(_share(level, evidence) * (width - 1)), 1), 73), fill=_FOR)
    pen.write((left, 82), f"{likeness(evidence)} its patch", 14, INK, width)
    if evidence.source is not None:
        end = pen.write((left, 104), "from ", 14, _FAINT)
        pen.write((end, 104), evidence.source.image, 14, _FAINT, width - (end - left))
    return line


def _against_cards(bundle: Model, image: DecodedImage, level: Level) -> Image.Image | None:
    """Draw the evidence against a level's node as small cards, three in a row; None if none reaches -0.01."""
    shown = [evidence for evidence in level.against if round(evidence.contribution, 2) < 0]
    if not shown:
        return None
    rows = -(-len(shown) // _CARDS)
    width = (_WIDTH - 2 * _MARGIN) // _CARDS
    height = _SMALL[1] + 14
    section = Image.new("RGB", (_WIDTH - 2 * _MARGIN, 26 + rows * height), _PAPER)
    draw = ImageDraw.Draw(section)
    pen = Pen(draw)
    pen.write((0, 0), "speaks against it", 16, _AGAINST)
    for rank, evidence in enumerate(shown):
        left, top = rank % _CARDS * width, 26 + rank // _CARDS * height
        absence = is_absence(evidence)
        photograph = _thumbnail(image.picture, _SMALL)
        _outline(photograph, evidence.box, photograph.width / image.width, _AGAINST, 2, dashed=absence)
        patch = _thumbnail(decode(bundle.picture(evidence.prototype)).picture, _SMALL)
        for picture, start in ((photograph, 0), (patch, _SMALL[0] + 32)):
            section.paste(picture, (left + start, top + (_SMALL[1] - picture.height) // 2))
        _arrow(draw, (left + _SMALL[0] + 6, top + _SMALL[1] // 2), 20, _AGAINST, crossed=absence)
        text = left + 2 * _SMALL[0] + 44
        room = width - (text - left) - 10
        pen.write((text, top), f"{evidence.contribution:+.2f}", 20, _AGAINST)
        pen.write((text, top + 27), f"= {terms(evidence)}", 13, width=room)
        pen.write((text, top + 46), _owner(bundle, evidence).replace("prototype", "no.", 1), 13, width=room)
        pen.write((text, top + 64), "less than usual like" if absence else "looks like", 13, INK, room)
        bar = round(_share(level, evidence) * room)
        draw.rectangle((text, top + 86, text + room, top + 89), fill=_RULE)
        draw.rectangle((text, top + 86, text + max(bar, 1), top + 89), fill=_AGAINST)
    return section


def _owner(bundle: Model, evidence: Evidence) -> str:
    """Name a prototype and the class that it belongs to."""
    label = bundle.prototypes[evidence.prototype].child.rpartition("/")[2]
    member = "" if evidence.member is None else f", member {evidence.member}"
    return f"prototype {evidence.prototype} of {label}{member}"


def _cells(bundle: Model, evidence: Evidence) -> Cells:
    """Return the cells of the graph that found a piece of evidence."""
    member = bundle if isinstance(bundle, Bundle) else bundle.members[evidence.member or 0]
    return member.manifest.graph.cells


def _share(level: Level, evidence: Evidence) -> float:
    """Return the contribution's size relative to the level's largest, in [0, 1]."""
    largest = max(abs(piece.contribution) for piece in (*level.evidence, *level.against))
    return abs(evidence.contribution) / largest if largest > 0 else 0.0


# ---- drawing -----------------------------------------------------------------------------------------------


def _scaled(size: tuple[float, float], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _thumbnail(picture: Image.Image, limit: tuple[int, int]) -> Image.Image:
    scale = min(limit[0] / picture.width, limit[1] / picture.height)
    return picture.resize(_scaled(picture.size, scale), Image.Resampling.LANCZOS)


def _with_heat_map(
    picture: Image.Image, similarity: list[list[float]], cells: Cells, geometry: Geometry, scale: float
) -> Image.Image:
    """Lay a map of similarities [rows][columns] over the picture, which is partly greyed.

    `scale` is the size of the picture divided by that of the sender's. The picture stays grey outside the region that
    the model sees, as with `crop`.
    """
    model_width, model_height = geometry.model_width, geometry.model_height
    top, down, above, below = _map_axis(cells, cells.rows, model_height)
    left, across, before, after = _map_axis(cells, cells.columns, model_width)
    values = np.pad(np.asarray(similarity, dtype=np.float32), ((above, below), (before, after)), mode="edge")
    value_range = float(values.max() - values.min())
    values = (values - values.min()) / value_range if value_range > 0 else np.zeros_like(values)
    size = _scaled((geometry.scale_x * model_width, geometry.scale_y * model_height), scale)
    resized = Image.new("F", picture.size, 0.0)
    corner = (round(geometry.offset_x * scale), round(geometry.offset_y * scale))
    # The part of the map that lies on the model's input, in cells.
    region = (-left / across, -top / down, (model_width - left) / across, (model_height - top) / down)
    resized.paste(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC, box=region), corner)
    strength = np.clip(np.asarray(resized), 0.0, 1.0)
    colours = np.stack(
        [np.interp(strength, np.linspace(0, 1, len(_HEAT)), _HEAT[:, channel]) for channel in range(3)],
        axis=2,
    )
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    original = np.asarray(picture, dtype=np.float32)
    base = 0.5 * grey + 0.5 * original
    opacity = (0.06 + 0.5 * strength)[:, :, None]
    return Image.fromarray(np.clip(base * (1 - opacity) + colours * opacity, 0, 255).astype(np.uint8))


def _map_axis(cells: Cells, count: int, size: int) -> tuple[float, float, int, int]:
    """Return where a map of `count` cells starts along one axis of a model's input of `size` pixels, the pixels per
    cell, and how often the first and the last cell are repeated, so that the map covers the input.

    The centre of each cell lies on the centre of its tile.
    """
    if cells.tile is None or cells.step is None:
        return 0.0, size / count, 0, 0
    margin = cells.start + (cells.tile - cells.step) / 2
    before = max(0, math.ceil(margin / cells.step))
    after = max(0, math.ceil((size - margin) / cells.step - count))
    return margin - before * cells.step, float(cells.step), before, after


def _outline(
    picture: Image.Image,
    box: Box,
    scale: float,
    colour: tuple[int, int, int],
    thickness: int,
    *,
    dashed: bool = False,
) -> None:
    """Draw a frame with dark edges around the scaled box, just outside it.

    At the picture's border the frame moves inwards, so that all its sides are visible. With `dashed`, every other part
    of the frame is dark.
    """
    border = thickness + 2
    left, right = _inside(box[0] * scale, box[2] * scale, border, picture.width)
    top, bottom = _inside(box[1] * scale, box[3] * scale, border, picture.height)
    draw = ImageDraw.Draw(picture)
    for margin in range(border, 0, -1):
        ink = INK if margin in (1, border) else colour
        draw.rectangle((left - margin, top - margin, right - 1 + margin, bottom - 1 + margin), outline=ink)
    if dashed:
        dash = 2 * border
        for x in range(left - border, right + border, 2 * dash):
            end = min(x + dash, right + border) - 1
            draw.rectangle((x, top - border, end, top - 1), fill=INK)
            draw.rectangle((x, bottom, end, bottom - 1 + border), fill=INK)
        for y in range(top - border, bottom + border, 2 * dash):
            end = min(y + dash, bottom + border) - 1
            draw.rectangle((left - border, y, left - 1, end), fill=INK)
            draw.rectangle((right, y, right - 1 + border, end), fill=INK)


def _inside(start: float, end: float, border: int, limit: int) -> tuple[int, int]:
    first = min(max(round(start), border), limit - border - 1)
    return first, max(min(round(end), limit - border), first + 1)


def _thin_frame(picture: Image.Image, box: Box, scale: float) -> None:
    """Draw a thin white frame with a dark inner edge at the border of the scaled box, inside the picture."""
    left, top = (round(edge * scale) for edge in box[:2])
    right, bottom = (min(round(edge * scale), limit) - 1 for edge, limit in zip(box[2:], picture.size, strict=True))
    draw = ImageDraw.Draw(picture)
    for inset, ink in ((0, _PAPER), (1, INK)):
        if right - left > 2 * inset and bottom - top > 2 * inset:
            draw.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=ink)


def _badge(picture: Image.Image, box: Box, scale: float, text: str, colour: tuple[int, int, int]) -> None:
    radius = 12
    x = min(max(round(box[0] * scale), radius + 1), picture.width - radius - 2)
    y = min(max(round(box[1] * scale), radius + 1), picture.height - radius - 2)
    _disc(ImageDraw.Draw(picture), (x, y), radius, text, colour)


def _disc(
    draw: ImageDraw.ImageDraw, centre: tuple[int, int], radius: int, text: str, colour: tuple[int, int, int]
) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=INK)
    ink = INK if sum(colour) > 300 else _PAPER
    draw.text(centre, text, fill=ink, font=ImageFont.load_default(size=radius + 4), anchor="mm")


def _arrow(
    draw: ImageDraw.ImageDraw, start: tuple[int, int], length: int, colour: tuple[int, int, int], *, crossed: bool
) -> None:
    """Draw an arrow to the right; one that is `crossed` joins two patches that are unlike."""
    x, y = start
    draw.line((x, y, x + length - 8, y), fill=colour, width=3)
    draw.polygon([(x + length - 10, y - 7), (x + length, y), (x + length - 10, y + 7)], fill=colour)
    if crossed:
        middle = x + length // 2 - 3
        draw.line((middle - 5, y + 9, middle + 5, y - 9), fill=INK, width=3)
