"""Measure the evidence of a bundle beside what people use today. One command (`make bench-audit`):

    python -m benchmarks.accuracy.rivals rendered=BUNDLE=LINEAR_RUN=DATA grocery=…

LINEAR_RUN is a run of `protoserve train … --head linear` with the bundle's backbone. Grad-CAM, LayerCAM, integrated
gradients, LIME and KernelSHAP explain it; our evidence is the bundle's. All explain every level of the path that their
own model predicts, on the same test pictures, and are measured with the functions of `protoserve audit`: necessity,
sufficiency and parts. LIME and KernelSHAP explain the bundle's graph, too, so that the models don't differ.

An attribution becomes boxes as follows. The candidates are the boxes of the bundle's cells. The first is the one over
which the sum of the attribution is the largest; then what lies inside it counts as 0, and so on. At every step the
union of the boxes is cut to exactly the area that our evidence has there, on the same picture and level.

Needs the extra `bench`. Writes benchmarks/results/rivals.{json,md}.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy.attribution_boxes import regions_of_area, strongest_boxes
from benchmarks.accuracy.attributions import (
    Attribute,
    PlainClassifier,
    gradient_methods,
    plain_scores,
    remembered,
    sampling_methods,
)
from benchmarks.accuracy.rivals_table import table
from benchmarks.head.cost import in_turns
from benchmarks.measuring import machine, write_results
from protoserve.audit.intervals import compare
from protoserve.audit.masks import find_masks
from protoserve.audit.necessity import DRAWS, SupportsLogProbability, area_under_curve, region_effects
from protoserve.audit.parts import part_hits
from protoserve.audit.regions import STEPS, ladder, shifted
from protoserve.audit.sample import Sample, read_sample
from protoserve.audit.subject import Piece, Subject, levels_of, pieces_of
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.truth_card import FILLS, Fill, PartHits
from protoserve.data.dataset import read_split
from protoserve.inference.engine import Engine
from protoserve.networks.model_file import load_network
from protoserve.networks.network import LinearNetwork

MODES: Final = ("necessity", "sufficiency")
OURS: Final = "ours"
SEED: Final = 0
# At most as many boxes of an attribution are needed to cover the area of ten of ours.
MOST_BOXES: Final = 60
# Rounds of the cheap explanations and of LIME and KernelSHAP.
ROUNDS, SLOW_ROUNDS = 30, 3


@dataclass
class Method:
    """One kind of explanation: the model that it explains, the boxes that it names, and what they do.

    `effects` maps (mode, level, fill) to one row per piece of `images[level]`: at every step the effect of the boxes
    and the mean effect of shifted ones, and the effect of the whole picture, float64 [2 · steps + 1].
    """

    model: SupportsLogProbability
    pieces: list[Piece] = field(default_factory=list)
    images: dict[int, list[int]] = field(default_factory=dict)
    effects: dict[tuple[str, int, Fill], list[NDArray[np.float64]]] = field(default_factory=dict)

    def areas(self, mode: str, level: int, fill: Fill, images: Sequence[int] | None = None) -> NDArray[np.float64]:
        """The areas under the curves, and the effect of the whole picture: evidence, random, whole, each [images]."""
        rows = np.stack(self.effects[mode, level, fill])
        if images is not None:
            rows = rows[[self.images[level].index(image) for image in images]]
        steps = len(STEPS)
        return np.stack(
            [area_under_curve(rows[:, :steps]), area_under_curve(rows[:, steps : 2 * steps]), rows[:, 2 * steps]]
        )


def with_regions(
    method: Method, sample: Sample, pieces: Iterable[Piece], regions_of: Callable[[Piece], NDArray[np.bool_]]
) -> Method:
    """Measure a method's pieces; `regions_of` gives the regions of a piece at every step, bool [steps, height, width].

    Random regions are these regions, all shifted by one offset, mean of `DRAWS`, as in the audit.
    """
    generator = np.random.default_rng([SEED, 2])
    by_image: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_image.setdefault(piece.image, []).append(piece)
    for image, own in sorted(by_image.items()):
        regions = []
        for piece in own:
            steps = regions_of(piece)
            draws = [shifted(steps, generator) for _ in range(DRAWS)]
            whole = np.ones((1, *steps.shape[1:]), dtype=np.bool_)
            regions.append(np.concatenate([~whole, steps, whole, *draws]))
            method.pieces.append(piece)
            method.images.setdefault(piece.level, []).append(image)
        for fill in FILLS:
            both = region_effects(method.model, sample, image, [piece.node for piece in own], regions, fill)
            for mode, effects in zip(MODES, both, strict=True):
                for piece, effect in zip(own, effects, strict=True):
                    here, whole_effect = effect[: len(STEPS)], effect[len(STEPS) : len(STEPS) + 1]
                    random = effect[len(STEPS) + 1 :].reshape(DRAWS, -1).mean(axis=0)
                    row = np.concatenate([here, random, whole_effect])
                    method.effects.setdefault((mode, piece.level, fill), []).append(row)
    return method


def attributed(
    subject: Subject,
    model: SupportsLogProbability,
    sample: Sample,
    ours: Sequence[Piece],
    paths: NDArray[np.int64],
    attribute: Attribute,
) -> Method:
    """Measure an attribution on the pictures and levels of our pieces, at the area of ours.

    `paths` int64 [images, levels] are the nodes that `model` predicts; −1 for none.
    """
    boxes = [subject.box(cell) for cell in range(subject.cells)]
    areas, pieces = {}, []
    for piece in ours:
        node = int(paths[piece.image, piece.level - 1])
        if node < 0:
            continue
        attribution = attribute(sample.arrays[piece.image], node)
        order = np.array(list(islice(strongest_boxes(attribution, boxes), MOST_BOXES)), dtype=np.int64)
        places = np.arange(len(order))
        pieces.append(Piece(piece.image, piece.level, node, places, order, np.zeros(len(order), dtype=np.float32)))
        covered = ladder([subject.box(cell) for cell in piece.cells.tolist()], subject.size)
        areas[piece.image, piece.level] = covered.sum(axis=(1, 2)).tolist()

    def regions_of(piece: Piece) -> NDArray[np.bool_]:
        order = [boxes[cell] for cell in piece.cells.tolist()]
        return regions_of_area(order, areas[piece.image, piece.level], subject.size)

    return with_regions(Method(model), sample, pieces, regions_of)


def predicted(subject: Subject, model: SupportsLogProbability, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The paths of the most probable leaves, int64 [images, levels]; −1 below a leaf."""
    tree = subject.taxonomy
    best = model.log_probability(images)[:, tree.leaf_nodes].argmax(axis=1)
    return np.asarray(tree.path_at_level[tree.leaf_nodes[best]])


