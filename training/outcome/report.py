"""A run as one page: everything that one asks of it, in a file that needs no network and nothing beside it."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from protoserve.errors import InputError
from protoserve.files import write_text, yaml_text
from protoserve.run.folder import Run, open_run
from training.outcome.charts import as_svg, counts_figure, losses_figure, selection_figure

# Pixels of the longer side of a prototype's source picture.
SOURCE_SIDE = 112
# A confusion matrix of more children is wider than a page.
MATRIX = 40


@dataclass(frozen=True)
class Confusion:
    """Confusion among the children of `parent`: `counts` [true][taken for], and the mistakes among `images`."""

    parent: str
    labels: list[str]
    counts: list[list[int]]
    images: int
    mistakes: int


def write_report(run_directory: Path, file: Path) -> int:
    """Write the report of a finished run to `file`, whole; returns its size in bytes.

    Raises InputError when there is no finished run, or when a part of it can't be read.
    """
    run = open_run(run_directory)
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}; make it, or give another --output")
    text = render(run)
    write_text(file, text)
    return len(text.encode("utf-8"))


def render(run: Run) -> str:
    """The page, as HTML; what a run does not hold (calibration that was off, say) is said to be missing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number, "name": lambda key: key.replace("_", " ")}
    metrics, provenance = run.read_json("metrics.json"), run.read_json("provenance.json")
    config = provenance.get("config", {})
    analysis = run.read_json("analysis.json") if (run.directory / "analysis.json").is_file() else None
    history = read_history(run.directory / "history.csv")
    splits = [split for split in ("test", "validation", "selection") if split in metrics]
    charts = {
        "selection": as_svg(lambda: selection_figure(history), "selection", "Accuracy over the steps of training")
    }
    charts["losses"] = as_svg(lambda: losses_figure(history), "losses", "Terms of the loss over the steps of training")
    counts = metrics.get("counts")
    if counts is not None:
        description = "Accuracy on the selection images against the number of prototypes"
        charts["counts"] = as_svg(lambda: counts_figure(counts), "counts", description)
    return environment.get_template("report.html").render(
        name=config.get("name", run.directory.name),
        run=run.directory.name,
        config=config,
        provenance=provenance,
        metrics=metrics,
        splits=splits,
        levels=list(metrics[splits[0]]["accuracy"]) if splits else [],
        charts=charts,
        counts=counts,
        stages=stage_table(metrics),
        confusions=read_confusions(run, splits[0] if splits else "", analysis),
        matrix=MATRIX,
        confusion_picture=data_uri_of(run.directory / "confusion.png"),
        calibration_picture=data_uri_of(run.directory / "calibration.png"),
        decoded_picture=data_uri_of(run.directory / "prototypes.png"),
        analysis=analysis,
        groups=prototype_groups(run, analysis) if analysis is not None else [],
        configuration=yaml_text(config),
    )


def stage_table(metrics: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Accuracies on the selection images around the steps that change the prototypes or their weights."""
    found: list[tuple[str, dict[str, float]]] = []
    names = {"projection": "projection", "prune": "pruning", "last_layers": "last layers"}
    for stage, label in names.items():
        if stage in metrics:
            before, after = metrics[stage]["before"], metrics[stage]["after"]
            # What comes right after another stage starts where that one ended.
            if not found or found[-1][1] != before:
                found.append((f"before {label}", before))
            found.append((f"after {label}", after))
    return found


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows of `history.csv`, numbers as numbers, without what a stage does not report."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return [
            {
                name: value if name == "stage" else int(value) if name in ("step", "epoch") else float(value)
                for name, value in row.items()
                if value
            }
            for row in rows
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: can't read the history ({error}); train again") from error


def read_confusions(run: Run, split: str, analysis: dict[str, Any] | None) -> list[Confusion]:
    """The confusion of siblings on a split, the parents with most mistakes first; nothing where the run does not hold
    it, or not the nodes' names."""
    file = run.directory / "confusion.json"
    if not file.is_file() or analysis is None:
        return []
    nodes = [node["name"] for node in analysis["nodes"]]
    found = []
    for parent, counts in run.read_json(file.name).get(split, {}).items():
        labels = [name.rpartition("/")[2] for name in nodes if name.rpartition("/")[0] == parent]
        images = sum(map(sum, counts))
        right = sum(row[place] for place, row in enumerate(counts))
        found.append(Confusion(parent, labels, counts, images, images - right))
    return sorted(found, key=lambda confusion: (-confusion.mistakes, confusion.parent))


def prototype_groups(run: Run, analysis: dict[str, Any]) -> list[dict[str, Any]]:
    """The prototypes by child, in the order of the tree, each with its pictures as data: URIs."""
    groups: dict[str, dict[str, Any]] = {}
    for prototype in analysis["prototypes"]:
        child = prototype["child"]
        group = groups.setdefault(child, {"child": child, "parent": prototype["parent"], "prototypes": []})
        pictures = {
            "source_picture": data_uri(_smaller(run.picture(prototype["id"])), "image/webp"),
            "strip": data_uri(_read(run.patches(prototype["id"])), "image/webp"),
        }
        group["prototypes"].append({**prototype, **pictures})
    return list(groups.values())


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage without its sign; a dash for what is not known."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; a dash for what is not known."""
    return "–" if value is None else f"{value:.{digits}g}"


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a `data:` URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def data_uri_of(file: Path) -> str | None:
    """A PNG file as a `data:` URI, or None where there is none."""
    return data_uri(file.read_bytes(), "image/png") if file.is_file() else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: can't read the picture ({error.strerror}); train again") from error


def _smaller(file: Path) -> bytes:
    """A prototype's source picture, small enough that a page holds thousands of them."""
    try:
        with Image.open(io.BytesIO(_read(file))) as picture:
            scale = min(1.0, SOURCE_SIDE / max(picture.size))
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    except OSError as error:
        raise InputError(f"{file}: no picture ({error}); train again") from error
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=70, method=4)
    return buffer.getvalue()
