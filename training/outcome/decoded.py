"""Pictures that an autoencoder decodes, of its prototypes and reconstructions, and measures of their quality."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor

from protoserve.data.dataset import Dataset
from protoserve.files import write_bytes
from protoserve.images.geometry import Cells, InputRule
from protoserve.networks.autoencoder import PrototypeAutoencoder
from protoserve.networks.head import PrototypeHead
from protoserve.networks.model_file import PrototypeSource
from protoserve.run.folder import Run
from protoserve.run.records import AutoencoderRecord
from training.outcome.charts import write_figure
from training.prototypes.codes import codes_of, nearest_pictures, pieces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL, GAP, CAPTION = 224, 8, 24
RECONSTRUCTIONS = 12


def write_decoded(
    run: Run,
    network: PrototypeAutoencoder,
    fit: Tensor,
    selection: Tensor,
    dataset: Dataset,
    rule: InputRule,
    console: Console,
) -> tuple[list[PrototypeSource], AutoencoderRecord]:
    """Write `prototypes/NNNN.webp`, `prototypes.png` and `reconstructions.png`. Return the nearest training image of
    every prototype, and the measures of quality.

    `fit` and `selection` are pictures, uint8 [images, H, W, 3]; `fit` holds the images of `dataset`.
    """
    codes = codes_of(network, fit)
    images, distances = nearest_pictures(network, codes)
    sources = nearest_sources(dataset, rule, images, distances)
    drawn = _drawn(network, network.head.prototypes)
    for prototype, (decoded, nearest) in enumerate(zip(drawn, fit[torch.from_numpy(images)], strict=True)):
        run.picture(prototype).parent.mkdir(exist_ok=True)
        picture = decoded_beside_nearest(decoded, nearest.cpu().numpy())
        write_bytes(run.picture(prototype), _encoded(picture, "WEBP", quality=90, method=4))
    write_figure(run.directory / "prototypes.png", lambda: prototypes_figure(network.head, drawn), console, dpi=120)
    write_bytes(run.directory / "reconstructions.png", reconstructions_picture(network, selection))
    near = closeness(network, codes, codes_of(network, selection))
    record = AutoencoderRecord(
        reconstruction_error=reconstruction_error(network, selection),
        prototype_to_code=near.prototype_to_code,
        code_to_prototype=near.code_to_prototype,
        drawn_prototype_to_picture=drawn_to_picture(network, fit),
    )
    return sources, record


def nearest_sources(
    dataset: Dataset, rule: InputRule, images: NDArray[np.int64], distances: NDArray[np.float64]
) -> list[PrototypeSource]:
    """The nearest training image of every prototype, from the numbers of `images` in `dataset` and their squared
    `distances` [P]. Each has a single cell, because the code of an autoencoder covers the whole picture."""
    return [
        PrototypeSource(
            image=dataset.images[image],
            cell=0,
            rows=1,
            columns=1,
            box=dataset.geometry(image, rule).cell_box(0, Cells(1, 1)),
            distance=distance,
        )
        for image, distance in zip(images.tolist(), distances.tolist(), strict=True)
    ]


# ---- pictures ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _drawn(network: PrototypeAutoencoder, codes: Tensor) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3]: the pictures decoded from codes [N, D]."""
    planes = network.decode(codes).movedim(1, 3)
    return (planes * 255.0).round().byte().expand(-1, -1, -1, 3).cpu().numpy()


