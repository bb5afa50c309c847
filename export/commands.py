"""The commands `export`, `validate`, `benchmark`, `centre` and `curate`; they import heavy libraries when they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from protoserve.cli.options import DeviceOption, JsonOption, SkipBrokenOption
from protoserve.cli.output import console, say
from protoserve.cli.progress import counting, steps


def _list_targets(requested: bool) -> None:
    if requested:
        from export.targets.listing import listing

        console(width=140).print(listing())
        raise typer.Exit


def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    bundle: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Targets, separated by commas: onnx (required) and any of --list-targets.",
            show_default="onnx, and onnx-routed if requests are quicker with it",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default that of the folder.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The run's data set; onnx-fp16 and onnx-int8 are checked on its validation images."),
    ] = None,
    fixed_batch: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Fix the batch size of all targets but onnx."),
    ] = None,
    resize_in_graph: Annotated[
        bool,
        typer.Option("--resize-in-graph", help="Make all targets but onnx accept one picture of any size."),
    ] = False,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Another input size: 160, or 160x224 (height x width). Check it with validate.",
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=0, max=24, help="Pictures of the run to put into the bundle, for people to try on its page."),
    ] = 0,
    converters: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where litert's converter is installed when it is first needed.",
            show_default="~/.cache/protoserve/converters",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    list_targets: Annotated[
        bool,
        typer.Option("--list-targets", callback=_list_targets, is_eager=True, help="List the targets and exit."),
    ] = False,
) -> None:
    """Export a run's network as one fused graph in a bundle, if every target passes the parity gate.

    Example: protoserve export runs/grocery --to onnx,onnx-int8 --data grocery-store --bundle bundles/grocery
    """
    from export.bundling import export_bundle
    from export.records import read_parity
    from export.sources import EdgeOptions, parse_size
    from export.targets.listing import next_steps, routing_note, summary
    from protoserve.errors import InputError
    from protoserve.run.folder import open_run

    if name is not None and not name.strip():
        raise InputError("--name is empty; give a name, or omit the option to use the folder's name")
    screen = console(error=True)
    asked = "onnx" if to is None else to
    targets = tuple(dict.fromkeys(target.strip() for target in asked.split(",") if target.strip()))
    if not targets:
        raise InputError("--to names no target; give some, such as onnx,torchscript, or omit the option")
    with steps("reading the run") as report:
        written = export_bundle(
            open_run(run),
            bundle,
            targets,
            name=name,
            data=data,
            options=EdgeOptions(fixed_batch, resize_in_graph),
            size=None if image_size is None else parse_size(image_size),
            tried=samples,
            routed_if_quicker=to is None,
            converters=converters,
            overwrite=overwrite,
            report=report,
        )
    parity = read_parity(bundle)
    if all(record.usual is None for record in written.manifest.prototypes):
        screen.print(
            f"note: {run} has no usual similarities, so each contribution counts from a similarity of 0; for evidence "
            f"told as more than usual, run 'protoserve centre {run} --data DIR' and export again",
            soft_wrap=True,
            markup=False,
        )
    for target in written.manifest.files:
        say(summary(written, target, parity[target]))
    if written.manifest.routing is not None:
        screen.print(routing_note(written.manifest.routing), soft_wrap=True, markup=False)
    say(f"{bundle}   {written.manifest.name} {written.manifest.version[:19]}")
    screen.print("Next:")
    for line in next_steps(written, data):
        screen.print(f"  {line}", soft_wrap=True, markup=False)


def centre(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A finished run, or the folder of a bundle.")],
    data: Annotated[
        Path,
        typer.Option(help="The data set that it learned from: a folder that contains train, or a CSV or Parquet file."),
    ],
    device: DeviceOption = "auto",
) -> None:
    """Measure how similar pictures usually are to each prototype, so that evidence is told as more than usual.

    Training does this itself; runs and bundles of older versions lack it. Each contribution then becomes centred
    weight × (similarity − usual similarity), and a prototype that fires on every picture no longer leads the list. No
    probability changes.

    A run gets the usual similarities in model.pt; export it again for a graph that uses them. A bundle gets them in its
    manifest, under a new version: predict and serve then tell centred evidence, but its files for the edge do not.

    Example: protoserve centre runs/grocery --data grocery-store
    """
    from export import centring

    screen = console(error=True)
    with counting("measuring similarities") as advance:
        centred = centring.centre(path, data, device=device, advance=advance)
    found = centred.separation
    say(
        f"{path}: usual similarities of {found.prototypes} prototypes on {centred.images} images; {found.telling} tell "
        f"their class from its siblings, {found.always_on} are always on"
    )
    for line in centring.remarks(path, centred):
        screen.print(line, soft_wrap=True, markup=False)


def validate(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle or an ensemble.")],
    data: Annotated[Path, typer.Option(help="A folder that contains train, val and test, or a CSV or Parquet file.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="BUNDLE", help="Another bundle, to form an ensemble; repeatable."),
    ] = None,
    skip_broken: SkipBrokenOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score the exported graph in onnxruntime, with the same metrics as `evaluate`. Also print what an audit found.

    Example: protoserve validate bundles/grocery --data grocery-store --split test --json
    """
    from export import validating
    from protoserve.bundle.folder import Bundle
    from protoserve.cli.audit_report import evidence_lines
    from protoserve.cli.terminal import scores_report
    from protoserve.data.folders import told
    from protoserve.inference.classifier import open_model

    screen = console(error=True)
    with counting(f"scoring {split}") as advance:
        evaluation = validating.validate(
            [bundle, *others] if others else bundle,
            data,
            split,
            skip_broken=skip_broken,
            device=device,
            advance=advance,
        )
    if evaluation.passed_over:
        screen.print(f"note: {split}: {told(evaluation.passed_over)}", soft_wrap=True)
    if as_json:
        say(json.dumps(evaluation.model_dump()))
        return
    console(width=200).print(*scores_report(evaluation), sep="\n")
    opened = open_model(bundle)
    if isinstance(opened, Bundle) and not others:
        for line in evidence_lines(opened.manifest.truth, str(bundle)):
            say(line)