def accuracy(subject: Subject, paths: NDArray[np.int64], sample: Sample) -> list[float]:
    """The share of pictures whose node is right, by level."""
    tree = subject.taxonomy
    true = tree.path_at_level[tree.leaf_nodes[sample.leaves]]
    return [
        float((paths[there, level] == true[there, level]).mean())
        for level in range(true.shape[1])
        if (there := true[:, level] >= 0).any()
    ]


def summary(ours: Method, method: Method, hits_of: Callable[[list[Piece]], list[PartHits]]) -> dict[str, Any]:
    """The figures of a method as JSON, with ours on its pictures; `hits_of` measures the parts."""
    rows = []
    for (mode, level, fill), effects in method.effects.items():
        images = method.images[level]
        evidence, random, whole = method.areas(mode, level, fill)
        own_evidence, own_random, own_whole = ours.areas(mode, level, fill, images)
        first, first_random = np.stack(effects)[:, [0, len(STEPS)]].T
        own_first = np.stack(ours.effects[mode, level, fill])[[ours.images[level].index(i) for i in images], 0]
        row: dict[str, Any] = {"mode": mode, "level": level, "fill": fill, "images": len(images)}
        compared = {
            "first": compare(first, first_random, SEED),
            "over_random": compare(evidence, random, SEED),
        }
        if method is not ours:
            compared |= {
                "ours_first": compare(own_first, first, SEED),
                "ours": compare(own_evidence, evidence, SEED),
                "ours_over_random": compare(own_evidence - own_random, evidence - random, SEED),
            }
        row |= {name: found.model_dump() for name, found in compared.items()}
        row["whole"] = float(whole.mean())
        row["share_of_whole"] = float(evidence.mean() / whole.mean())
        row["our_share_of_whole"] = float(own_evidence.mean() / own_whole.mean())
        rows.append(row)
    own = [piece for piece in ours.pieces if piece.image in method.images.get(piece.level, [])]
    return {
        "effects": rows,
        "parts": [hit.model_dump() for hit in hits_of(method.pieces)],
        "our_parts": [hit.model_dump() for hit in hits_of(own)],
    }


