"""Write the folder of a changed run: what follows from its new head by the functions of the stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from protoserve.files import write_text
from protoserve.networks.model_file import PrototypeSource
from protoserve.run.folder import Run
from protoserve.run.provenance import ImageNumbers, Provenance
from protoserve.run.records import StageRecords
from protoserve.run.similarities import MOST_BYTES, KeptSimilarities, kept_bytes, write_similarities
from protoserve.similarity_statistics import SimilaritySums
from training.data.pictures import PLAIN
from training.extending.carrying import CarriedHead
from training.extending.changes import ChangedTree
from training.extending.finished import FinishedRun
from training.extending.fitting import Fitted
from training.extending.measuring import Stopwatch
from training.extending.pictures import changed_splits, keep_pictures
from training.loop.answers import novelty_table
from training.loop.trainer import Trainer
from training.outcome.finishing import (
    answer_splits,
    prototype_sources,
    write_config,
    write_outcome,
    write_prototype_pictures,
)
from training.outcome.keeping import kept_images
from training.outcome.patches import TILE, EarlierPatches, write_patches
from training.outcome.report import read_history
from training.stages.analysis import analyse
from training.stages.calibration import calibrate
from training.stages.centring import set_usual
from training.stages.novelty_thresholds import novelty


def write_changed_run(
    finished: FinishedRun,
    carried: CarriedHead,
    tree: ChangedTree,
    fitted: Fitted,
    data: Path,
    provenance: Provenance,
    directory: Path,
    device: torch.device,
    console: Console,
    watch: Stopwatch,
) -> None:
    """Write the changed run into an empty folder.

    Pictures of old prototypes are copied. So are the strips of their nearest patches, unless a new picture is nearer.
    """
    splits = changed_splits(data, fitted.fit, fitted.selection, finished.taxonomy, tree, provenance=finished.provenance)
    # The backbone comes from the run, so nothing is to be read or downloaded.
    config = finished.config.model_copy(
        update={"model": finished.config.model.model_copy(update={"weights": None})},
    )
    trainer = Trainer(config, splits, directory, linear=False, device=device, console=console)
    network = finished.network
    network.head = carried.head
    description = finished.description.model_copy(
        update={
            "taxonomy": tree.taxonomy.to_dict(),
            "prototype_child": carried.head.grouping.prototype_child.tolist(),
        }
    )
    trainer.replace_network(description, network)
    trainer.config = finished.config
    trainer.feed.give("fit", PLAIN, fitted.fit_features)
    trainer.feed.give("selection", PLAIN, fitted.selection_features)
    _follow(trainer, finished, fitted)
    run = Run(directory)
    sources = _write_prototypes(trainer, finished, carried, fitted, run)
    _keep_similarities(fitted, directory)
    keep_pictures(fitted.fit, directory)
    keep_pictures(fitted.selection, directory)
    write_config(finished.config, directory)
    with watch.on_features():
        answers = answer_splits(network, splits, config.image, device, console)
    trainer.state.seconds += watch.beside_features()
    write_outcome(trainer, run, sources, answers)
    numbers = ImageNumbers(fit=len(fitted.fit), selection=len(fitted.selection))
    whole = provenance.model_copy(update={"images": numbers})
    write_text(directory / "provenance.json", json.dumps(whole.model_dump(), indent=1) + "\n")


def _follow(trainer: Trainer, finished: FinishedRun, fitted: Fitted) -> None:
    """Measure again what depends on the classes: usual similarities, temperatures, thresholds, nearest patches."""
    state, metrics, config = trainer.state, finished.run.metrics(), finished.config
    carried: dict[str, Any] = {name: getattr(metrics, name) for name in StageRecords.model_fields}
    # It knew the old classes only.
    carried["plain"] = None
    state.records = StageRecords(**{name: value for name, value in carried.items() if value is not None})
    state.history, state.seconds = read_history(finished.run.directory / "history.csv"), metrics.seconds or 0.0
    sums = SimilaritySums(fitted.fit.taxonomy, novelty_table(trainer.network))
    sums.add(fitted.plain, fitted.fit.leaves)
    set_usual(trainer, sums.statistics())
    if config.calibration.enabled:
        calibrate(trainer)
    if config.novelty.enabled:
        novelty(trainer)
    analyse(trainer)


def _write_prototypes(
    trainer: Trainer, finished: FinishedRun, carried: CarriedHead, fitted: Fitted, run: Run
) -> list[PrototypeSource]:
    """Write the pictures of all prototypes and the analysis, and return the prototypes' sources."""
    network, fit, state = trainer.prototype_network, fitted.fit, trainer.state
    cut = prototype_sources(network, trainer.description, fitted.cells, fit, trainer.device, trainer.console)
    fresh = dict(zip(carried.new.tolist(), cut, strict=True))
    sources = [fresh[new] if old < 0 else finished.sources[old] for new, old in enumerate(carried.origin.tolist())]
    write_prototype_pictures(run, fit, fresh)
    analysis = finished.run.analysis()
    earlier = {}
    for new, old in enumerate(carried.origin.tolist()):
        if old >= 0:
            run.picture(new).parent.mkdir(exist_ok=True)
            shutil.copyfile(finished.run.picture(old), run.picture(new))
            if analysis is not None and analysis.tile == TILE:
                earlier[new] = EarlierPatches(analysis.prototypes[old], finished.run.patches(old))
    assert state.patches is not None and state.separation is not None
    write_patches(
        run,
        network.head,
        fit,
        state.patches,
        sources,
        state.separation,
        rule=trainer.config.image,
        cells=network.cells(sources[0].rows, sources[0].columns),
        purity_of=trainer.config.prune.nearest,
        console=trainer.console,
        earlier=earlier,
    )
    return sources


def _keep_similarities(fitted: Fitted, directory: Path) -> None:
    """Keep the similarities, as training does, if they are not too many."""
    if kept_bytes(len(fitted.fit), len(fitted.selection), fitted.plain.shape[1]) <= MOST_BYTES:
        parts = (
            kept_images(fitted.fit, torch.from_numpy(fitted.learned)),
            kept_images(fitted.selection, torch.from_numpy(fitted.selection_similarity)),
        )
        write_similarities(KeptSimilarities(*parts, mirrored=fitted.mirrored), directory)
