"""Bundles, the deployable folders: `manifest.json`, graphs, prototype pictures, `parity.json`, `SHA256SUMS`; format 2.

A bundle is written to a draft folder, which is then renamed. It is read only after every checksum has been verified.
Nothing in it is pickled, and no path in it may point outside the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import ValidationError

from protoserve.bundle.curation import Curation, curation_of
from protoserve.bundle.manifest import FORMAT, Manifest, PrototypeRecord
from protoserve.bundle.packaged import check_changeable, located
from protoserve.errors import BundleError, InputError, TaxonomyError
from protoserve.files import file_hash, new_folder
from protoserve.images.geometry import InputRule
from protoserve.names import is_plain, is_system_file, is_utf8, one_line, visible
from protoserve.run.records import Metrics
from protoserve.taxonomy import Kind, Taxonomy

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
# The file that only a finished run has; see `protoserve.run.folder`.
RUN_MODEL: Final = "model.pt"
# The longest name of a file that common file systems hold, in bytes, and how much of a longer one an error shows.
_LONGEST_NAME: Final = 255
_SHOWN: Final = 80


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    directory: Path
    manifest: Manifest
    sums: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """File → its SHA-256 when the bundle was opened."""

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

    @cached_property
    def curation(self) -> Curation:
        """The prototypes that are off, and those that are required."""
        return curation_of(self.manifest.curation)

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

    def read_picture(self, prototype: int) -> bytes:
        """Return a prototype's picture as it was when the bundle was opened.

        Raises BundleError if the file is missing or has changed since.
        """
        return self._read_verified(self.manifest.prototypes[prototype].picture)

    @property
    def samples(self) -> int:
        """The number of sample pictures."""
        return len(self.manifest.samples)

    def read_sample(self, sample: int) -> bytes:
        """Return a sample picture, an encoded image, as it was when the bundle was opened; raises as `read_picture`."""
        return self._read_verified(self.manifest.samples[sample])

    def _read_verified(self, name: str) -> bytes:
        file = self.directory / name
        try:
            # A pipe would keep the reader waiting.
            content = file.read_bytes() if file.is_file() else b""
        except OSError as error:
            raise BundleError(f"{file}: can't read it ({error.strerror}); open the bundle again") from error
        if hashlib.sha256(content).hexdigest() != self.sums.get(name):
            raise BundleError(f"{file}: the bundle has changed since it was opened; open it again")
        return content

    def member_of(self, prototype: int) -> int | None:
        """Return None: a bundle has no members; see `Ensemble.member_of`."""
        return None


def read_bundle(directory: Path | str) -> Bundle:
    """Open and verify a bundle; `demo` is the one that comes with the package.

    Files that a file manager left, such as `.DS_Store`, are ignored. Raises InputError if there is no such folder, and
    BundleError for a file that is missing, added, altered, not a regular file or outside the folder, for an invalid
    manifest and for a format newer than this version reads.
    """
    directory = located(directory)
    check_place(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such bundle; make one with 'protoserve export RUN --bundle {directory}'")
    if (directory / RUN_MODEL).is_file() and not (directory / MANIFEST).is_file():
        raise InputError(
            f"{directory}: is a run, not a bundle; make one with 'protoserve export {directory} --bundle "
            f"bundles/{directory.resolve().name}'"
        )
    for required in (MANIFEST, SUMS):
        if not (directory / required).is_file():
            raise BundleError(f"{directory}: {required} is missing, so this is not a bundle; export it again")
    try:
        sums = _verify(directory)
        bundle = Bundle(directory, _read_manifest(directory), sums)
    except OSError as error:
        raise BundleError(
            f"{one_line(str(error.filename or directory))}: can't read it ({error.strerror}); copy the bundle again"
        ) from error
    _check_prototypes(bundle)
    return bundle


def _verify(directory: Path) -> dict[str, str]:
    """Return the checksums of the folder's files. Raises BundleError unless it holds exactly these, unchanged."""
    sums = _read_sums(directory / SUMS)
    present = {
        file.relative_to(directory).as_posix()
        for file in directory.rglob("*")
        if not file.is_dir() or file.is_symlink()
    }
    if missing := sorted(set(sums) - present):
        raise BundleError(f"{directory}: {missing[0]} is missing; export or copy the bundle again")
    left = (name for name in present - set(sums) - {SUMS} if not is_system_file(PurePosixPath(name).name))
    if added := sorted(left):
        raise BundleError(f"{directory}: {one_line(added[0])} is not listed in {SUMS}; remove it or export again")
    # Resolving a path looks at each of its parts: once for each folder is enough.
    root, parents = directory.resolve(), {(directory / name).parent for name in sums}
    folders = {parent: parent.resolve().is_relative_to(root) for parent in parents}
    for name, expected in sums.items():
        file = directory / name
        if file.is_symlink() or not folders[file.parent]:
            raise BundleError(f"{directory}: {name} points outside the bundle; don't use this bundle")
        if not file.is_file():
            raise BundleError(f"{directory}: {name} is a pipe, a socket or a device; don't use this bundle")
        if file_hash(file) != expected:
            raise BundleError(f"{directory}: {name} does not match {SUMS}; copy or export the bundle again")
    return sums


