"""Flags of prototypes, from hand-made pictures and from a real bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.audit.masks import Masks
from protoserve.audit.prototypes import Measured, Origin, measure, prototype_flags
from protoserve.audit.purity import Nearest
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
    # A square adds 4 · (155/255 − 0.25). Prototypes 1 and 3 are as usual in every picture, so they add nothing.
    one = 4 * (155 / 255 - 0.25)
    assert found.border.share.tolist() == pytest.approx([0.25, np.nan, 1.0, np.nan], nan_ok=True)
    assert found.border.adds.tolist() == pytest.approx([one / 4, 0, one, 0])
    assert (found.border.chance, found.off_object) == (12 / 16, None)


def test_contributions_from_off_the_object_are_counted_by_hand(tmp_path: Path) -> None:
    """Red's square lies off the object in one of its three pictures that have a mask, Green's in none."""
    dataset = dataset_of(tmp_path, [5, 5, 6, 6, 9, 9, 0, 0])
    folder = tmp_path / "masks" / "train"
    folder.mkdir(parents=True)
    for image, cell in enumerate([5, 5, 6, 6, 0, 9]):  # The last two pictures have none.
        row, column = divmod(cell, 4)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[row * 8 : (row + 1) * 8, column * 8 : (column + 1) * 8] = 1
        Image.fromarray(mask).save(folder / f"{image}.png")
    found = measure(subject(), RULE, dataset, masks=Masks(folder.parent, {})).off_object
    assert found is not None and found.chance == 15 / 16
    assert found.share.tolist() == pytest.approx([1 / 3, np.nan, 0.0, np.nan], nan_ok=True)
    assert found.adds.tolist() == pytest.approx([4 * (155 / 255 - 0.25) / 3, 0, 0, 0])


def test_flags_name_prototypes_by_id() -> None:
    records = [record(0, "a.jpg", 0), record(1, "a.jpg", 8), record(2, "a.jpg", 0), record(3, "b.jpg", 0)]
    border = Origin(np.array([0.79, 0.81, 0.5, 1.0]), np.array([3.0, 1.0, 3.0, 2.0]), chance=0.3)
    measured = Measured(STATISTICS, border, None, Nearest(4), {}, split="train", images=7)
    flags = prototype_flags(records, measured)
    assert (flags.prototypes, flags.telling, flags.images) == (4, 2, 7)
    assert (flags.always_on, flags.border, flags.duplicates) == ([1, 3], [1, 3], [2])
    # What adds most comes first.
    assert [suspect.prototype for suspect in flags.suspects] == [3, 1]
    assert flags.suspects[0].model_dump() == {
        "prototype": 3, "node": "Red", "place": "at the border", "share": 1.0, "chance": 0.3, "adds": 2.0,
    }  # fmt: skip
    # In a map of 4 × 4 cells 12 are at the border, so that nothing stands out.
    assert prototype_flags(records, replace(measured, border=replace(border, chance=0.75))).border == []


@pytest.mark.parametrize(("chance", "flagged"), [(0.5, [1, 3]), (0.7, [3]), (0.98, [])])
def test_evidence_off_the_object_counts_more_than_that_at_the_border(chance: float, flagged: list[int]) -> None:
    """At most a fifth may come from the object, and at most half of what comes from there by chance."""
    records = [record(number, "a.jpg", number) for number in range(4)]
    border = Origin(np.ones(4), np.ones(4), chance=0.3)
    off = Origin(np.array([0.7, 0.82, np.nan, 0.95]), np.ones(4), chance)
    flags = prototype_flags(records, Measured(STATISTICS, border, off, Nearest(4), {}, split="train", images=7))
    assert flags.border == [0, 1, 2, 3] and flags.off_object == flagged
    assert [(suspect.prototype, suspect.place) for suspect in flags.suspects] == [
        (number, "off the object") for number in flagged
    ]


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
    assert found.border.chance == pytest.approx(36 / 96)  # 8 × 12 cells
