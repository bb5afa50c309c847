"""The last layers are fitted to what the run keeps, so a refit without a change is close to where it started."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from protoserve.run.similarities import read_similarities
from training.extending.carrying import carried_head
from training.extending.changes import changed_tree, read_changes
from training.extending.finished import read_finished
from training.extending.fitting import Fitted, fitted_head
from training.extending.measuring import Stopwatch
from training.extending.pictures import learned_pictures, new_pictures


def fitted(
    run: Path, data: Path, directory: Path, groups: tuple[int, ...]
) -> tuple[Fitted, torch.Tensor, torch.Tensor]:
    finished, quiet = read_finished(run), Console(quiet=True)
    tree = changed_tree(finished.taxonomy, read_changes([], [], ["B=Bee"], []))
    kept = read_similarities(run, len(finished.sources))
    assert kept is not None
    old = learned_pictures(run, data, finished.taxonomy, kept, finished.config, quiet)
    new = new_pictures({}, tree, data, finished.config, has_val=False, skip_broken=False, console=quiet)
    head = finished.network.head
    carried = carried_head(head, tree, {})
    result = fitted_head(
        finished.network,
        carried,
        tree,
        old,
        new,
        kept,
        finished.config,
        groups,
        0.5,
        directory=directory,
        device=torch.device("cpu"),
        console=quiet,
        cache=None,
        watch=Stopwatch(),
    )
    return result, head.weight.detach(), carried.head.weight.detach()


def test_only_the_named_groups_are_fitted(small_run: Path, small_data: Path, tmp_path: Path) -> None:
    _, before, after = fitted(small_run, small_data, tmp_path / "a", ())
    assert torch.equal(before, after)
    _, before, after = fitted(small_run, small_data, tmp_path / "b", (0,))
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_similarities_are_those_that_the_run_keeps(small_run: Path, small_data: Path, tmp_path: Path) -> None:
    result, _, _ = fitted(small_run, small_data, tmp_path, ())
    kept = read_similarities(small_run, result.plain.shape[1])
    assert kept is not None
    assert (result.learned == kept.fit.similarity).all()
    assert result.selection_similarity == pytest.approx(kept.selection.similarity, abs=1e-4)
    assert np.abs(result.plain - kept.fit.similarity).max() > 0.01  # other views
