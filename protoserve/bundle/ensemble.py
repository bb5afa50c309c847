"""Ensembles: several bundles on one taxonomy that predict together (Chen et al. 2019, section 3.3).

An ensemble's prototypes are numbered member by member, so that an id names one prototype of one member. Its folder
contains `ensemble.json` and a copy of every member below `members/`; it may be used wherever a bundle may.
"""

from __future__ import annotations

import hashlib
import shutil
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import Field, ValidationError

from protoserve.bundle.curation import Curation, CurationLink
from protoserve.bundle.folder import Bundle, check_path, first_problem, read_bundle, read_json
from protoserve.bundle.manifest import PrototypeRecord
from protoserve.bundle.packaged import located
from protoserve.bundle.plain_text import PlainText
from protoserve.errors import BundleError, InputError
from protoserve.files import new_folder
from protoserve.images.geometry import InputRule
from protoserve.run.records import Metrics
from protoserve.schema import Contract
from protoserve.taxonomy import Kind, Taxonomy

ENSEMBLE: Final = "ensemble.json"
ENSEMBLE_FORMAT: Final = 1


class MemberRecord(Contract):
    """A member in `ensemble.json`: its folder, relative to the ensemble's, and its content version."""

    directory: str
    version: str


class EnsembleFile(Contract):
    """The content of `ensemble.json`."""

    format: int
    name: PlainText = Field(min_length=1)
    members: list[MemberRecord] = Field(min_length=1)


@dataclass(frozen=True)
class Ensemble:
    """Verified bundles that predict together; made by `ensemble_of` or `read_ensemble`.

    `directory` is the ensemble's folder, None if the members were named one by one. All members have the same kind,
    class tree and input rule.
    """

    members: tuple[Bundle, ...]
    name: str
    directory: Path | None = None

    @cached_property
    def version(self) -> str:
        """A hash of the members' versions, in order: `sha256:…`."""
        digest = hashlib.sha256("\n".join(member.version for member in self.members).encode())
        return f"sha256:{digest.hexdigest()}"

    @property
    def kind(self) -> Kind:
        """The kind that all members share."""
        return self.members[0].kind

    @property
    def taxonomy(self) -> Taxonomy:
        """The class tree that all members share."""
        return self.members[0].taxonomy

    @property
    def input(self) -> InputRule:
        """The input rule that all members share."""
        return self.members[0].input

    @cached_property
    def prototypes(self) -> Sequence[PrototypeRecord]:
        """The records of all members' prototypes, numbered from one member to the next."""
        records = (record for member in self.members for record in member.prototypes)
        return [record.model_copy(update={"id": prototype}) for prototype, record in enumerate(records)]

    @property
    def top_k(self) -> int:
        """The most evidence per level: the smallest limit of any member, because each graph returns only its own
        best."""
        return min(member.top_k for member in self.members)

    @property
    def grid(self) -> tuple[int, int]:
        """The largest number of rows and the largest number of columns of the members' feature maps."""
        rows, columns = zip(*(member.grid for member in self.members), strict=True)
        return max(rows), max(columns)

    @property
    def left_out(self) -> Mapping[str, str]:
        """The leaves left out of training by any member → their folders."""
        return {leaf: folder for member in self.members for leaf, folder in member.left_out.items()}

    @property
    def metrics(self) -> Metrics:
        """Empty: only the members have been scored."""
        return Metrics()

    @cached_property
    def first_prototypes(self) -> tuple[int, ...]:
        """The ensemble's id of every member's first prototype."""
        counts = (len(member.prototypes) for member in self.members)
        return tuple(accumulate(counts, initial=0))[:-1]

    @cached_property
    def curation(self) -> Curation:
        """The members' prototypes that are off, and those that are required, by the ensemble's ids."""
        found: dict[str, dict[int, CurationLink]] = {"off": {}, "required": {}}
        for first, member in zip(self.first_prototypes, self.members, strict=True):
            for name, links in found.items():
                links |= {first + own: link for own, link in getattr(member.curation, name).items()}
        return Curation(**found)

    def member_of(self, prototype: int) -> int:
        """Return the index of a prototype's member."""
        return bisect_right(self.first_prototypes, prototype) - 1

    def picture(self, prototype: int) -> Path:
        """Return the file of a prototype's picture in its member's bundle."""
        member = self.member_of(prototype)
        return self.members[member].picture(prototype - self.first_prototypes[member])

    def read_picture(self, prototype: int) -> bytes:
        """As `Bundle.read_picture`, for the member's prototype."""
        member = self.member_of(prototype)
        return self.members[member].read_picture(prototype - self.first_prototypes[member])

    @property
    def samples(self) -> int:
        """The number of sample pictures: those of the first member."""
        return self.members[0].samples

    def read_sample(self, sample: int) -> bytes:
        """As `Bundle.read_sample`, for the first member."""
        return self.members[0].read_sample(sample)


