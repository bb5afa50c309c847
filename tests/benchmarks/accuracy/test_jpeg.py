"""The JPEG test: what is compressed, and the sums of its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.jpeg import COMPRESSED, compressed, half_compressed, similarity_drops, table
from tests.protoserve.audit.toys import ToyEngine, local_maps, sample, subject
from training.rendered import leaf_paths


def test_half_of_the_classes_are_compressed_and_some_below_every_parent() -> None:
    assert len(COMPRESSED) == len(leaf_paths()) / 2
    for parent in {leaf[:2] for leaf in leaf_paths()}:
        children = [leaf for leaf in leaf_paths() if leaf[:2] == parent]
        assert 0 < sum(leaf in COMPRESSED for leaf in children) < len(children)


def test_only_what_is_learned_of_these_classes_changes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    yes = next(iter(COMPRESSED))
    no = next(leaf for leaf in leaf_paths() if leaf not in COMPRESSED)
    files = [Path(split, *leaf, "1.png") for split in ("train", "test") for leaf in (yes, no)]
    for file in files:
        (tmp_path / "plain" / file).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "plain" / file)
    half_compressed(tmp_path / "plain", tmp_path / "half")
    half_compressed(tmp_path / "plain", tmp_path / "half")
    changed = [file for file in files if not (np.asarray(Image.open(tmp_path / "half" / file)) == picture).all()]
    assert changed == [files[0]]
    assert (np.asarray(Image.open(tmp_path / "half" / files[0])) == compressed(picture)).all()


def test_a_similarity_to_compressed_pictures_is_seen() -> None:
    pictures = sample(4).arrays
    # The channels' difference halves: half of the similarity is gone.
    faded = (pictures // 2 + 50).astype(np.uint8)
    drops = similarity_drops(subject(), pictures, faded)
    assert drops == pytest.approx(0.5, abs=0.01)
    blind = subject(ToyEngine(maps=lambda images: np.minimum(local_maps(images), 0.25) * 2))
    # Green's prior is lower, so its pictures get another answer.
    assert np.nanmax(np.abs(similarity_drops(blind, pictures, faded))) == 0


def test_the_shortcut_is_the_difference_of_both_ways() -> None:
    def network(same: float, other: float) -> dict[str, Any]:
        return {
            "accuracy": {"plain": [1, 1, 0.9], "as_trained": [1, 1, same], "other_half": [1, 1, other]},
            "drop": {"compressed": -0.25, "others": 0.125},
        }

    found = {
        "machine": {"processor": "x", "cores": 2, "python": "3", "versions": {}},
        "per_leaf": 60,
        "figures": 15,
        "settings": [],
        "seeds": [{"seed": 0, "networks": {"plain": network(0.9, 0.9), "half": network(0.95, 0.5)}}],
    }
    text = table(found)
    assert "| as drawn | 90.0 | 90.0 | 90.0 | +0.0 |" in text
    assert "| half of the classes at quality 20 | 90.0 | 95.0 | 50.0 | +45.0 |" in text
    assert "-0.250 | 0.125 |" in text and "240 test pictures" in text
