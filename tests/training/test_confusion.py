"""The picture of confusion is drawn for any number of parents and children."""

import io

import numpy as np
import pytest
from PIL import Image

from protoserve.taxonomy import Taxonomy
from training.outcome.confusion import COLUMNS, SHOWN, plot_confusion


def picture(taxonomy: Taxonomy, parents: list[str]) -> Image.Image:
    sizes = {parent: len(taxonomy.children_of(taxonomy.index[parent] if parent else -1)) for parent in parents}
    confusion = {parent: np.eye(size, dtype=np.int64) * 3 for parent, size in sizes.items()}
    return Image.open(io.BytesIO(plot_confusion(confusion, taxonomy, "run")))


def test_one_parent_with_many_children() -> None:
    taxonomy = Taxonomy.from_paths([f"class-{number}" for number in range(70)])
    assert picture(taxonomy, [""]).format == "PNG"


@pytest.mark.parametrize("count", [2, 5, SHOWN + 3])
def test_parents_are_laid_out_in_rows_and_only_so_many_shown(count) -> None:
    taxonomy = Taxonomy.from_paths([f"p{parent}/c{child}" for parent in range(count) for child in range(2)])
    found = picture(taxonomy, [f"p{parent}" for parent in range(count)])
    rows = -(-min(count, SHOWN) // COLUMNS)
    assert found.height == pytest.approx(rows * 4.4 * 90, abs=2)
    assert found.width == pytest.approx(min(count, COLUMNS) * 4.6 * 90, abs=2)