def costs(
    engine: Engine, plain: PlainClassifier, picture: NDArray[np.uint8], node: int, methods: Mapping[str, Attribute]
) -> dict[str, float]:
    """The median milliseconds of an explained prediction, all in turns in this process, from the fitted picture on.

    Ours answers with all levels and their evidence; the others explain one node that is known already.
    """

    def explain(attribute: Attribute) -> Callable[[], object]:
        return lambda: attribute(picture, node)

    tasks: dict[str, Callable[[], object]] = {
        OURS: lambda: engine.run(picture[None]),
        "plain prediction": lambda: plain.log_probability(picture[None]),
    }
    slow = {name: explain(attribute) for name, attribute in methods.items() if name in ("LIME", "KernelSHAP")}
    fast = {name: explain(attribute) for name, attribute in methods.items() if name not in slow}
    found = {name: 1000 * statistics.median(times) for name, times in in_turns({**tasks, **fast}, ROUNDS).items()}
    # Beside the slow ones, ours is timed again, so that their ratio is of the same minutes.
    again = in_turns({OURS: tasks[OURS], **slow}, SLOW_ROUNDS)
    found |= {name: 1000 * statistics.median(times) for name, times in again.items() if name != OURS}
    found["ours, beside LIME and KernelSHAP"] = 1000 * statistics.median(again[OURS])
    return found


def measure(bundle_folder: Path, run: Path, data: Path, images: int, sampled: int, threads: int) -> dict[str, Any]:
    """All figures of one data set; `sampled` pictures for LIME and KernelSHAP."""
    bundle = read_bundle(bundle_folder)
    engine = Engine(bundle, device="cpu", threads=threads)
    subject = Subject.of(bundle, engine)
    network, description, _ = load_network(run / "model.pt")
    if not isinstance(network, LinearNetwork):
        raise SystemExit(f"{run}: its head is not linear; train it with --head linear")
    if network.taxonomy.names != bundle.taxonomy.names or description.input != bundle.input:
        raise SystemExit(f"{run}: its classes or its input are not those of {bundle_folder}; train both on the same")
    plain = PlainClassifier(network)
    sample = read_sample(read_split(data, "test", bundle.taxonomy), bundle.input, images, SEED)
    masks = find_masks(data, None)
    pieces = pieces_of(subject.run(sample.arrays))
    few = [piece for piece in pieces if piece.image in sampled_images(len(sample), sampled)]
    paths = {"plain": predicted(subject, plain, sample.arrays), "ours": predicted(subject, subject, sample.arrays)}

    def graph_scores(pictures: torch.Tensor) -> torch.Tensor:
        rounded = pictures.round().clamp(0, 255).to(torch.uint8).numpy()
        return torch.from_numpy(subject.log_probability(rounded)).float()

    def our_regions(piece: Piece) -> NDArray[np.bool_]:
        return ladder([subject.box(cell) for cell in piece.cells.tolist()], subject.size)

    def hits_of(found: list[Piece]) -> list[PartHits]:
        return part_hits(subject, sample, masks, found, SEED) if masks else []

    methods = {OURS: with_regions(Method(subject), sample, pieces, our_regions)}
    on_plain = {**gradient_methods(plain), **sampling_methods(remembered(plain_scores(plain)))}
    for name, attribute in on_plain.items():
        chosen = few if name in ("LIME", "KernelSHAP") else pieces
        methods[name] = attributed(subject, plain, sample, chosen, paths["plain"], attribute)
        print(f"{name}: measured", file=sys.stderr)
    for name, attribute in sampling_methods(remembered(graph_scores)).items():
        methods[f"{name} of our graph"] = attributed(subject, subject, sample, few, paths["ours"], attribute)
        print(f"{name} of our graph: measured", file=sys.stderr)
    timed = {**on_plain, **sampling_methods(plain_scores(plain))}
    return {
        "backbone": description.backbone,
        "images": len(sample),
        "levels": levels_of(pieces),
        "accuracy": {name: accuracy(subject, found, sample) for name, found in paths.items()},
        "methods": {name: summary(methods[OURS], method, hits_of) for name, method in methods.items()},
        "milliseconds": costs(engine, plain, sample.arrays[0], int(paths["plain"][0].max()), timed),
    }


def sampled_images(images: int, sampled: int) -> frozenset[int]:
    """As many pictures, evenly over the sample, which is in the data set's order."""
    return frozenset(np.linspace(0, images - 1, min(images, sampled)).round().astype(int).tolist())


def main() -> None:
    """Measure every data set and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=BUNDLE=LINEAR_RUN=DATA")
    parser.add_argument("--images", type=int, default=40, help="test pictures, chosen at random")
    parser.add_argument("--sampled", type=int, default=12, help="of these, for LIME and KernelSHAP")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(), "threads": options.threads, "sets": {}}
    for words in options.sets:
        parts = words.split("=")
        if len(parts) != 4:
            parser.error(f"{words!r} is not NAME=BUNDLE=LINEAR_RUN=DATA")
        name, (bundle, run, data) = parts[0], map(Path, parts[1:])
        results["sets"][name] = measure(bundle, run, data, options.images, options.sampled, options.threads)
    text = table(results)
    write_results("rivals", results, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