@contextmanager
def write_bundle(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a draft folder to fill; on leaving without an error, it becomes the bundle at `directory`.

    The caller writes all files, `manifest.json` last (`write_manifest`); this function adds the checksums. An existing
    bundle is replaced only with `overwrite`, and only after the new one is complete. Raises InputError if `directory`
    exists otherwise.
    """
    check_place(directory)
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
    # Without the manifest in the hash, two bundles that differ only in a threshold would have the same version. Times
    # differ between two exports of the same content.
    digest.update(build("").model_dump_json(exclude={"routing"}).encode())
    manifest = build(f"sha256:{digest.hexdigest()}")
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return manifest


def rewrite_manifest(bundle: Bundle, **changes: Any) -> Bundle:
    """Replace a bundle's folder by one whose manifest has `changes`, field → value, and open it.

    Its version and its checksums follow. The old folder stays until the new one is complete. Raises InputError for the
    bundle that comes with the package.
    """
    check_changeable(bundle.directory)
    with write_bundle(bundle.directory, overwrite=True) as draft:
        shutil.copytree(bundle.directory, draft, dirs_exist_ok=True)
        for name in (MANIFEST, SUMS):
            (draft / name).unlink()
        write_manifest(draft, lambda version: bundle.manifest.model_copy(update={**changes, "version": version}))
    return read_bundle(bundle.directory)


def _content(directory: Path) -> list[tuple[str, Path]]:
    files = (
        file for file in directory.rglob("*") if file.is_file() and file.name != SUMS and not is_system_file(file.name)
    )
    return sorted((file.relative_to(directory).as_posix(), file) for file in files)


def _inside(directory: Path, file: Path) -> bool:
    # A link is looked at before it is resolved, because a loop of links can't be.
    return not file.is_symlink() and file.resolve().is_relative_to(directory.resolve())


def check_place(directory: Path) -> None:
    """Raise InputError for a folder whose path is not UTF-8: onnxruntime could not open the graph in it."""
    if not is_utf8(str(directory)):
        raise InputError(f"{visible(str(directory))}: the path is not UTF-8, so onnxruntime can't open it; rename it")


def check_path(name: str, origin: str) -> None:
    """Raise BundleError, which names the `origin`, for a path that can't be that of a file inside a bundle: absolute,
    upwards, overlong or with control characters."""
    path = PurePosixPath(name)
    if not name or not is_plain(name) or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        raise BundleError(f"{origin}: {shown!r} can't be a file's name; don't use this bundle")
    if path.is_absolute() or ".." in path.parts:
        raise BundleError(
            f"{origin}: {name!r} points outside the bundle, so is not a file of this bundle; don't use it"
        )


def read_json(file: Path, kind: str) -> Any:
    """Read a JSON file of a bundle; raises BundleError, which says that it is not `kind`, for anything else."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise BundleError(f"{file}: not {kind} (it is nested too deeply); don't use it") from error
    except ValueError as error:
        raise BundleError(f"{file}: not {kind} ({one_line(str(error))}); make it again") from error


def _read_sums(file: Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    # Not `splitlines`, which also splits at characters that may be in names.
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line:
            continue
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or not name:
            raise BundleError(f"{file}, line {number}: {line[:_SHOWN]!r} is not a checksum; export the bundle again")
        check_path(name, f"{file}, line {number}")
        sums[name] = digest
    return sums


def _read_manifest(directory: Path) -> Manifest:
    file = directory / MANIFEST
    content = read_json(file, "a manifest")
    try:
        version = content["format"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{file}: not a manifest ({error!r}); export the bundle again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise BundleError(
            f"{file}: format {version!r} is newer than {FORMAT}, the newest that this version reads; update it"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{file}: {first_problem(error)}; export the bundle again") from error
    weights = () if manifest.weights is None else (manifest.weights,)
    if manifest.promise is not None:
        check_path(manifest.promise.folder, str(file))
    pictures = (*manifest.samples, *(record.picture for record in manifest.prototypes))
    for name in (*manifest.files.values(), *weights, *pictures):
        check_path(name, str(file))
        if not _inside(directory, directory / name) or not (directory / name).is_file():
            raise BundleError(f"{file}: {name!r} is not a file of this bundle; export the bundle again")
    return manifest


def first_problem(error: ValidationError) -> str:
    """Return the first problem that pydantic found, as `key: what is wrong`, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return one_line(f"{key}: {first['msg']}" if key else first["msg"])


def _check_prototypes(bundle: Bundle) -> None:
    """Raise BundleError unless the class tree is one, and every prototype and figure names nodes of it."""
    file, manifest = bundle.directory / MANIFEST, bundle.manifest
    try:
        index = bundle.taxonomy.index
    except (TaxonomyError, RecursionError) as error:
        raise BundleError(f"{file}: taxonomy: {error}; export the bundle again") from error
    named = [
        (f"prototypes.{record.id}", name) for record in manifest.prototypes for name in (record.child, record.parent)
    ]
    for list_name, record in manifest.lists.items():
        for nodes in (record.allow, record.deny, record.depth, record.prior):
            named += [(f"lists.{list_name}", name) for name in nodes]
    for link in manifest.curation:
        unknown = [number for number in (*link.disabled, *link.required) if not 0 <= number < len(manifest.prototypes)]
        if unknown:
            raise BundleError(f"{file}: curation: there is no prototype {unknown[0]}; export the bundle again")
    named += [("temperature", name) for name in manifest.temperature] + [("prior", name) for name in manifest.prior]
    for key, name in named:
        # The root has no name.
        if name and name not in index:
            raise BundleError(f"{file}: {key}: the taxonomy has no node {name!r}; export the bundle again")
