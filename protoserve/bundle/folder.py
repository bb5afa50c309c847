"""Bundles, the deployable folders: `manifest.json`, graphs, prototype pictures, `parity.json`, `SHA256SUMS`; format 2.

A bundle is written to a draft folder, which is then renamed. It is read only after every checksum has been verified.
Nothing in it is pickled, and no path in it may point outside the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from protoserve.bundle.manifest import FORMAT, Manifest, PrototypeRecord
from protoserve.errors import BundleError, InputError
from protoserve.files import file_hash, new_folder
from protoserve.images.geometry import InputRule
from protoserve.run.records import Metrics
from protoserve.taxonomy import Kind, Taxonomy

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    directory: Path
    manifest: Manifest

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The class tree of the manifest."""
        return Taxonomy.from_dict(self.manifest.taxonomy)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The content version, `sha256:…`."""
        return self.manifest.version

    @property
    def kind(self) -> Kind:
        """The kind of the network, which decides what nodes compete; see `competing_groups`."""
        return self.manifest.kind

    @property
    def input(self) -> InputRule:
        """The rule that turns a picture into the graph's input."""
        return self.manifest.input

    @property
    def prototypes(self) -> Sequence[PrototypeRecord]:
        """The prototypes' records, by id."""
        return self.manifest.prototypes

    @property
    def top_k(self) -> int:
        """The most evidence per level."""
        return self.manifest.graph.top_k

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the feature map."""
        return self.manifest.graph.rows, self.manifest.graph.columns

    @property
    def left_out(self) -> Mapping[str, str]:
        """The leaves left out of training → their folders, needed to read the model's data set."""
        return self.manifest.left_out

    @property
    def metrics(self) -> Metrics:
        """The run's scores."""
        return self.manifest.metrics

    def file(self, target: str) -> Path:
        """Return the file of a target such as `onnx`; raises BundleError if the bundle does not have it."""
        try:
            return self.directory / self.manifest.files[target]
        except KeyError:
            targets = ", ".join(sorted(self.manifest.files))
            raise BundleError(
                f"{self.directory}: has no target {target!r}, only {targets}; export again with --to {target}"
            ) from None

    def picture(self, prototype: int) -> Path:
        """Return the file of a prototype's picture, which shows its source patch in context."""
        return self.directory / self.manifest.prototypes[prototype].picture

    def member_of(self, prototype: int) -> int | None:
        """Return None: a bundle has no members; see `Ensemble.member_of`."""
        return None


def read_bundle(directory: Path | str) -> Bundle:
    """Open and verify a bundle.

    Raises InputError if there is no such folder, and BundleError for a file that is missing, added, altered or outside
    the folder, for an invalid manifest and for a format newer than this version reads.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such bundle; make one with 'protoserve export RUN --bundle {directory}'")
    for required in (MANIFEST, SUMS):
        if not (directory / required).is_file():
            raise BundleError(f"{directory}: {required} is missing, so this is not a bundle; export it again")
    sums = _read_sums(directory / SUMS)
    present = {
        file.relative_to(directory).as_posix()
        for file in directory.rglob("*")
        if not file.is_dir() or file.is_symlink()
    }
    if missing := sorted(set(sums) - present):
        raise BundleError(f"{directory}: {missing[0]} is missing; export or copy the bundle again")
    if added := sorted(present - set(sums) - {SUMS}):
        raise BundleError(f"{directory}: {added[0]} is not listed in {SUMS}; remove it or export again")
    for name, expected in sums.items():
        file = directory / name
        if not _inside(directory, file):
            raise BundleError(f"{directory}: {name} points outside the bundle; don't use this bundle")
        if file_hash(file) != expected:
            raise BundleError(f"{directory}: {name} does not match {SUMS}; copy or export the bundle again")
    return Bundle(directory, _read_manifest(directory))


@contextmanager
def write_bundle(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a draft folder to fill; on leaving without an error, it becomes the bundle at `directory`.

    The caller writes all files, `manifest.json` last (`write_manifest`); this function adds the checksums. An existing
    bundle is replaced only with `overwrite`, and only after the new one is complete. Raises InputError if `directory`
    exists otherwise.
    """
    with new_folder(directory, marker=MANIFEST, overwrite=overwrite) as draft:
        yield draft
        lines = [f"{file_hash(file)}  {name}\n" for name, file in _content(draft)]
        (draft / SUMS).write_text("".join(lines), encoding="utf-8")


def write_manifest(draft: Path, build: Callable[[str], Manifest]) -> Manifest:
    """Write the manifest of a draft.

    `build` makes the manifest for a content version: a hash of the draft's files and of the manifest itself.
    """
    digest = hashlib.sha256()
    for name, file in _content(draft):
        digest.update(f"{name}\0{file_hash(file)}\n".encode())
    # Without the manifest in the hash, two bundles that differ only in a threshold would have the same version.
    digest.update(build("").model_dump_json().encode())
    manifest = build(f"sha256:{digest.hexdigest()}")
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Replace a bundle's folder by one whose manifest has `changes`, field → value, and open it.

    Its version and its checksums follow. The old folder stays until the new one is complete.
    """
    with write_bundle(bundle.directory, overwrite=True) as draft:
        shutil.copytree(bundle.directory, draft, dirs_exist_ok=True)
        for name in (MANIFEST, SUMS):
            (draft / name).unlink()
        write_manifest(draft, lambda version: bundle.manifest.model_copy(update={**changes, "version": version}))
    return read_bundle(bundle.directory)


def _content(directory: Path) -> list[tuple[str, Path]]:
    files = (file for file in directory.rglob("*") if file.is_file() and file.name != SUMS)
    return sorted((file.relative_to(directory).as_posix(), file) for file in files)


def _inside(directory: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(directory.resolve()) and not file.is_symlink()


def _read_sums(file: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        path = PurePosixPath(name)
        if not separator or len(digest) != 64 or not name:
            raise BundleError(f"{file}, line {number}: {line!r} is not a checksum; export the bundle again")
        if path.is_absolute() or ".." in path.parts:
            raise BundleError(f"{file}, line {number}: {name!r} points outside the bundle; don't use this bundle")
        sums[name] = digest
    return sums


def _read_manifest(directory: Path) -> Manifest:
    file = directory / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file}: not a manifest ({error!r}); export the bundle again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise BundleError(
            f"{file}: format {version!r} is newer than {FORMAT}, the newest that this version reads; update it"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {key}: {first['msg']}; export the bundle again") from error
    weights = () if manifest.weights is None else (manifest.weights,)
    for name in (*manifest.files.values(), *weights, *(record.picture for record in manifest.prototypes)):
        if not _inside(directory, directory / name) or not (directory / name).is_file():
            raise BundleError(f"{file}: {name!r} is not a file of this bundle; export the bundle again")
    return manifest
