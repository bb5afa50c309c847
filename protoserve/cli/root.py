"""The root command `protoserve`: its own commands, and those of the other packages.

The other packages add their commands through the entry-point group `protoserve.commands`. Each entry point is one
command: a function for typer. Its name consists of the extra that it needs and the command, `train.evaluate`, or of the
extra, a group and the command, `train.data.render`.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from protoserve import __version__
from protoserve.cli.audit import audit
from protoserve.cli.bundles import ensemble, inspect, predict
from protoserve.cli.explaining import explain
from protoserve.cli.feedback import feedback
from protoserve.cli.lists import lists
from protoserve.cli.output import prepare_streams, say, say_line
from protoserve.cli.report import report
from protoserve.cli.score import score
from protoserve.cli.verify import verify
from protoserve.errors import MissingExtraError, ProtoServeError

ENTRY_POINTS: Final = "protoserve.commands"
# The order in which `--help` lists the packages' commands.
EXTRAS: Final = ("train", "export", "serve")
# The help of each group.
GROUPS: Final = {"data": "Make data sets."}

_OWN_PACKAGES = frozenset({"protoserve", "training", "export", "service"})
_FAILED = 2
_INTERRUPTED = 130
# What the machine refuses, and what to do about it. A write that names its file has failed earlier, as InputError.
_REFUSALS: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space there, or give another place"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give this user the right to it, or give another place"),
    **dict.fromkeys((errno.ELOOP, errno.ENAMETOOLONG), "give another path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit on open files: ulimit -n 4096"),
    errno.EIO: "check the disk",
}


class _RootCommand(TyperGroup):
    """Turns every error that a user can correct into one line on standard error and an exit code."""

    def invoke(self, context: Any) -> Any:
        try:
            result = super().invoke(context)
            # Flushed here, because at exit Python prints an error about a closed pipe.
            sys.stdout.flush()
        except ProtoServeError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            extra = _extra_of(context.invoked_subcommand)
            if extra is None or not _is_third_party(error):
                raise
            feature = f"'protoserve {context.invoked_subcommand}' (which imports {error.name})"
            _fail(str(MissingExtraError(feature, extra)))
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            place = "a file" if error.filename is None else str(error.filename)
            _fail(f"{place}: {error.strerror}; {_REFUSALS[error.errno]}")
        except KeyboardInterrupt:
            say("interrupted", error=True)
            raise SystemExit(_INTERRUPTED) from None
        return result


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line `protoserve …`. Raises SystemExit: 0, or 2 for every error that a user can correct."""
    prepare_streams()
    build_app()(args=arguments, prog_name="protoserve")
    raise SystemExit(0)


def build_app() -> typer.Typer:
    """Make the root command with the commands of every installed package."""
    app = typer.Typer(
        cls=_RootCommand,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Train, export and serve image classifiers that explain themselves.",
        epilog="Example: protoserve predict bundles/grocery photo.jpg",
    )
    app.callback()(_root)
    for command in (predict, explain, inspect, lists, ensemble, score, audit, report, feedback, verify):
        app.command()(command)
    groups: dict[str, typer.Typer] = {}
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=_command_order):
        _, *group, name = entry_point.name.split(".")
        parent = app
        for word in group:
            if word not in groups:
                groups[word] = typer.Typer(no_args_is_help=True, help=GROUPS.get(word))
                app.add_typer(groups[word], name=word)
            parent = groups[word]
        _add_command(parent, entry_point, " ".join((*group, name)))
    return app


# ---- other packages' commands ------------------------------------------------------------------------------------


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=lambda requested: _version(requested),
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Declare the options of the root command; its help text is set in `build_app`."""


def _version(requested: bool) -> None:
    if requested:
        say(f"protoserve {__version__}")
        raise typer.Exit


def _command_order(entry_point: EntryPoint) -> tuple[int, str]:
    """Return the sort key of a command: training, export, service; within a package by name."""
    extra, _, command = entry_point.name.partition(".")
    return (EXTRAS.index(extra) if extra in EXTRAS else len(EXTRAS)), command


def _add_command(parent: typer.Typer, entry_point: EntryPoint, words: str) -> None:
    """Add a command to the root or to a group; if its module can't be imported, add a stub that names the extra."""
    extra, name = entry_point.name.split(".")[0], entry_point.name.split(".")[-1]
    try:
        function: Callable[..., Any] = entry_point.load()
    except ModuleNotFoundError as error:
        # It is a library that the module imports, or the module itself if only some packages are deployed.
        missing = str(error.name)

        def stub() -> None:
            raise MissingExtraError(f"'protoserve {words}' (which imports {missing})", extra)

        any_arguments = {"allow_extra_args": True, "ignore_unknown_options": True}
        parent.command(
            name, help=f"Needs the extra {extra!r}, which is not installed.", context_settings=any_arguments
        )(stub)
    else:
        parent.command(name)(function)


def _extra_of(command: str | None) -> str | None:
    """Return the extra of another package's command or group; None for the root's own commands."""
    for entry_point in entry_points(group=ENTRY_POINTS):
        extra, *words = entry_point.name.split(".")
        if words[:1] == [command]:
            return extra
    return None


def _is_third_party(error: ModuleNotFoundError) -> bool:
    return error.name is not None and error.name.partition(".")[0] not in _OWN_PACKAGES


def _fail(message: str) -> NoReturn:
    # A message that quotes another library may span several lines.
    say_line("error: " + re.sub(r"\s*\n\s*", " ", message.strip()), error=True)
    raise SystemExit(_FAILED)


if __name__ == "__main__":
    main()
