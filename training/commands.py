"""The commands of this room: `data render`, `train`, `evaluate`. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Data = Annotated[Path, typer.Option(help="A folder that holds train, val and test; class folders may be nested.")]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Asking for cuda where there is none fails.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def commands(app: typer.Typer) -> None:
    """Add the commands to the root command."""
    data = typer.Typer(no_args_is_help=True, help="Make and look at data sets.")
    data.command("render")(render)
    app.add_typer(data, name="data")
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def render(
    directory: Annotated[Path, typer.Argument(help="A new folder.")],
    per_leaf: Annotated[int, typer.Option(min=1, help="Training pictures per leaf; val and test get a quarter.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures.")] = 0,
    size: Annotated[int, typer.Option(min=64, max=1024, help="Width and height in pixels.")] = 96,
) -> None:
    """Draw the default data set: creatures and vehicles whose classes differ by their parts, with part masks.

    Example: protoserve data render data/rendered --per-leaf 60 --seed 0
    """
    from training.progress import console, tracked
    from training.rendered import count_pictures, render_dataset

    screen = console()
    with tracked(screen, "drawing", count_pictures(per_leaf)) as advance:
        render_dataset(directory, per_leaf=per_leaf, seed=seed, size=size, advance=lambda: advance(1))
    screen.print(f"{directory}: {count_pictures(per_leaf)} pictures. Next:")
    screen.print(
        f"  protoserve train training/configs/rendered.yaml --data {directory} --run runs/rendered",
        soft_wrap=True,
    )


def train(
    config: Annotated[Path, typer.Argument(help="A YAML file; training/configs holds examples.")],
    data: Data,
    run: Annotated[Path, typer.Option(help="The folder to write; must be new, or unfinished with --resume.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights: a file, a torchvision name such as DEFAULT, or 'none'."),
    ] = None,
    head: Annotated[
        Literal["prototypes", "linear"], typer.Option(help="linear: a plain softmax to compare with.")
    ] = "prototypes",
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the configuration's seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    device: DeviceOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a network and write a run folder: checkpoint, metrics per level, curves, prototype pictures.

    Example: protoserve train training/configs/grocery.yaml --data grocery-store --run runs/grocery
    """
    from training import running
    from training.config import read_config
    from training.progress import console

    overrides: dict[str, Any] = {}
    if seed is not None:
        overrides["seed"] = seed
    if weights is not None:
        overrides["model.weights"] = None if weights == "none" else weights
    screen = console()
    metrics = running.train(
        read_config(config, overrides),
        data,
        run,
        linear=head == "linear",
        resume=resume,
        device=device,
        console=screen,
    )
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    for split in ("selection", "validation", "test"):
        if split in metrics:
            typer.echo(f"{split:<11}{_line(metrics[split])}")
    screen.print(f"{run}: finished in {metrics['seconds']:.0f} s. Next:", highlight=False)
    if head == "prototypes":
        screen.print(f"  protoserve export {run} --to onnx,torchscript --bundle bundles/{run.name}", soft_wrap=True)


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    device: DeviceOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a run's network on a split, at every level of the taxonomy.

    Example: protoserve evaluate runs/grocery --data grocery-store --split test --json
    """
    from training import running
    from training.progress import console

    metrics = running.evaluate(run, data, split, device=device, console=console())
    typer.echo(json.dumps(metrics) if as_json else _line(metrics))


def _line(metrics: dict[str, Any]) -> str:
    accuracy = "  ".join(f"{level} {100 * value:.1f} %" for level, value in metrics["accuracy"].items())
    return f"{accuracy}  (macro {100 * metrics['macro_accuracy']:.1f} %, {metrics['images']} images)"
