"""The similarities that a run keeps come back as they were written; a torn or foreign file is named with the cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protoserve.errors import InputError
from protoserve.run.similarities import (
    SIMILARITIES,
    KeptImages,
    KeptSimilarities,
    kept_bytes,
    read_similarities,
    write_similarities,
)


@pytest.fixture
def kept() -> KeptSimilarities:
    generator = np.random.default_rng(0)

    def part(images: int) -> KeptImages:
        names = tuple(f"train/A/ü {number}.jpg" for number in range(images))
        leaves = generator.integers(0, 3, images)
        return KeptImages(names, leaves, generator.normal(0, 3, (images, 4)).astype(np.float32))

    return KeptSimilarities(part(7), part(3), mirrored=True)


def test_what_is_written_is_read_back(kept: KeptSimilarities, tmp_path: Path) -> None:
    write_similarities(kept, tmp_path)
    read = read_similarities(tmp_path, prototypes=4)
    assert read is not None
    assert read.mirrored
    for written, found in ((kept.fit, read.fit), (kept.selection, read.selection)):
        assert found.images == written.images
        assert (found.leaves == written.leaves).all()
    assert (read.selection.similarity == kept.selection.similarity).all()
    # Half precision: 11 bits.
    assert np.allclose(read.fit.similarity, kept.fit.similarity, rtol=2**-11, atol=1e-4)


def test_a_run_without_the_file_keeps_none(tmp_path: Path) -> None:
    assert read_similarities(tmp_path, prototypes=4) is None


def test_a_torn_file_is_named(kept: KeptSimilarities, tmp_path: Path) -> None:
    write_similarities(kept, tmp_path)
    file = tmp_path / SIMILARITIES
    for length in (0, 10, file.stat().st_size // 2, file.stat().st_size - 1):
        whole = file.read_bytes()
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"similarities\.npz: can't read it .*; remove it"):
            read_similarities(tmp_path, prototypes=4)
        file.write_bytes(whole)


def test_similarities_of_other_prototypes_are_refused(kept: KeptSimilarities, tmp_path: Path) -> None:
    write_similarities(kept, tmp_path)
    with pytest.raises(InputError, match=r"holds similarities \(7, 4\) of 7 images, but the run has 5 prototypes"):
        read_similarities(tmp_path, prototypes=5)


def test_a_newer_format_is_refused(kept: KeptSimilarities, tmp_path: Path) -> None:
    write_similarities(kept, tmp_path)
    file = tmp_path / SIMILARITIES
    with np.load(file) as arrays:
        content = dict(arrays)
    np.savez(file, **{**content, "format": np.array(2)})
    with pytest.raises(InputError, match="format 2 is newer than 1"):
        read_similarities(tmp_path, prototypes=4)


def test_the_size_counts_half_precision_for_fit_images() -> None:
    assert kept_bytes(fit=100, selection=10, prototypes=3) == 3 * (200 + 40)
