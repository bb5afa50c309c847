"""The commands `data render`, `train`, `evaluate`, `extend`, `ablate`. Each imports heavy modules when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from protoserve.cli.options import DataOption, DeviceOption, JsonOption, SkipBrokenOption
from protoserve.cli.output import say
from protoserve.errors import InputError
from protoserve.files import writing

# The recipes are named here, because reading them takes time that --help does not have; a test compares the lists.
ConfigArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of a recipe; --list-recipes says what each is for: frozen, finetuned, "
        "from-scratch, frozen-dinov2, fashion-mnist, grocery, grocery-finetuned, hpnet15, hpnet15-finetuned, mnist, "
        "protopnet, rendered.",
        show_default=False,
    ),
]


def _list_recipes(requested: bool) -> None:
    if not requested:
        return
    from rich.table import Table

    from protoserve.cli.output import console
    from training.recipes import recipes

    table = Table("recipe", "for", show_lines=True)
    for recipe in recipes():
        table.add_row(recipe.name, recipe.purpose)
    console().print(table)
    raise typer.Exit


def render(
    directory: Annotated[Path, typer.Argument(help="The folder to write; must be new or empty.")],
    per_leaf: Annotated[int, typer.Option(min=1, help="Training figures per leaf; val and test get a quarter.")] = 60,
    scenes: Annotated[int, typer.Option(min=1, help="Backgrounds that every training figure is drawn before.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. The same seed draws the same pictures.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Width and height in pixels.")] = 96,
    mark: Annotated[
        str | None,
        typer.Option(
            metavar="LEAF",
            help="Plant a shortcut: all pictures of this class in train and val, but not in test, carry a coloured "
            "disc, such as Creature/Bird/Toucan. docs/mend.md finds and mends it.",
            show_default=False,
        ),
    ] = None,
    interventions: Annotated[
        bool,
        typer.Option(
            "--interventions",
            help="Also draw the test pictures without each of their parts, and before another background, into the "
            "folder interventions; 'protoserve audit' measures with them what answers depend on.",
        ),
    ] = False,
) -> None:
    """Draw the default data set: creatures and vehicles whose classes differ in their parts, with masks of the parts.

    Example: protoserve data render data/rendered --per-leaf 60 --seed 0
    """
    from protoserve.cores import usable_cores
    from training.progress import console, tracked
    from training.rendered import count_figures, count_pictures, render_dataset, render_interventions

    screen = console()
    count = count_pictures(per_leaf, scenes)
    with writing(directory), tracked(screen, "drawing", count) as advance:
        render_dataset(
            directory,
            per_leaf=per_leaf,
            scenes=scenes,
            seed=seed,
            size=size,
            mark=mark,
            processes=usable_cores(),
            advance=lambda: advance(1),
        )
    if interventions:
        with writing(directory), tracked(screen, "drawing interventions", count_figures(per_leaf)) as advance:
            render_interventions(directory, lambda: advance(1))
    screen.print(f"{directory}: {count} pictures. Next:")
    screen.print(
        f"  protoserve train rendered --data {directory} --run runs/rendered",
        soft_wrap=True,
    )


def train(
    config: ConfigArgument,
    data: DataOption,
    run: Annotated[Path, typer.Option(help="The folder to write; must be new, or unfinished with --resume.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Backbone weights: a file, a finished run's folder, a torchvision name such as DEFAULT, or 'none'."
        ),
    ] = None,
    head: Annotated[
        Literal["prototypes", "linear"], typer.Option(help="linear: train a plain softmax classifier, as a baseline.")
    ] = "prototypes",
    prototypes: Annotated[
        str | None,
        typer.Option(
            metavar="auto|N",
            help="N prototypes per child; auto: start with many and keep the fewest that classify as well.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the configuration's seed.")] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LEAF",
            help="A class to leave out of training, for example Fruit/Apple/Granny-Smith. May be repeated.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace a value of the configuration, for example joint.epochs=20. May be repeated. "
            "docs/configuration.md lists all keys.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an unfinished run.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write RUN/tensorboard; view it with tensorboard --logdir RUN.")
    ] = False,
    device: DeviceOption = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(help="A folder through which runs share the features of frozen backbones."),
    ] = None,
    cache_limit: Annotated[
        float,
        typer.Option(metavar="GB", min=0, help="Size limit of --cache; above it, evicts the least recently used."),
    ] = 50,
    skip_broken: SkipBrokenOption = False,
    as_json: JsonOption = False,
    list_recipes: Annotated[
        bool,
        typer.Option("--list-recipes", callback=_list_recipes, is_eager=True, help="List the recipes and exit."),
    ] = False,
) -> None:
    """Train a network and write a run folder: checkpoint, metrics per level, curves, prototype pictures.

    To split each batch over several GPUs: torchrun --nproc-per-node 4 -m training -- CONFIG --data DATA --run RUN

    Example: protoserve train frozen --data photos --run runs/photos
    """
    from protoserve.cli.terminal import scores_line
    from training import running
    from training.config import read_config, read_settings
    from training.features.shared_cache import GIGABYTE, SharedCache
    from training.outcome.beside_plain import beside_plain
    from training.progress import console
    from training.recipes import config_file

    overrides = read_settings(settings or [])
    if seed is not None:
        overrides["seed"] = seed
    if weights is not None:
        overrides["model.weights"] = None if weights == "none" else weights
    if prototypes is not None:
        overrides |= _prototype_settings(prototypes)
    if leave_out:
        overrides["data.leave_out"] = leave_out
    screen = console()
    metrics = running.train(
        read_config(config_file(config), overrides),
        data,
        run,
        linear=head == "linear",
        resume=resume,
        device=device,
        console=screen,
        tensorboard=tensorboard,
        cache=None if cache is None else SharedCache(cache, int(cache_limit * GIGABYTE)),
        skip_broken=skip_broken,
    )
    # Under torchrun, only the first process gets the metrics.
    if metrics is None:
        return
    if as_json:
        say(json.dumps(metrics.model_dump()))
        return
    for split, scores in metrics.of().items():
        say(f"{split:<11}{scores_line(scores)}")
    for line in beside_plain(metrics):
        screen.print(line, markup=False, soft_wrap=True, highlight=False)
    screen.print(f"{run}: finished in {metrics.seconds:.0f} s. Next:", highlight=False)
    steps = [f"evaluate {run} --data {data} --split {'test' if 'test' in metrics.of() else 'val'}"]
    if head == "prototypes":
        steps += [f"report {run}", f"export {run} --to onnx,torchscript --bundle bundles/{run.name}"]
    for step in steps:
        screen.print(f"  protoserve {step}", soft_wrap=True, markup=False)


def _prototype_settings(prototypes: str) -> dict[str, Any]:
    """The configuration's settings for `--prototypes auto` or `--prototypes 8`."""
    if prototypes == "auto":
        return {"prototypes.auto": True}
    if prototypes.isdecimal() and int(prototypes):
        return {"prototypes.auto": False, "model.prototypes_per_child": int(prototypes)}
    raise InputError(f"--prototypes {prototypes}: give 'auto' or how many per child, such as 8")


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    novel: Annotated[
        Path | None,
        typer.Option(
            help="A folder with images of classes that the run does not know, each in the folder of its deepest known "
            "ancestor in the class tree. For a run trained with --leave-out: the data set itself."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The bundle that was exported from RUN: also print what its audit found of the evidence."),
    ] = None,
    skip_broken: SkipBrokenOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a run's network on a split at every level of the taxonomy. With --novel, also measure novelty detection.

    With --bundle, the truth card of the bundle follows: its main lines, or all of it with --json.

    Example: protoserve evaluate runs/grocery --data grocery-store --split test --novel other-fruit --json
    """
    from protoserve.cli.audit_report import evidence_lines
    from protoserve.cli.output import console as output_console
    from protoserve.cli.terminal import scores_report
    from training.outcome import evaluating
    from training.progress import console

    audited = None if bundle is None else evaluating.audited_bundle(run, bundle)
    evaluation = evaluating.evaluate(
        run, data, split, novel=novel, skip_broken=skip_broken, device=device, console=console()
    )
    truth = None if audited is None else audited.manifest.truth
    if as_json:
        card = {} if truth is None else {"truth": truth.model_dump(mode="json")}
        say(json.dumps(evaluation.model_dump() | card))
        return
    output_console(width=200).print(*scores_report(evaluation), sep="\n")
    if audited is not None:
        for line in evidence_lines(truth, str(bundle)):
            say(line)
    elif evaluating.has_prototypes(run):
        steps = f"protoserve export {run} --bundle BUNDLE, protoserve audit BUNDLE --data {data} --write"
        hint = f"How true its evidence is: {steps}, then this command with --bundle BUNDLE."
        console().print(hint, soft_wrap=True, markup=False, highlight=False)


def extend(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run with prototypes. It stays as it is.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new run's folder; must be new.")],
    added: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NODE=FOLDER",
            help="A new class and the folder of its pictures. New inner nodes come with their classes.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data set that the run learned from; only --rename does without.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="A class to remove, with all below it. May be repeated.")
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="A class to rename. May be repeated.")
    ] = None,
    merge: Annotated[
        list[str] | None, typer.Option(metavar="NEW=OLD,OLD", help="Siblings to make one class. May be repeated.")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Whether to fit the last layers beside and above again.")
    ] = True,
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            min=0,
            help="Points of accuracy on the selection images that the old classes may lose at a level.",
        ),
    ] = 0.5,
    cache: Annotated[
        Path | None, typer.Option(help="The folder of --cache that the run was trained with: saves its features.")
    ] = None,
    skip_broken: SkipBrokenOption = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Add classes to a finished run from a few pictures, or remove, rename and merge classes, without training.

    Writes a new run. New prototypes are cut from the pictures; the backbone and all other prototypes stay. Says what
    the change cost the old classes, and refuses it above --tolerance.

    Example: protoserve extend runs/photos Fruit/Kiwi/Gold=kiwis --data photos --output runs/kiwis
    """
    from training.extending.changes import read_changes
    from training.extending.extending import extend as extend_run
    from training.extending.telling import extension_lines
    from training.features.shared_cache import GIGABYTE, SharedCache
    from training.progress import console

    changes = read_changes(added or [], remove or [], rename or [], merge or [])
    screen = console()
    extension = extend_run(
        run,
        changes,
        data,
        output,
        tolerance=tolerance,
        refit=refit,
        cache=None if cache is None else SharedCache(cache, int(50 * GIGABYTE)),
        skip_broken=skip_broken,
        device=device,
        console=screen,
    )
    if as_json:
        say(json.dumps(extension.document()))
        return
    for line in extension_lines(extension):
        say(line)
    screen.print("Next:")
    screen.print(f"  protoserve export {output} --bundle bundles/{output.name}", soft_wrap=True)


def ablate(
    config: ConfigArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The folder for the runs, the table and the figure.")],
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Replaces the epochs of an autoencoder or of the joint stage.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights: a file, a torchvision name such as DEFAULT, or 'none'."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the configuration's seed.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train with both loss terms that shape prototypes and without each, then compare scores and prototypes.

    The terms are R1 and R2 for an autoencoder, Clust and Sep for other networks. Each variant is a run of its own.
    Repeating the command resumes unfinished runs.

    Example: protoserve ablate mnist --data mnist --out runs/ablation --epochs 20
    """
    from training import ablation
    from training.config import read_config
    from training.progress import console
    from training.recipes import config_file

    overrides: dict[str, Any] = {}
    if seed is not None:
        overrides["seed"] = seed
    if weights is not None:
        overrides["model.weights"] = None if weights == "none" else weights
    read = read_config(config_file(config), overrides)
    changed = read if epochs is None else ablation.with_epochs(read, epochs)
    screen = console()
    rows = ablation.ablate(changed, data, out, device=device, console=screen)
    say(json.dumps(rows) if as_json else ablation.markdown(rows).rstrip())
    screen.print(f"{out}: ablation.md, ablation.csv, ablation.json and prototypes.png", soft_wrap=True)
