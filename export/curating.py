"""Curates a bundle: switches prototypes off or on again, or insists on some, in a new version of it.

Without the run, a bundle's files are changed and converted (`export.switched_files`). With it, the network is loaded,
given the bundle's last layers, changed, and all targets are exported again, as `protoserve export` does. A refit always
needs the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export import routing
from export.accuracy import judging_data, learned_images, network_runtime
from export.bundle_network import network_of_bundle
from export.bundling import ExportedModel, head_prior, write_model
from export.parity import FLOAT32, Runtime
from export.records import read_parity
from export.refitting import Refit, promise_again, recalibrate, refit, refitted_thresholds
from export.switched_files import change_file, check_files, options_of, write_switched
from export.targets.listing import target_parts
from export.targets.onnx_files import run_onnx
from export.targets.table import TARGETS, target_named
from export.validating import fitted_batches
from protoserve.bundle.curation import CurationAccuracy, CurationLink, check_link, curation_of, gone_by_refit
from protoserve.bundle.folder import MANIFEST, SUMS, Bundle, read_bundle, write_bundle, write_manifest
from protoserve.bundle.manifest import Manifest
from protoserve.data.checking import without_broken
from protoserve.data.dataset import Dataset, holds_split, read_split
from protoserve.errors import InputError, nearest
from protoserve.networks.model_file import ExplainedNetwork, load_network
from protoserve.promise.calibration import Calibration, write_calibration
from protoserve.run.folder import Run
from protoserve.run.records import Metrics
from protoserve.run.similarities import KeptImages, KeptSimilarities, read_similarities
from protoserve.scores import scores

# What a run's records say about the network as it was.
_STALE: Final = ("selection", "validation", "test", "calibration", "novelty", "promise")
# Pictures of a batch.
BATCH: Final = 16


@dataclass(frozen=True)
class Curated:
    """The new `bundle`, its last `link`, and `notes`, lines about what did not carry over."""

    bundle: Bundle
    link: CurationLink
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """What a bundle is curated from, beside itself: the `run` that it was exported from, the run's `data` set, and the
    `split` of it that accuracy is measured on; each None where it was not given."""

    run: Run | None = None
    data: Path | None = None
    split: str | None = None


def curate(
    bundle: Bundle,
    link: CurationLink,
    output: Path,
    source: Source | None = None,
    *,
    drop: Collection[str] = (),
    overwrite: bool = False,
    report: Callable[[str], None] = lambda message: None,
) -> Curated:
    """Write `bundle` with one more `link` of curation to `output`, a new bundle.

    The targets in `drop` are left out. The link's version and accuracy are filled in here. Calls `report` with a line
    of text before each step.

    Raises InputError for a link that can't follow, for `output` in the bundle's own place, for targets that need the
    run and for a run that the bundle was not made from; ParityError if a file's outputs differ from what they should
    be. Then it writes no bundle.
    """
    manifest, source = bundle.manifest, source or Source()
    check_link(link, manifest.curation, len(bundle.prototypes))
    _check_restored(link, manifest.curation)
    if output.resolve() == bundle.directory.resolve():
        raise InputError(f"{output}: is the bundle itself, which is never changed in place; give another --output")
    if link.refitted and source.run is None:
        raise InputError("a refit needs the run that the bundle was exported from; give --refit RUN")
    if source.run is None and routing.TARGET in manifest.files and manifest.routing is not None:
        # The export chose it because it is quicker, so nobody insists on it.
        drop = {*drop, routing.TARGET}
    kept = Bundle(bundle.directory, manifest.model_copy(update={"files": _kept_files(manifest, drop)}), bundle.sums)
    if source.run is None:
        check_files(kept)
    dataset = None if source.data is None else _measured_on(kept, source.data, source.split, report)
    link = link.model_copy(update={"before": manifest.version})
    off = sorted(curation_of([*manifest.curation, link]).off)
    with TemporaryDirectory() as folder:
        if source.run is None:
            trial = Path(folder) / "model.onnx"
            shutil.copyfile(bundle.file("onnx"), trial)
            change_file(trial, bundle, off)
            made, after = None, run_onnx(trial)
        else:
            made = _changed_network(kept, link, off, source, report)
            after = network_runtime(made.network, bundle.top_k)
        if dataset is not None:
            report(f"scoring {len(dataset)} pictures of {dataset.split}, before and after")
            link = link.model_copy(update={"accuracy": _accuracy(bundle, dataset, after)})
    changes = {**_changed_fields(kept, link), **({} if made is None else made.fields)}

    def build(version: str) -> Manifest:
        return kept.manifest.model_copy(update={**changes, "version": version})

    with write_bundle(output, overwrite=overwrite) as draft:
        if made is None:
            _copy(kept, draft)
            write_switched(kept, draft, build(""), off, report)
            write_manifest(draft, build)
        else:
            _write_exported(kept, draft, made, build, source, report)
    return Curated(read_bundle(output), link, tuple(_notes(kept, link, made)))


@dataclass(frozen=True)
class _Made:
    """A network that was changed, `samples` for its parity gate, and the `fields` of the manifest that follow from it.

    `refit` is None unless its last layers were refitted; `calibration` are the pictures behind its promise, None if it
    makes none.
    """

    network: ExplainedNetwork
    samples: NDArray[np.uint8]
    fields: dict[str, Any]
    refit: Refit | None
    calibration: Calibration | None


def _changed_network(
    bundle: Bundle, link: CurationLink, off: Collection[int], source: Source, report: Callable[[str], None]
) -> _Made:
    assert source.run is not None
    report(f"reading {source.run.directory}")
    found = network_of_bundle(bundle, source.run)
    head, manifest = found.network.head, bundle.manifest
    head.switch_off([])
    kept = _similarities(found.network, source, report, measure=link.refitted)
    head.switch_off(off)
    fields: dict[str, Any] = {}
    result = None
    if link.refitted and kept is not None:
        restored = torch.zeros(len(head.prototypes), dtype=torch.bool)
        restored[link.restored] = True
        with torch.no_grad():
            # What an earlier refit took out starts from what the run had learned.
            columns = functional.pad(restored, (0, 1))[head.grouping.slot_prototype][:, None, :]
            head.weight.copy_(torch.where(columns, found.run_weight, head.weight))
        report("refitting the last layers")
        result = refit(head, kept, list(curation_of([*manifest.curation, link]).required))
        recalibrate(head, kept.selection)
        weight = head.centred_own_weight().tolist()
        fields = {
            "prototypes": [record.model_copy(update={"weight": weight[record.id]}) for record in manifest.prototypes],
            "prior": head_prior(head),
            "temperature": dict(zip(manifest.temperature, head.temperature.tolist(), strict=True)),
        }
        if manifest.novelty is not None:
            fields["novelty"] = refitted_thresholds(head, kept.selection, manifest.novelty)
    calibration = None
    if manifest.promise is not None and kept is not None:
        novelty = fields.get("novelty", manifest.novelty)
        calibration, fields["promise"] = promise_again(head, kept.selection, novelty, manifest.promise)
    return _Made(found.network, found.samples, fields, result, calibration)


def _similarities(
    network: ExplainedNetwork, source: Source, report: Callable[[str], None], *, measure: bool
) -> KeptSimilarities | None:
    """Return the similarities that the run keeps; where it keeps none, `measure` them on its data set, or None."""
    run, taxonomy = source.run, network.head.taxonomy
    assert run is not None
    kept = read_similarities(run.directory, len(network.head.prototypes))
    if kept is not None or not measure:
        return kept
    if source.data is None:
        raise InputError(
            f"{run.directory}: keeps no similarities, as runs of older versions; give its data set: --data DIR"
        )
    report(f"measuring similarities on {source.data}")
    fit, _ = learned_images(run, source.data, taxonomy)
    selection = judging_data(run, source.data, taxonomy).validation
    rule = load_network(run.model)[1].input

    @torch.inference_mode()
    def measured(dataset: Dataset) -> KeptImages:
        parts = [
            network(torch.from_numpy(batch)).similarity.numpy() for _, batch in fitted_batches(dataset, rule, BATCH)
        ]
        return KeptImages(dataset.images, dataset.leaves, np.concatenate(parts))

    return KeptSimilarities(measured(fit), measured(selection), mirrored=False)


def _write_exported(
    bundle: Bundle,
    draft: Path,
    made: _Made,
    build: Callable[[str], Manifest],
    source: Source,
    report: Callable[[str], None],
) -> None:
    """Export the changed network to the bundle's targets, each with the options that it had."""
    assert source.run is not None
    manifest = bundle.manifest
    lower = [target for target in manifest.files if target_named(target).precision is not FLOAT32]
    judging = None
    if lower:
        if source.data is None:
            raise InputError(
                f"{lower[0]}: its accuracy is checked on the run's own data set; add --data DIR, or --drop {lower[0]}"
            )
        report(f"reading {source.data}")
        judging = judging_data(source.run, source.data, bundle.taxonomy)
    for picture in (*(record.picture for record in manifest.prototypes), *manifest.samples):
        (draft / picture).parent.mkdir(exist_ok=True)
        shutil.copyfile(bundle.directory / picture, draft / picture)
    if made.calibration is not None and manifest.promise is not None:
        write_calibration(made.calibration, draft / manifest.promise.folder)
    reports = read_parity(bundle.directory)
    options = {target: options_of(target, reports[target]) for target in manifest.files}
    model = ExportedModel(made.network, bundle.input, made.samples, bundle.top_k, source.run.model)
    write_model(draft, model, build, options, judging, report)


