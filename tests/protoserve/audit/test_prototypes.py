"""Flags of prototypes, from hand-made pictures and from a real bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.prototypes import Measured, measure, prototype_flags
from protoserve.audit.subject import Subject
from protoserve.bundle.folder import read_bundle
from protoserve.bundle.manifest import PrototypeRecord
from protoserve.data.dataset import Dataset, read_split
from protoserve.inference.engine import Engine
from tests.protoserve.audit.toys import RULE, STATISTICS, TAXONOMY, picture, subject


def record(number: int, image: str, left: int) -> PrototypeRecord:
    return PrototypeRecord(
        id=number,
        parent="",
        child="Red",
        source_image=image,
        source_box=(left, 0, left + 8, 8),
        source_cell=(0, 0),
        weight=1.0,
        usual=0.5,
        picture=f"prototypes/{number:04d}.webp",
    )


def dataset_of(folder: Path, squares: list[int]) -> Dataset:
    """Pictures of Red and Green in turn, with their squares at the given cells."""
    names = [f"train/{image}.png" for image in range(len(squares))]
    (folder / "train").mkdir()
    for image, (name, cell) in enumerate(zip(names, squares, strict=True)):
        Image.fromarray(picture(image % 2, cell)).save(folder / name)
    return Dataset(folder, "train", TAXONOMY, tuple(names), np.arange(len(squares)) % 2)


def test_effects_and_border_shares_are_counted_by_hand(tmp_path: Path) -> None:
    # The inner cells are 5, 6, 9 and 10. Red's squares are at 5, 6, 9 and 0; Green's all at the border.
    done: list[int] = []
    found = measure(subject(), RULE, dataset_of(tmp_path, [5, 0, 6, 3, 9, 12, 0, 15]), done.append)
    assert sum(done) == found.images == 8 and found.split == "train"
    assert found.statistics.own.tolist() == pytest.approx([155 / 255, 1, 155 / 255, 0])
    assert found.statistics.siblings.tolist() == pytest.approx([0, 1, 0, 0])
    # Where all cells are alike, the best is the first, at the border.
    assert found.border.tolist() == [0.25, 1.0, 1.0, 1.0]


def test_flags_name_prototypes_by_id() -> None:
    records = [record(0, "a.jpg", 0), record(1, "a.jpg", 8), record(2, "a.jpg", 0), record(3, "b.jpg", 0)]
    measured = Measured(STATISTICS, np.array([0.79, 0.81, 0.5, 1.0]), chance=0.3, split="train", images=7)
    flags = prototype_flags(records, measured)
    assert (flags.prototypes, flags.telling, flags.images) == (4, 2, 7)
    assert (flags.always_on, flags.border, flags.duplicates) == ([1, 3], [1, 3], [2])
    # In a map of 4 × 4 cells 12 are at the border, so that nothing stands out.
    assert prototype_flags(records, replace(measured, chance=0.75)).border == []


def test_effects_are_those_of_the_graph_on_all_pictures(tiny_bundle: Path, learned: tuple[Path, Path]) -> None:
    _, data = learned
    bundle = read_bundle(tiny_bundle)
    real = Subject.of(bundle, Engine(bundle, device="cpu"))
    dataset = read_split(data, "train", bundle.taxonomy)
    found = measure(real, bundle.input, dataset)
    arrays = np.stack([np.asarray(dataset.picture(index).picture) for index in range(len(dataset))])
    similarity = real.run(arrays).similarity.astype(np.float64)
    # Prototype 0 belongs to Scuba or Animal at the root: the mean over the pictures below that node.
    node = bundle.taxonomy.index[bundle.prototypes[0].child]
    below = bundle.taxonomy.leaves_below[node][dataset.leaves]
    own = [similarity[below & (dataset.leaves == leaf), 0] for leaf in np.unique(dataset.leaves[below])]
    assert found.statistics.own[0] == pytest.approx(np.concatenate(own).mean(), rel=1e-5)
    assert found.chance == pytest.approx(36 / 96)  # 8 × 12 cells
