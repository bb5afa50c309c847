"""The reader of bundles refuses torn, altered and unsafe ones, and those of a newer format."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protoserve.bundle.folder import read_bundle, rewrite_manifest
from protoserve.errors import BundleError, InputError
from tests.truth_cards import truth_card


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    place = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, place)
    return place


def seal(bundle: Path) -> None:
    """Make the sums fit again, as an attacker would."""
    files = sorted(f for f in bundle.rglob("*") if f.is_file() and f.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(bundle).as_posix()}\n" for f in files]
    (bundle / "SHA256SUMS").write_text("".join(lines))


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))
    seal(bundle)


def test_a_whole_bundle_is_read(copy: Path) -> None:
    assert read_bundle(copy).manifest.format == 2


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bundle"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "model.onnx", "prototypes/0000.webp"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(copy)


def test_one_changed_byte_is_seen(copy: Path) -> None:
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model.onnx does not match"):
        read_bundle(copy)


def test_an_added_file_is_seen(copy: Path) -> None:
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra.bin is not listed"):
        read_bundle(copy)


def test_a_newer_format_is_refused_before_anything_else_is_read(copy: Path) -> None:
    edit_manifest(copy, lambda content: content.update(format=3, surprise=True))
    with pytest.raises(BundleError, match="format 3 is newer than 2"):
        read_bundle(copy)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname"])
def test_a_name_that_points_outside_is_refused(copy: Path, name: str) -> None:
    (copy.parent / "outside.bin").write_bytes(b"x")
    edit_manifest(copy, lambda content: content["files"].update(onnx=name))
    with pytest.raises(BundleError, match="not a file of this bundle"):
        read_bundle(copy)
    seal(copy)
    with (copy / "SHA256SUMS").open("a") as sums:
        sums.write(f"{hashlib.sha256(b'x').hexdigest()}  {name}\n")
    with pytest.raises(BundleError, match="points outside"):
        read_bundle(copy)


def test_a_link_out_of_the_bundle_is_refused(copy: Path) -> None:
    (copy.parent / "model.onnx").write_bytes((copy / "model.onnx").read_bytes())
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to(copy.parent / "model.onnx")
    with pytest.raises(BundleError, match="points outside"):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("input"), "input"),
        (lambda content: content["input"].update(resize="squash"), "resize"),
        (lambda content: content.update(surprise=1), "surprise"),
        (
            lambda content: content.update(novelty={"score": "guess", "true_positive_rate": 0.9, "thresholds": {}}),
            r"novelty\.score",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_place(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(copy, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(copy)


def test_a_target_that_is_not_held_is_named(copy: Path) -> None:
    with pytest.raises(BundleError, match=r"has no target 'openvino'.*onnx, torchscript"):
        read_bundle(copy).file("openvino")


def test_a_truth_card_is_kept_and_changes_the_version(copy: Path) -> None:
    before = read_bundle(copy)
    assert before.manifest.truth is None
    first = rewrite_manifest(before, truth=truth_card(seed=0))
    assert first.manifest.truth == truth_card(seed=0)
    assert first.version != before.version
    # Only the manifest and the sums differ.
    original = {file.relative_to(copy).as_posix(): file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    assert first.manifest.model_copy(update={"version": before.version, "truth": None}) == before.manifest
    other = rewrite_manifest(first, truth=truth_card(seed=1))
    assert len({before.version, first.version, other.version}) == 3
    # The version is a hash of the content: the same card gives the same bundle again.
    again = rewrite_manifest(other, truth=truth_card(seed=0))
    assert again.version == first.version
    assert {
        file.relative_to(copy).as_posix(): file.read_bytes() for file in copy.rglob("*") if file.is_file()
    } == original
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]


def test_a_bundle_without_a_card_is_read(copy: Path) -> None:
    edit_manifest(copy, lambda manifest: manifest.pop("truth"))
    assert read_bundle(copy).manifest.truth is None


# ---- hostile bundles -------------------------------------------------------------------------------------------------


def refuse(bundle: Path, *said: str) -> None:
    """Reading the bundle ends in a BundleError of one line with these words."""
    with pytest.raises(BundleError) as raised:
        read_bundle(bundle)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 1000
    for words in said:
        assert words in message


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "a\x1b[2J"], ids=["NUL", "overlong", "escape"])
def test_a_name_that_no_file_has_is_refused(copy: Path, name: str) -> None:
    edit_manifest(copy, lambda content: content["files"].update(onnx=name))
    refuse(copy, "manifest.json", "name")
    with (copy / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")
    refuse(copy, "can't be a file's name", "SHA256SUMS, line")


def test_a_manifest_that_is_nested_too_deeply_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("[" * 100_000)
    seal(copy)
    refuse(copy, "manifest.json: not a manifest (it is nested too deeply)")


def test_a_pipe_in_a_file_s_place_does_not_hang_the_reader(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    os.mkfifo(copy / "model.onnx")
    refuse(copy, "model.onnx is a pipe, a socket or a device")
    (copy / "manifest.json").unlink()
    os.mkfifo(copy / "manifest.json")
    refuse(copy, "manifest.json is missing")


def test_loops_of_links_are_refused(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").symlink_to("model.onnx")
    refuse(copy, "model.onnx points outside")
    (copy / "model.onnx").unlink()
    (copy / "again").symlink_to(copy, target_is_directory=True)
    refuse(copy, "model.onnx is missing")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(version="sha256:0\nINFO forged"), "version: Value error, has line breaks"),
        (lambda content: content.update(name="\x1b]0;owned\x07"), "name: Value error, has line breaks or control"),
        (lambda content: content.update(format=0), "format: Input should be greater than or equal to 1"),
        (lambda content: content["temperature"].update({"": 0.0}), "temperature"),
        (lambda content: content["temperature"].update({"": float("nan")}), "temperature"),
        (lambda content: content["temperature"].update({"Nowhere": 1.0}), "the taxonomy has no node 'Nowhere'"),
        (lambda content: content["prototypes"][0].update(weight=float("nan")), "prototypes.0.weight"),
        (lambda content: content["prototypes"][0].update(usual=float("inf")), "prototypes.0.usual"),
        (lambda content: content["prototypes"][1].update(child="Nowhere"), "prototypes.1: the taxonomy has no node"),
        (lambda content: content["prior"].update(Scuba=float("-inf")), "prior"),
        (lambda content: content["graph"].update(rows=0), "graph.rows"),
        (lambda content: content.update(lists={"zoo": {"deny": ["Nowhere"]}}), "lists.zoo: the taxonomy has no node"),
        (lambda content: content.update(lists={"zoo": {"prior": {"Scuba": 0.0}}}), "lists.zoo.prior.Scuba"),
        (lambda content: content["taxonomy"]["nodes"].append(["Scuba"]), "taxonomy: "),
        (lambda content: content["taxonomy"]["nodes"].__setitem__(0, ["Ani\nmal"]), "taxonomy: "),
        (lambda content: content.update(taxonomy={"nodes": 7}), "taxonomy: not a stored taxonomy"),
    ],
)
def test_values_that_no_export_writes_are_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit_manifest(copy, change)
    refuse(copy, "manifest.json", said)


def test_what_file_managers_leave_is_ignored(copy: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "prototypes/desktop.ini", "prototypes/._0000.webp"):
        (copy / name).write_bytes(b"x")
    bundle = read_bundle(copy)
    # Nor do they enter a bundle that is written from this one.
    assert rewrite_manifest(bundle, truth=None).version == bundle.version
    (copy / ".hidden").write_bytes(b"x")
    refuse(copy, ".hidden is not listed in SHA256SUMS")


def test_a_picture_is_read_as_it_was_when_the_bundle_was_opened(copy: Path) -> None:
    bundle = read_bundle(copy)
    picture = bundle.picture(0)
    content = picture.read_bytes()
    assert bundle.read_picture(0) == content
    picture.write_bytes(bundle.picture(1).read_bytes())
    with pytest.raises(BundleError, match="has changed since it was opened"):
        bundle.read_picture(0)
    picture.unlink()
    with pytest.raises(BundleError, match="has changed since it was opened"):
        bundle.read_picture(0)
    os.mkfifo(picture)
    with pytest.raises(BundleError, match="has changed since it was opened"):
        bundle.read_picture(0)
    picture.unlink()
    picture.write_bytes(content)
    assert bundle.read_picture(0) == content


def test_a_path_that_onnxruntime_cannot_open_is_refused(copy: Path) -> None:
    moved = copy.rename(copy.parent / os.fsdecode(b"caf\xe9"))
    with pytest.raises(InputError, match=r"caf\\xe9: the path is not UTF-8, so onnxruntime can't open it; rename it"):
        read_bundle(moved)