def _copy(bundle: Bundle, draft: Path) -> None:
    """Copy a bundle's folder without its manifest, its checksums and the targets that are left out."""
    shutil.copytree(bundle.directory, draft, dirs_exist_ok=True)
    for name in (MANIFEST, SUMS):
        (draft / name).unlink()
    if bundle.manifest.promise is not None:
        # It was made for the version before.
        shutil.rmtree(draft / bundle.manifest.promise.folder)
    left_out = set(TARGETS) - set(bundle.manifest.files)
    for part in (part for target in left_out for part in target_parts(draft / TARGETS[target].file)):
        part.unlink(missing_ok=True)


def _changed_fields(bundle: Bundle, link: CurationLink) -> dict[str, Any]:
    """Return the fields of the manifest that every curation changes.

    The audit, the promise and the scores are those of the version before; they go. Records of how it was trained stay.
    """
    manifest = bundle.manifest
    metrics = {name: value for name, value in manifest.metrics if name in manifest.metrics.model_fields_set}
    for name in _STALE:
        metrics.pop(name, None)
    return {"curation": [*manifest.curation, link], "truth": None, "promise": None, "metrics": Metrics(**metrics)}


def _accuracy(bundle: Bundle, dataset: Dataset, after: Runtime) -> CurationAccuracy:
    before = run_onnx(bundle.file("onnx"))
    found: dict[str, list[NDArray[np.float32]]] = {"before": [], "after": []}
    for _, batch in fitted_batches(dataset, bundle.input, BATCH):
        for name, runtime in (("before", before), ("after", after)):
            found[name].append(runtime(batch)["log_probability"])
    accuracy = {
        name: scores(np.concatenate(parts), dataset.leaves, dataset.taxonomy).accuracy for name, parts in found.items()
    }
    return CurationAccuracy(split=dataset.split, images=len(dataset), **accuracy)


