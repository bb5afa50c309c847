"""The command `explain`: figures, pages, and folders of pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

import protoserve
from protoserve.pages.words import headline
from tests.protoserve.cli.command_line import CommandLine


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.webp"])
def test_explain_writes_a_whole_figure(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, name: str, protoserve_command: CommandLine
) -> None:
    output = tmp_path / name
    output.write_bytes(b"something older")
    code, out, err = protoserve_command("explain", tiny_bundle, photograph, "-o", output, "--top-k", "1")
    assert code == 0 and err == "" and str(output) in out
    with Image.open(output) as figure:
        figure.load()
        assert figure.width == 1200
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_explain_never_leaves_or_harms_a_file_on_failure(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    (tmp_path / "older.png").write_bytes(b"older")
    (tmp_path / "notes.jpg").write_text("no picture")
    own = tmp_path / "own.jpg"
    shutil.copy(photograph, own)
    before = own.read_bytes()
    for image, output, message in [
        (photograph, tmp_path / "figure.pdf", "can't write a page or figure as '.pdf'"),
        (photograph, tmp_path / "figure", "can't write a page or figure"),
        (photograph, tmp_path / "nowhere" / "figure.png", "no such folder"),
        (tmp_path / "notes.jpg", tmp_path / "older.png", "is not a picture"),
        (own, own, "the image itself"),
    ]:
        code, out, err = protoserve_command("explain", tiny_bundle, image, "-o", output)
        assert (code, out) == (2, "") and message in err
    assert (tmp_path / "older.png").read_bytes() == b"older" and own.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.jpg", "older.png", "own.jpg"]


def test_a_page_says_what_the_prediction_says(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    page = tmp_path / "photo.html"
    code, out, err = protoserve_command("explain", tiny_bundle, photograph, "-o", page, "--contrast", "Tool")
    assert (code, err) == (0, "")
    prediction = protoserve.load(tiny_bundle, device="cpu").predict(photograph, top_k=3)
    assert out.startswith(f"{headline(prediction)}: wrote {page}\n")
    html = page.read_text(encoding="utf-8")
    for level in prediction.levels:
        for piece in level.evidence:
            assert f"prototype {piece.prototype}" in html
    assert "Why " in html or "is part of the answer" in html
    assert html.count("data:image/") > 4 and photograph.name in html


def test_a_folder_becomes_pages_with_an_index(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    out_folder = tmp_path / "out"
    code, out, err = protoserve_command("explain", tiny_bundle, pictures, "-o", out_folder, "--top-k", "1")
    assert code == 0 and "error" not in err
    assert "7 pictures explained, 2 could not be read" in out
    pages = {file.relative_to(out_folder).as_posix() for file in out_folder.rglob("*.html")}
    names = {f"{'more/' if number % 2 else ''}{number}.png.html" for number in range(7)}
    assert pages == {"index.html", *names}
    index = (out_folder / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}"' in index for name in names)
    assert "torn.png" in index and "Not readable" in index
    for place, message in (
        (out_folder, "is not an empty folder"),
        (pictures / "out", "lies in the folder of the pictures"),
    ):
        code, _, err = protoserve_command("explain", tiny_bundle, pictures, "-o", place)
        assert code == 2 and message in err
    (tmp_path / "empty").mkdir()
    code, _, err = protoserve_command("explain", tiny_bundle, tmp_path / "empty", "-o", tmp_path / "none")
    assert code == 2 and "holds no pictures" in err
