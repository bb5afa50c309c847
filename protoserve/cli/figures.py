"""Figures of evidence: a prediction level by level, and a prototype's source patch in context."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from protoserve.bundle.ensemble import Model
from protoserve.images.decoding import DecodedImage, decode
from protoserve.images.geometry import Geometry, geometry_of
from protoserve.schema import Box, Evidence, Level, Prediction

PROTOTYPE_SIDE: Final = 224

_WIDTH = 1200
_MARGIN = 32
_GAP = 20
_PHOTOGRAPH = (440, 400)
_THUMBNAIL = (160, 136)
_INK = (24, 28, 36)
_FAINT = (104, 112, 124)
_RULE = (222, 226, 232)
_PAPER = (255, 255, 255)
_OUTLINE = (255, 214, 0)
# The colours of Okabe and Ito, which colour-blind readers can distinguish (https://jfly.uni-koeln.de/color/).
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))
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
    it, each prototype has a line: where it was found in the photograph, its training patch, and similarity × weight =
    contribution. Maps are drawn only if the prediction has them (`maps=True`).
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
    section = Image.new("RGB", (_WIDTH, 112), _PAPER)
    pen = _Pen(ImageDraw.Draw(section))
    width = _WIDTH - 2 * _MARGIN
    pen.write((_MARGIN, 26), "  ›  ".join(prediction.path), 34, width=width)
    model, size = prediction.model, prediction.image
    facts = f"{model.name}  {model.version[:19]}   photograph {size.width} x {size.height} pixels"
    pen.write((_MARGIN, 76), facts, 16, _FAINT, width)
    return section


def _level_row(
    bundle: Model, image: DecodedImage, geometry: Geometry, prediction: Prediction, level: Level
) -> Image.Image:
    photograph = _thumbnail(image.picture, _PHOTOGRAPH) if level.evidence else None
    title_height = 84
    line_height = _THUMBNAIL[1] + 14
    body = max(line_height * len(level.evidence), photograph.height + 8) if photograph is not None else 0
    section = Image.new("RGB", (_WIDTH, title_height + body + _GAP), _PAPER)
    draw = ImageDraw.Draw(section)
    draw.line((_MARGIN, 0, _WIDTH - _MARGIN, 0), fill=_RULE, width=2)
    _write_title(_Pen(draw), prediction, level)
    if photograph is None:
        return section

    scale = photograph.width / image.width
    strongest = level.evidence[0]
    if strongest.map is not None:
        photograph = _with_heat_map(photograph, strongest.map, geometry, scale)
    ranked = list(enumerate(level.evidence))
    # The strongest is drawn last, on top of the others, and all numbers on top of all frames.
    for rank, evidence in reversed(ranked):
        _outline(photograph, evidence.box, scale, _COLOURS[rank % len(_COLOURS)], 3)
    for rank, evidence in reversed(ranked):
        _badge(photograph, evidence.box, scale, str(rank + 1), _COLOURS[rank % len(_COLOURS)])
    section.paste(photograph, (_MARGIN, title_height))
    left = _MARGIN + _PHOTOGRAPH[0] + _GAP
    pen = _Pen(draw)
    pen.write((left, 58), "this part", 14, _FAINT)
    pen.write((left + _THUMBNAIL[0] + 40, 58), "looks like this training patch", 14, _FAINT)
    for rank, evidence in ranked:
        line = _evidence_line(bundle, image, geometry, level, evidence, rank)
        section.paste(line, (left, title_height + line_height * rank))
    return section


def _write_title(pen: _Pen, prediction: Prediction, level: Level) -> None:
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
        shown = sum(evidence.contribution for evidence in level.evidence)
        sum_of_all = f"score {level.logit:.2f} = {shown:+.2f} shown, {level.logit - shown:+.2f} from others"
        pen.write((_MARGIN, 48), sum_of_all, 16, _FAINT)


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
        photograph = _with_heat_map(photograph, evidence.map, geometry, scale)
    _outline(photograph, evidence.box, scale, colour, 2)
    patch = _thumbnail(decode(bundle.picture(evidence.prototype)).picture, _THUMBNAIL)
    for picture, start in ((photograph, 0), (patch, _THUMBNAIL[0] + 40)):
        line.paste(picture, (start, (_THUMBNAIL[1] - picture.height) // 2))
    draw = ImageDraw.Draw(line)
    middle = _THUMBNAIL[1] // 2
    _arrow(draw, (_THUMBNAIL[0] + 8, middle), 24, colour)
    pen = _Pen(draw)
    left = 2 * _THUMBNAIL[0] + 60
    width = line.width - left
    _disc(draw, (left + 13, 15), 13, str(rank + 1), colour)
    owner = "" if evidence.member is None else f" of member {evidence.member}"
    pen.write((left + 36, 4), f"prototype {evidence.prototype}{owner}", 18, width=width - 36)
    ink = _COLOURS[5] if evidence.contribution >= 0 else _COLOURS[4]
    sum_start = pen.write((left, 36), f"{evidence.contribution:+.2f}", 24, ink)
    terms = f"= similarity {evidence.similarity:.2f} x weight {evidence.weight:.2f}"
    pen.write((sum_start + 10, 43), terms, 16, width=width - (sum_start + 10 - left))
    largest = max(abs(item.contribution) for item in level.evidence)
    share = abs(evidence.contribution) / largest if largest > 0 else 0.0
    draw.rectangle((left, 72, left + width - 1, 77), fill=_RULE)
    draw.rectangle((left, 72, left + max(round(share * (width - 1)), 1), 77), fill=ink)
    if evidence.source is not None:
        end = pen.write((left, 88), "from ", 14, _FAINT)
        pen.write((end, 88), evidence.source.image, 14, _FAINT, width - (end - left))
    return line


# ---- drawing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pen:
    """Writes single lines of text."""

    draw: ImageDraw.ImageDraw

    def write(
        self,
        position: tuple[float, float],
        text: str,
        size: int,
        colour: tuple[int, int, int] = _INK,
        width: float | None = None,
    ) -> float:
        """Write a line of text, shortened to `width` pixels; returns its right end in pixels."""
        font = ImageFont.load_default(size=size)
        drawable = _drawable(text)
        if width is not None and font.getlength(drawable) > width:
            # The text is shortened from the left, because the end of a path identifies it best.
            while drawable and font.getlength(f"…{drawable}") > width:
                drawable = drawable[1:]
            drawable = f"…{drawable}"
        self.draw.text(position, drawable, fill=colour, font=font)
        return position[0] + font.getlength(drawable)


def _drawable(text: str) -> str:
    """Reduce a text to the characters of Pillow's built-in font: drops accents, replaces other characters by `?`."""
    plain = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" or letter in "›…" else "?" for letter in plain)


