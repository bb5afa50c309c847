"""Ensembles as data: members that fit together, the numbers of their prototypes, and the folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from protoserve.bundle.ensemble import ENSEMBLE, Ensemble, ensemble_of, read_ensemble, read_model, write_ensemble
from protoserve.bundle.folder import Bundle, read_bundle
from protoserve.errors import BundleError, InputError, ProtoServeError
from protoserve.images.geometry import InputRule
from protoserve.taxonomy import Taxonomy


@pytest.fixture(scope="module")
def members(tiny_bundle: Path, twin_bundle: Path) -> tuple[Bundle, Bundle]:
    return read_bundle(tiny_bundle), read_bundle(twin_bundle)


@pytest.fixture
def folder(members: tuple[Bundle, Bundle], tmp_path: Path) -> Path:
    write_ensemble(members, tmp_path / "both")
    return tmp_path / "both"


def changed(bundle: Bundle, **values: object) -> Bundle:
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"version": "sha256:other", **values}))


def test_prototypes_are_numbered_member_by_member(members: tuple[Bundle, Bundle]) -> None:
    ensemble = ensemble_of(members)
    counts = [len(member.manifest.prototypes) for member in members]
    records = ensemble.prototypes
    assert [record.id for record in records] == list(range(sum(counts)))
    assert ensemble.first_prototypes == (0, counts[0])
    for number, record in enumerate(records):
        owner = 0 if number < counts[0] else 1
        own = members[owner].manifest.prototypes[number - ensemble.first_prototypes[owner]]
        assert ensemble.member_of(number) == owner
        assert record.model_copy(update={"id": own.id}) == own
        assert ensemble.picture(number) == members[owner].picture(own.id)
        assert ensemble.read_picture(number) == members[owner].picture(own.id).read_bytes()


def test_its_version_follows_from_its_members_and_their_order(members: tuple[Bundle, Bundle]) -> None:
    one, other = members
    versions = {ensemble_of(chosen).version for chosen in ([one], [one, other], [other, one])}
    assert len(versions) == 3 and all(version.startswith("sha256:") for version in versions)
    assert ensemble_of(members).version == ensemble_of(members, name="x").version


def test_it_is_named_after_its_members(members: tuple[Bundle, Bundle]) -> None:
    one, other = members
    assert ensemble_of(members).name == "tiny+twin"
    assert ensemble_of([one, changed(one)]).name == "tiny-x2"
    assert ensemble_of([one]).name == "tiny"
    assert ensemble_of([one, other], name="both").name == "both"


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"kind": "flat"}, "the first is hierarchical, the second flat"),
        ({"taxonomy": Taxonomy.from_paths(["A/x", "B"]).to_dict()}, "class trees differ, only one has 'A'"),
        ({"input": InputRule(height=32, width=96, resize="stretch")}, "96 × 64 pixels, stretch 1 and 96 × 32 pixels"),
        ({"weights": None}, "did not store the weights that an ensemble needs; export it again"),
    ],
    ids=["kind", "taxonomy", "input", "weights"],
)
def test_members_that_do_not_fit_together_are_named(
    members: tuple[Bundle, Bundle], difference: dict[str, object], message: str
) -> None:
    one, other = members
    with pytest.raises(ProtoServeError, match=message) as caught:
        ensemble_of([one, changed(other, **difference)])
    assert str(other.directory) in str(caught.value)


def test_nodes_in_another_order_are_another_taxonomy(members: tuple[Bundle, Bundle]) -> None:
    one, other = members
    names = [other.taxonomy.names[leaf] for leaf in other.taxonomy.leaves]
    turned = changed(other, taxonomy=Taxonomy.from_paths(names[::-1]).to_dict())
    with pytest.raises(InputError, match="their nodes are in a different order"):
        ensemble_of([one, turned])


def test_the_same_bundle_twice_is_refused(members: tuple[Bundle, Bundle]) -> None:
    one, other = members
    with pytest.raises(InputError, match="are the same bundle; give each member once"):
        ensemble_of([one, other, one])
    with pytest.raises(InputError, match="name at least one"):
        ensemble_of([])


# ---- the folder


def test_the_folder_holds_all_that_the_members_are(folder: Path, members: tuple[Bundle, Bundle]) -> None:
    read = read_model(folder)
    assert isinstance(read, Ensemble)
    together = ensemble_of(members)
    assert (read.name, read.version, read.kind, read.input) == (
        together.name,
        together.version,
        together.kind,
        together.input,
    )
    assert read.prototypes == together.prototypes and read.taxonomy.nodes == together.taxonomy.nodes
    assert read.directory == folder
    assert all(read.picture(record.id).is_relative_to(folder) for record in read.prototypes)
    # It needs nothing from where it was made.
    moved = folder.rename(folder.with_name("moved"))
    again = read_ensemble(moved)
    assert again.version == read.version and again.prototypes == read.prototypes


def test_it_is_written_whole_or_not_at_all(members: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    one, other = members
    lost = replace(other, directory=tmp_path / "gone")
    with pytest.raises(OSError, match="gone"):
        write_ensemble([one, lost], tmp_path / "both")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_kept(members: tuple[Bundle, Bundle], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both exists"):
        write_ensemble(members, folder)
    assert write_ensemble(members[:1], folder, overwrite=True).name == "tiny"
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"holds no ensemble\.json; it is not overwritten"):
        write_ensemble(members, tmp_path / "photos", overwrite=True)


def test_damage_is_found(folder: Path) -> None:
    (folder / "members" / "1" / "weights.npy").write_bytes(b"")
    with pytest.raises(BundleError, match=r"weights\.npy does not match SHA256SUMS"):
        read_model(folder)


def test_another_bundle_in_a_members_place_is_found(folder: Path) -> None:
    shutil.rmtree(folder / "members" / "1")
    shutil.copytree(folder / "members" / "0", folder / "members" / "1")
    with pytest.raises(BundleError, match=r"members/1 has the version sha256:\w+, but the ensemble was made with"):
        read_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a description of an ensemble"),
        ("[]", "not a description of an ensemble"),
        ({"format": 99}, "format 99 is newer than 1"),
        ({"format": 1, "name": "x", "members": []}, "members: List should have at least 1 item"),
        (
            {"format": 1, "name": "x", "members": [{"directory": "../tiny", "version": "v"}]},
            "points outside",
        ),
        ("[" * 100_000, "nested too deeply"),
        (
            {"format": 1, "name": "x", "members": [{"directory": "a\0b", "version": "v"}]},
            "can't be a file's name",
        ),
        (
            {"format": 1, "name": "x", "members": [{"directory": "x" * 5000, "version": "v"}]},
            "can't be a file's name",
        ),
        ({"format": 1, "name": "a\nb", "members": [{"directory": ".", "version": "v"}]}, "name: Value error, has line"),
        ({"format": 1, "name": "x", "members": [{"directory": ".", "version": "v"}]}, r"manifest\.json is missing"),
    ],
    ids=["torn", "list", "newer", "empty", "outside", "deep", "NUL", "overlong", "line break", "itself"],
)
def test_a_description_that_does_not_fit_is_refused(folder: Path, content: object, message: str) -> None:
    (folder / ENSEMBLE).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BundleError, match=message):
        read_model(folder)