def decoded_beside_nearest(decoded: NDArray[np.uint8], nearest: NDArray[np.uint8]) -> Image.Image:
    """A prototype's picture: on the left the decoded prototype, on the right its nearest training image, both uint8 [H,
    W, 3]. Both are enlarged without interpolation."""
    height = PANEL * decoded.shape[0] // decoded.shape[1]
    sheet = Image.new("RGB", (2 * PANEL + GAP, height + CAPTION), "white")
    draw = ImageDraw.Draw(sheet)
    panels = ((decoded, "the prototype, decoded"), (nearest, "nearest training image"))
    for column, (array, caption) in enumerate(panels):
        left = column * (PANEL + GAP)
        sheet.paste(Image.fromarray(array).resize((PANEL, height), Image.Resampling.NEAREST), (left, 0))
        draw.text((left + PANEL // 2, height + CAPTION // 2), caption, "black", ImageFont.load_default(15), anchor="mm")
    return sheet


def prototypes_figure(head: PrototypeHead, drawn: NDArray[np.uint8]) -> Figure:
    """All decoded prototypes, uint8 [P, H, W, 3], each titled with its leaf and its weight for that leaf."""
    from matplotlib.figure import Figure

    weight = head.effective_weight()[0].detach().cpu().numpy()
    columns = min(10, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.7 * rows), layout="constrained")
    for prototype, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if prototype < len(drawn):
            member = int(weight[:, prototype].argmax())
            label = head.taxonomy.nodes[int(head.grouping.member_node[0, member])][-1]
            axes.imshow(drawn[prototype], interpolation="nearest")
            axes.set_title(f"{label}\n{weight[member, prototype]:+.2f}", fontsize=9)
    return figure


@torch.inference_mode()
def reconstructions_picture(network: PrototypeAutoencoder, pictures: Tensor) -> bytes:
    """A PNG of up to `RECONSTRUCTIONS` of the pictures uint8 [N, H, W, 3], above their reconstructions."""
    count = min(RECONSTRUCTIONS, len(pictures))
    chosen = pictures[torch.linspace(0, len(pictures) - 1, count).long()]
    shown = network.planes(chosen).movedim(1, 3)
    originals = (shown * 255.0).round().byte().expand(-1, -1, -1, 3).cpu().numpy()
    drawn = _drawn(network, codes_of(network, chosen))
    sheet = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in (list(originals), list(drawn))]))
    scale = max(1, 1200 // sheet.width)
    enlarged = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    return _encoded(enlarged, "PNG")


@torch.inference_mode()
def reconstruction_error(network: PrototypeAutoencoder, pictures: Tensor) -> float:
    """The squared difference between pictures uint8 [N, H, W, 3] and their reconstructions, summed over the values of a
    picture in [0, 1] and averaged over pictures."""
    total = 0.0
    for piece in pieces(pictures):
        planes = network.planes(piece)
        drawn = network.decode(network.encoder(planes).flatten(1))
        total += float((drawn - planes).square().sum(dtype=torch.float64))
    return total / len(pictures)


class Closeness(NamedTuple):
    """Relative distances between prototypes and codes (see `closeness`)."""

    prototype_to_code: float
    code_to_prototype: float


def closeness(network: PrototypeAutoencoder, fit: Tensor, selection: Tensor) -> Closeness:
    """The mean squared distances between prototypes and codes `fit` and `selection` [images, D].

    `prototype_to_code` (R1) is the mean over prototypes of the distance to the nearest fit code, `code_to_prototype`
    (R2) the mean over selection codes of the distance to the nearest prototype. Both are divided by the mean squared
    distance between two fit codes, so that latent spaces of different scale compare.
    """
    between = 2.0 * fit.double().var(0, correction=0).sum().item()
    _, to_code = nearest_pictures(network, fit)
    prototypes = network.head.prototypes.detach().double()
    difference = selection.double()[:, None] - prototypes
    to_prototype = difference.square().sum(2).min(dim=1).values
    return Closeness(float(to_code.mean()) / between, to_prototype.mean().item() / between)


@torch.inference_mode()
def drawn_to_picture(network: PrototypeAutoencoder, pictures: Tensor) -> float:
    """The squared difference between a decoded prototype and the nearest of the pictures uint8 [N, H, W, 3], summed
    over the values of a picture in [0, 1] and averaged over prototypes. It is small if prototypes look like real
    pictures."""
    drawn = network.decode(network.head.prototypes).flatten(1).double()
    nearest = torch.full((len(drawn),), torch.inf, dtype=torch.float64, device=drawn.device)
    for piece in pieces(pictures):
        real = network.planes(piece).flatten(1).double()
        squared = drawn.square().sum(1) - 2.0 * real @ drawn.t() + real.square().sum(1, keepdim=True)
        nearest = torch.minimum(nearest, squared.min(dim=0).values)
    return float(nearest.mean())


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