def _scaled(size: tuple[float, float], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _thumbnail(picture: Image.Image, limit: tuple[int, int]) -> Image.Image:
    scale = min(limit[0] / picture.width, limit[1] / picture.height)
    return picture.resize(_scaled(picture.size, scale), Image.Resampling.LANCZOS)


def _with_heat_map(
    picture: Image.Image, similarity: list[list[float]], geometry: Geometry, scale: float
) -> Image.Image:
    """Lay a map of similarities [rows][columns] over the picture, which is partly greyed.

    `scale` is the size of the picture divided by that of the sender's. The picture stays grey outside the region that
    the model sees, as with `crop`.
    """
    values = np.asarray(similarity, dtype=np.float32)
    value_range = float(values.max() - values.min())
    values = (values - values.min()) / value_range if value_range > 0 else np.zeros_like(values)
    size = _scaled((geometry.scale_x * geometry.model_width, geometry.scale_y * geometry.model_height), scale)
    resized = Image.new("F", picture.size, 0.0)
    corner = (round(geometry.offset_x * scale), round(geometry.offset_y * scale))
    resized.paste(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC), corner)
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


def _outline(picture: Image.Image, box: Box, scale: float, colour: tuple[int, int, int], thickness: int) -> None:
    """Draw a frame with dark edges around the scaled box, just outside it.

    At the picture's border the frame moves inwards, so that all its sides are visible.
    """
    border = thickness + 2
    left, right = _inside(box[0] * scale, box[2] * scale, border, picture.width)
    top, bottom = _inside(box[1] * scale, box[3] * scale, border, picture.height)
    draw = ImageDraw.Draw(picture)
    for margin in range(border, 0, -1):
        ink = _INK if margin in (1, border) else colour
        draw.rectangle((left - margin, top - margin, right - 1 + margin, bottom - 1 + margin), outline=ink)


def _inside(start: float, end: float, border: int, limit: int) -> tuple[int, int]:
    first = min(max(round(start), border), limit - border - 1)
    return first, max(min(round(end), limit - border), first + 1)


def _badge(picture: Image.Image, box: Box, scale: float, text: str, colour: tuple[int, int, int]) -> None:
    radius = 12
    x = min(max(round(box[0] * scale), radius + 1), picture.width - radius - 2)
    y = min(max(round(box[1] * scale), radius + 1), picture.height - radius - 2)
    _disc(ImageDraw.Draw(picture), (x, y), radius, text, colour)


def _disc(
    draw: ImageDraw.ImageDraw, centre: tuple[int, int], radius: int, text: str, colour: tuple[int, int, int]
) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=_INK)
    ink = _INK if sum(colour) > 300 else _PAPER
    draw.text(centre, text, fill=ink, font=ImageFont.load_default(size=radius + 4), anchor="mm")


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[int, int], length: int, colour: tuple[int, int, int]) -> None:
    x, y = start
    draw.line((x, y, x + length - 8, y), fill=colour, width=3)
    draw.polygon([(x + length - 10, y - 7), (x + length, y), (x + length - 10, y + 7)], fill=colour)