# Code that describes or displays a model accepts either.
Model: TypeAlias = Bundle | Ensemble


def ensemble_of(members: Sequence[Bundle], *, name: str | None = None, directory: Path | None = None) -> Ensemble:
    """Make the ensemble of `members`, which must have the same kind, class tree and input rule.

    By default it is named after its members. Raises InputError for no members, members that don't fit together or a
    duplicate member, and BundleError for a member without the weights that an ensemble needs.
    """
    if not members:
        raise InputError("an ensemble needs members; name at least one bundle")
    first = members[0]
    seen: dict[str, Bundle] = {}
    for member in members:
        if twin := seen.get(member.version):
            raise InputError(f"{member.directory} and {twin.directory} are the same bundle; give each member once")
        seen[member.version] = member
        _check_fits(first, member)
    return Ensemble(tuple(members), _name(members) if name is None else name, directory)


def read_model(directory: Path | str) -> Model:
    """Open and verify the folder of a bundle or an ensemble; raises as `read_bundle` and `read_ensemble` do."""
    directory = located(directory)
    return read_ensemble(directory) if (directory / ENSEMBLE).is_file() else read_bundle(directory)


def read_ensemble(directory: Path) -> Ensemble:
    """Open an ensemble's folder and verify every member.

    Raises BundleError if `ensemble.json` is damaged, is newer than this version reads, or names a member that has
    another version or is outside the folder; otherwise as `read_bundle` and `ensemble_of` do.
    """
    file = directory / ENSEMBLE
    content: Any = read_json(file, "a description of an ensemble")
    try:
        version = content["format"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{file}: not a description of an ensemble ({error!r}); make it again") from error
    if not isinstance(version, int) or version > ENSEMBLE_FORMAT:
        raise BundleError(
            f"{file}: format {version!r} is newer than {ENSEMBLE_FORMAT}, the newest that this version reads; update it"
        )
    try:
        stored = EnsembleFile.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{file}: {first_problem(error)}; make the ensemble again") from error
    members = []
    for record in stored.members:
        check_path(record.directory, str(file))
        folder = directory / record.directory
        if folder.is_symlink() or not folder.resolve().is_relative_to(directory.resolve()):
            raise BundleError(f"{file}: {record.directory!r} points outside the ensemble; don't use it")
        member = read_bundle(folder)
        if member.version != record.version:
            raise BundleError(
                f"{file}: {record.directory} has the version {member.version[:19]}, but the ensemble was made with "
                f"{record.version[:19]}; make it again"
            )
        members.append(member)
    return ensemble_of(members, name=stored.name, directory=directory)


def write_ensemble(
    members: Sequence[Bundle], directory: Path, *, name: str | None = None, overwrite: bool = False
) -> Ensemble:
    """Copy bundles into an ensemble's folder, written atomically, and open it.

    Raises as `ensemble_of` does, and InputError if `directory` exists, except with `overwrite` for an ensemble's
    folder.
    """
    ensemble = ensemble_of(members, name=name)
    records = [
        MemberRecord(directory=f"members/{index}", version=member.version) for index, member in enumerate(members)
    ]
    content = EnsembleFile(format=ENSEMBLE_FORMAT, name=ensemble.name, members=records)
    with new_folder(directory, marker=ENSEMBLE, overwrite=overwrite) as draft:
        for member, record in zip(members, records, strict=True):
            shutil.copytree(member.directory, draft / record.directory)
        (draft / ENSEMBLE).write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return read_ensemble(directory)


def _name(members: Sequence[Bundle]) -> str:
    names = list(dict.fromkeys(member.name for member in members))
    return f"{names[0]}-x{len(members)}" if len(names) == 1 < len(members) else "+".join(names)


def _check_fits(first: Bundle, other: Bundle) -> None:
    pair = f"{first.directory} and {other.directory} can't predict together"
    if first.kind != other.kind:
        raise InputError(
            f"{pair}: the first is {first.kind}, the second {other.kind}, in which other nodes compete; take members "
            "of one kind"
        )
    if first.taxonomy.nodes != other.taxonomy.nodes:
        names = set(first.taxonomy.names) ^ set(other.taxonomy.names)
        differing = f"only one has {min(names)!r}" if names else "their nodes are in a different order"
        raise InputError(f"{pair}: their class trees differ, {differing}; take members trained on one taxonomy")
    if first.input != other.input:
        rules = [
            f"{rule.width} × {rule.height} pixels, {rule.resize} {rule.share:g}" for rule in (first.input, other.input)
        ]
        raise InputError(f"{pair}: their input rules differ, {rules[0]} and {rules[1]}; train them with one rule")
    for bundle in (first, other):
        if bundle.manifest.weights is None:
            raise BundleError(
                f"{bundle.directory}: was exported by a version that did not store the weights that an ensemble needs; "
                "export it again"
            )