def benchmark(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.")],
    data: Annotated[Path, typer.Option(help="A folder that contains train, val and test, or a CSV or Parquet file.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    targets: Annotated[
        str, typer.Option(metavar="TARGETS", help="Only these targets, separated by commas.", show_default="all")
    ] = "",
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Measure accuracy on so many, spread over the split.", show_default="all")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=3, max=1000, help="How many batches of each size each file is timed on.")
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """Compare the files of a bundle: size, time, accuracy at every level, and evidence.

    Each file runs in its own runtime, on the CPU, with that runtime's own settings. Files take turns, so that other
    work on the machine slows all alike. Their times are multiples of the time of onnx: by the clock and, for batches of
    8, of all threads on the processor.

    The last two columns compare the first evidence with that of onnx, at the level where it agrees least: how often it
    is the same prototype, and how often, where the node is the same, it contributes at least 90 % as much in onnx.
    Targets whose runtime is not installed are left out by name.

    Example: protoserve benchmark bundles/grocery --data grocery-store --pictures 200
    """
    from export import benchmarking
    from protoserve.bundle.folder import read_bundle

    with steps("reading the bundle") as report:
        found = benchmarking.benchmark(
            read_bundle(bundle),
            data,
            split,
            targets=[target.strip() for target in targets.split(",") if target.strip()],
            limit=pictures,
            rounds=rounds,
            report=report,
        )
    screen = console(error=True)
    for target, reason in found.skipped.items():
        screen.print(f"note: {target} is left out: {reason}", soft_wrap=True)
    if as_json:
        say(found.model_dump_json(indent=1))
        return
    console(width=200).print(benchmarking.table(found))
    say("; ".join(f"{name} {value}" for name, value in found.machine.items()))


def curate(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle; it stays as it is.")],
    output: Annotated[Path, typer.Option(help="The folder to write, a new version of the bundle.")],
    disable: Annotated[str, typer.Option(metavar="IDS", help="Prototypes to switch off, as in 12,17.")] = "",
    require: Annotated[
        str,
        typer.Option(metavar="IDS", help="Prototypes to insist on: their class is known only where they are found."),
    ] = "",
    restore: Annotated[
        str, typer.Option(metavar="IDS", help="Prototypes that are neither off nor required any more.")
    ] = "",
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Switch off what 'protoserve feedback … --curation' lists."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; inspect and the service show it.")] = "",
    by: Annotated[str | None, typer.Option(help="Who; by default the name of this user's account.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="The run that the bundle was exported from; targets other than ONNX's need it."),
    ] = None,
    refit: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="As --run; also refit the last layers, without what is off."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A data set: measure the accuracy on it before and after.")] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to measure on.", show_default="val, or test if there is no val")
    ] = None,
    drop: Annotated[str, typer.Option(metavar="TARGETS", help="Targets to leave out of the new bundle.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle at --output.")] = False,
) -> None:
    """Switch prototypes of a bundle off, or insist on them, in a new version that says who did so, when and why.

    A prototype that is off counts as usual, whatever the picture shows: it adds nothing to any class, and all sums
    hold. Every file of the bundle passes the parity gate again.

    Example: protoserve curate bundles/grocery --output bundles/grocery-2 --disable 12,17 --reason "the shelf"
    """
    from export.curating import Source
    from export.curating import curate as write_curated
    from export.curation_request import requested_link
    from protoserve.bundle.curation import told
    from protoserve.bundle.folder import read_bundle
    from protoserve.errors import InputError
    from protoserve.run.folder import open_run

    if run is not None and refit is not None:
        raise InputError("--run and --refit both name the run; give --refit alone")
    opened, place = read_bundle(bundle), run or refit
    link = requested_link(
        opened, disable, require, restore, from_file, reason=reason, by=by, refitted=refit is not None
    )
    source = Source(None if place is None else open_run(place), data, split)
    screen = console(error=True)
    with steps("reading the bundle") as report:
        curated = write_curated(
            opened,
            link,
            output,
            source,
            drop=[target.strip() for target in drop.split(",") if target.strip()],
            overwrite=overwrite,
            report=report,
        )
    off = curated.bundle.curation.off
    say(f"{output}   {curated.bundle.name} {curated.bundle.version[:19]}, from {opened.version[:19]}")
    for prototype in sorted(off):
        child = curated.bundle.prototypes[prototype].child
        say(f"prototype {prototype} of {child} is off, {told(off[prototype])}")
    for prototype, why in sorted(curated.bundle.curation.required.items()):
        say(f"prototype {prototype} of {curated.bundle.prototypes[prototype].child} is required, {told(why)}")
    accuracy = curated.link.accuracy
    if accuracy is not None:
        say(f"accuracy on {accuracy.images} images of {accuracy.split}:")
        for level, before in accuracy.before.items():
            say(f"  {level.replace('_', ' ')}  {before:.1%} → {accuracy.after[level]:.1%}")
    for line in curated.notes:
        screen.print(line, soft_wrap=True, markup=False)
