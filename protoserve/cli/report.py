"""The command `report`."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from protoserve.cli.options import DeviceOption, SkipBrokenOption
from protoserve.cli.output import console, say
from protoserve.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from protoserve.bundle.folder import Bundle
    from protoserve.device import Device
    from protoserve.reporting.page import Report

# The entry point of the package that makes the reports of runs.
REPORTS: Final = "protoserve.reports"
# What only runs have.
_CONFIG: Final = "config.yaml"


def report(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A finished run, or a bundle.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write; by default RUN/report.html, or BUNDLE-report.html beside it."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The data set: shows the mistakes of a bundle, with their explanations.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split whose mistakes are shown.")] = "test",
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle that was exported from RUN, for the mistakes in its report.")
    ] = None,
    skip_broken: SkipBrokenOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Write a report of a run or a bundle: scores, mistakes, truth card, and what every prototype tells apart.

    The report is one HTML file, embeds all its pictures and works offline. Mistakes come with both explanations, for
    the answer and for the truth; they need --data and, for a run, --bundle.

    Example: protoserve report bundles/grocery --data grocery-store -o grocery.html
    """
    from protoserve.bundle.ensemble import ENSEMBLE
    from protoserve.bundle.folder import MANIFEST, RUN_MODEL, read_bundle
    from protoserve.cli.audit_report import evidence_lines
    from protoserve.files import write_text
    from protoserve.reporting.bundle_report import bundle_report
    from protoserve.reporting.page import report_page

    if (model / ENSEMBLE).is_file():
        raise InputError(f"{model} is an ensemble; report on its members, the folders below {model / 'members'}")
    is_run = any((model / name).is_file() for name in (_CONFIG, RUN_MODEL)) and not (model / MANIFEST).is_file()
    if is_run and (data is None) != (bundle is None):
        raise InputError(
            f"the mistakes of a run need both: --data DIR and --bundle BUNDLE, which 'protoserve export {model}' makes"
        )
    if not is_run and bundle is not None:
        raise InputError(f"{model} is a bundle itself; leave --bundle out")
    file = output or (model / "report.html" if is_run else model.with_name(f"{model.resolve().name}-report.html"))
    if not file.parent.is_dir():
        raise InputError(f"{file}: there is no folder {file.parent}; make it, or give another --output")
    if is_run:
        found, opened = _run_report(model), None if bundle is None else read_bundle(bundle)
    else:
        opened = read_bundle(model)
        if file.resolve().is_relative_to(opened.directory.resolve()):
            raise InputError(f"{file} lies in the bundle, which must not change; give another --output")
        found = bundle_report(opened)
    if data is not None and opened is not None:
        found = _with_mistakes(found, opened, data, split, skip_broken=skip_broken, device=device)
    text = report_page(found)
    write_text(file, text)
    say(f"{file}: {len(text.encode('utf-8')) / 1e6:.1f} MB")
    if opened is not None:
        for line in evidence_lines(opened.manifest.truth, str(opened.directory)):
            say(line)


def _run_report(run: Path) -> Report:
    for entry_point in entry_points(group=REPORTS):
        try:
            made: Report = entry_point.load()(run)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the report of a run (which imports {error.name})", "train") from error
        return made
    raise MissingExtraError("the report of a run", "train")


def _with_mistakes(
    found: Report, bundle: Bundle, data: Path, split: str, *, skip_broken: bool, device: Device
) -> Report:
    from protoserve.cli.progress import progress
    from protoserve.data.checking import without_broken
    from protoserve.data.dataset import read_split
    from protoserve.inference.classifier import load
    from protoserve.reporting.bundle_report import with_mistakes

    dataset = read_split(data, split, bundle.taxonomy, left_out=bundle.left_out)
    with progress("reading headers", len(dataset)) as advance:
        dataset, _ = without_broken(dataset, skip=skip_broken, advance=advance)
    for note in dataset.notes():
        console(error=True).print(note, soft_wrap=True)
    return with_mistakes(found, load(bundle, device=device), dataset, progress)
