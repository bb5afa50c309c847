"""A run keeps the similarities of its fit and selection images: those that its network computes of the pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console

from protoserve.images.decoding import decode
from protoserve.images.fitting import fit
from protoserve.networks.model_file import load_network
from protoserve.networks.network import PrototypeNetwork
from protoserve.run.similarities import read_similarities
from training.outcome import keeping

if TYPE_CHECKING:
    from training.loop.trainer import Trainer


def test_what_is_kept_is_what_the_network_computes(small_run: Path, small_data: Path) -> None:
    network, description, _ = load_network(small_run / "model.pt")
    assert isinstance(network, PrototypeNetwork)
    kept = read_similarities(small_run, len(network.head.prototypes))
    assert kept is not None
    assert kept.mirrored
    assert len(kept.fit.images) + len(kept.selection.images) == 30
    taxonomy = network.head.taxonomy
    for part, mirrored in ((kept.fit, True), (kept.selection, False)):
        for image, leaf, row in zip(part.images, part.leaves.tolist(), part.similarity, strict=True):
            assert image.startswith(f"train/{taxonomy.names[taxonomy.leaves[leaf]]}/")
            with Image.open(small_data / image) as picture:
                upright = picture.convert("RGB")
            array = fit(decode(ImageOps.mirror(upright) if mirrored else upright), description.input).array
            with torch.inference_mode():
                expected = network(torch.from_numpy(array[None])).similarity[0].numpy()
            assert np.allclose(row, expected, rtol=1e-3, atol=2e-3)


def test_a_run_that_would_keep_too_much_says_so_and_keeps_nothing(
    trainer_at: Callable[..., Trainer],
    small_config: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = trainer_at(small_config(), tmp_path / "run")
    trainer.console = Console(record=True, width=200)
    monkeypatch.setattr(keeping, "MOST_BYTES", 10)
    keeping.keep_similarities(trainer)
    assert "keeps no similarities" in trainer.console.export_text()
    assert not (tmp_path / "run" / "similarities.npz").exists()
