"""The bundle that comes with the package, `demo`: drawn creatures and vehicles, to try every command at once.

`scripts/package_demo.sh` makes it; its manifest says how. It is read wherever a bundle's folder is, and never changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protoserve.errors import InputError

NAME: Final = "demo"
FOLDER: Final = Path(__file__).resolve().parents[1] / "demo"
# What tells a bundle, an ensemble or a run, whole or damaged, from any other folder.
_OWN: Final = ("manifest.json", "SHA256SUMS", "ensemble.json", "model.pt")


def located(place: Path | str) -> Path:
    """Return the folder that `place` names: the package's own bundle for `demo`, else the folder of that path.

    A bundle, an ensemble or a run in the folder `demo` of the working folder goes before the package's.
    """
    folder = Path(place)
    if str(folder) != NAME or not FOLDER.is_dir() or any((folder / name).exists() for name in _OWN):
        return folder
    return FOLDER


def check_changeable(directory: Path) -> None:
    """Raise InputError for the package's own bundle, which every command of this installation reads."""
    if directory.resolve() == FOLDER:
        raise InputError(
            f"{NAME}: comes with the package and stays as it is; change a copy: cp -r {FOLDER} bundles/{NAME}"
        )