def _measured_on(bundle: Bundle, data: Path, split: str | None, report: Callable[[str], None]) -> Dataset:
    """Read the pictures that accuracy is measured on: `split`, by default val, or test where there is no val."""
    report(f"reading {data}")
    chosen = split or ("val" if holds_split(data, "val") else "test")
    dataset = read_split(data, chosen, bundle.taxonomy, left_out=bundle.left_out)
    return without_broken(dataset, skip=False)[0]


def _kept_files(manifest: Manifest, drop: Collection[str]) -> dict[str, str]:
    """Return the targets' files without those to `drop`; raises InputError for a target that can't be dropped."""
    for target in drop:
        if target not in manifest.files:
            raise InputError(
                f"--drop {target}: the bundle has only {', '.join(manifest.files)}{nearest(target, manifest.files)}"
            )
        if target == "onnx":
            raise InputError("--drop onnx: a bundle always holds 'onnx', which the service runs; drop another target")
    return {target: file for target, file in manifest.files.items() if target not in drop}


def _check_restored(link: CurationLink, links: Sequence[CurationLink]) -> None:
    """Raise InputError where a prototype is restored that a refit has taken out of the last layers."""
    if link.refitted:
        return
    for prototype in link.restored:
        if prototype in gone_by_refit(links):
            raise InputError(
                f"--restore {prototype}: a refit has left it without weights; add --refit RUN, which gives it new ones"
            )


def _notes(bundle: Bundle, link: CurationLink, made: _Made | None) -> Iterator[str]:
    """Say what the curation did not carry over, and what may surprise."""
    manifest = bundle.manifest
    off = curation_of([*manifest.curation, link]).off
    children = {record.child for record in manifest.prototypes}
    for child in sorted(children - {record.child for record in manifest.prototypes if record.id not in off}):
        yield f"note: all prototypes of {child} are off; only evidence against the others speaks for it"
    if made is not None and made.refit is not None:
        yield (
            f"refitted with penalty {made.refit.penalty:g}: the selection images' negative log-likelihood changed "
            f"from {made.refit.before:.3f} to {made.refit.after:.3f}"
        )
    if manifest.truth is not None:
        yield "note: the truth card was of the version before; run 'protoserve audit BUNDLE --data DIR --write' again"
    if manifest.promise is not None and (made is None or made.calibration is None):
        yield "note: the promise of precision was that of the version before, so this one makes none; add --run RUN"
    if made is None and manifest.routing is not None and manifest.routing.kept:
        yield "note: the routed graph can't be changed without the network, so it is left out; add --run RUN to keep it"
    if link.accuracy is None:
        yield "note: no pictures were given, so nobody knows what it did to accuracy; add --data DIR to measure it"
