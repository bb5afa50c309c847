"""Data sets in CSV and Parquet, which read like the folders that they describe."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoserve.data.dataset import hold_out, holds_split, read_split, read_taxonomy
from protoserve.data.tables import is_table, read_table
from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import Taxonomy

PATHS = """image,path,split,remark
a.png,Fruit/Apple/Gala,train,"red, ripe"
deep/b.png,Fruit/Lemon,train,
c.png,Garlic,train,
d.png,Fruit/Apple/Gala,test,
"""
LEVELS = """split,level_2,image,level_1,level_3
train,Apple,a.png,Fruit,Gala
train,Lemon,deep/b.png,Fruit,
train,,c.png,Garlic,
test,Apple,d.png,Fruit,Gala
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a", "deep/b", "c", "d")):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder: Path, text: str, name: str = "m.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("text", [PATHS, LEVELS, "\ufeff" + PATHS, PATHS.replace("\n", "\r\n")])
def test_a_table_is_read_like_the_folders_it_describes(folder: Path, text: str) -> None:
    table = write(folder, text)
    taxonomy = read_taxonomy(table)
    assert [taxonomy.names[leaf] for leaf in taxonomy.leaves] == ["Garlic", "Fruit/Lemon", "Fruit/Apple/Gala"]
    train = read_split(table, "train", taxonomy, every_leaf=True)
    assert train.images == ("a.png", "deep/b.png", "c.png")
    assert [taxonomy.names[taxonomy.leaves[leaf]] for leaf in train.leaves] == [
        "Fruit/Apple/Gala",
        "Fruit/Lemon",
        "Garlic",
    ]
    assert np.asarray(train.picture(1).picture)[0, 0, 0] == 1
    assert read_split(table, "test", taxonomy).images == ("d.png",)
    assert holds_split(table, "test") and not holds_split(table, "val")
    rest, held = hold_out(train, 0.5, seed=0)
    assert len(rest) == 3 and not len(held)


def test_an_image_may_lie_anywhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("tables") / "m.csv"
    text = PATHS.replace("a.png", str(folder / "a.png")).replace(
        "deep/b.png", os.path.relpath(folder / "deep/b.png", elsewhere.parent)
    )
    elsewhere.write_text(text.replace("c.png", str(folder / "c.png")))
    train = read_split(elsewhere, "train", read_taxonomy(elsewhere))
    assert [np.asarray(train.picture(number).picture)[0, 0, 0] for number in range(3)] == [0, 1, 2]


def test_parquet_holds_the_same(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    table = write(folder, LEVELS)
    strings = dict.fromkeys(("level_1", "level_2", "level_3"), pyarrow.string())
    columns = csv.read_csv(table, convert_options=csv.ConvertOptions(column_types=strings, strings_can_be_null=True))
    # Absent values, dictionary-encoded text, and a column of another type that no data set uses.
    columns = columns.set_column(0, "split", columns["split"].dictionary_encode())
    columns = columns.append_column("width", pyarrow.array([1, 2, 3, 4]))
    parquet.write_table(columns, folder / "m.parquet")
    ours, theirs = read_table(folder / "m.parquet"), read_table(table)
    assert (ours.images, ours.paths, ours.splits) == (theirs.images, theirs.paths, theirs.splits)

    wrong = pyarrow.table({"image": ["a.png"], "split": ["train"], "path": [3]})
    parquet.write_table(wrong, folder / "wrong.parquet")
    with pytest.raises(InputError, match=r"wrong.parquet, row 1, column 'path': 3 is not text; store"):
        read_table(folder / "wrong.parquet")
    (folder / "torn.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"torn\.parquet: can't read it as Parquet"):
        read_table(folder / "torn.parquet")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image,", "imag,", r"m.csv: no column 'image'; did you mean 'imag'\?; it has imag, path, split, remark"),
        ("path,split", "class,split", r"has neither: image, class, split, remark"),
        ("remark", "level_1", "it has both: "),
        ("remark", "path", "two columns 'path'; name each column once"),
        (
            "Garlic,train",
            "Garlic,trian",
            r"row 3, column 'split': 'trian' is not one of train, val, test; did you mean",
        ),
        ("Garlic,train", ",train", "row 3, column 'path': is empty"),
        ("c.png", "a.png", "row 3, column 'image': 'a.png' is in row 1 already"),
        ("c.png,Garlic", "c.png,Fruit,Garlic", "row 3: 5 cells under 4 columns; quote"),
        (PATHS[len("image,path,split,remark\n") :], "", "holds no rows"),
        (PATHS, "", "no column 'image'"),
        ('"red, ripe"', '"red, ripe', "can't read it as CSV"),
    ],
)
def test_a_bad_table_names_row_column_and_cure(folder: Path, old: str, new: str, message: str) -> None:
    assert old in PATHS
    with pytest.raises(InputError, match=message):
        read_table(write(folder, PATHS.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "train,Apple,a.png,Fruit,Gala",
            "train,,a.png,Fruit,Gala",
            "row 1, column 'level_3': 'Gala' is below an empty level",
        ),
        ("Lemon", "Sour/Lemon", "row 2, column 'level_2': 'Sour/Lemon' contains '/'"),
        ("level_3", "level_4", "number the levels from level_1 without a gap"),
        ("c.png,Garlic", "c.png,", "row 3, column 'level_1': is empty"),
    ],
)
def test_bad_levels_name_row_column_and_cure(folder: Path, old: str, new: str, message: str) -> None:
    assert old in LEVELS
    with pytest.raises(InputError, match=message):
        read_table(write(folder, LEVELS.replace(old, new, 1)))


def test_a_missing_image_a_missing_split_and_an_unknown_class_are_named(folder: Path) -> None:
    table = write(folder, PATHS.replace("c.png", "e.png"))
    with pytest.raises(InputError, match=r"row 3, column 'image': there is no file 'e.png'; give a path relative to"):
        read_taxonomy(table)
    table = write(folder, PATHS, "good.csv")
    taxonomy = read_taxonomy(table)
    with pytest.raises(InputError, match="no rows of the split 'val'; it has train, test"):
        read_split(table, "val", taxonomy)
    other = write(folder, PATHS.replace("Fruit/Apple/Gala,test", "Fruit/Apple/Galla,test"), "other.csv")
    with pytest.raises(
        TaxonomyError, match=r"row 4, column 'path': the taxonomy has no leaf 'Fruit/Apple/Galla'; did you mean"
    ):
        read_split(other, "test", taxonomy)


def test_left_out_classes_are_skipped_and_every_leaf_needs_an_image(folder: Path) -> None:
    table = write(folder, PATHS)
    whole = read_taxonomy(table)
    taxonomy = whole.without(["Garlic"])
    assert read_split(table, "train", taxonomy, left_out={"Garlic": "Garlic"}).images == ("a.png", "deep/b.png")
    with pytest.raises(TaxonomyError, match="leaf 'Garlic' has no images in 'test' of"):
        read_split(table, "test", whole, every_leaf=True)


def test_a_table_is_distinguished_from_a_folder_and_read_again_after_changes(folder: Path) -> None:
    (folder / "folder.csv").mkdir()
    assert is_table(folder / "m.csv") and is_table(folder / "m.PARQUET")
    assert not is_table(folder / "folder.csv") and not is_table(folder)
    with pytest.raises(InputError, match=r"nothing.csv: can't read it \(No such file"):
        read_taxonomy(folder / "nothing.csv")
    table = write(folder, PATHS)
    assert len(read_table(table).images) == 4
    table.write_text(PATHS + "e.png,Garlic,test,\n")
    os.utime(table, ns=(1, 1))
    assert len(read_table(table).images) == 5


# ---- cells as people write them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_cells_too(folder: Path, separator: str) -> None:
    theirs = read_table(write(folder, PATHS))
    ours = read_table(write(folder, PATHS.replace('"red, ripe"', "red").replace(",", separator), "other.csv"))
    assert (ours.images, ours.paths, ours.splits) == (theirs.images, theirs.paths, theirs.splits)


def test_val_may_have_another_name(folder: Path) -> None:
    table = write(folder, PATHS.replace("Garlic,train", "Garlic,validation"))
    assert read_table(table).splits == ("train", "train", "val", "test")
    assert holds_split(table, "val") and holds_split(table, "valid")
    taxonomy = Taxonomy.from_paths(["Fruit/Apple/Gala", "Fruit/Lemon", "Garlic"])
    assert read_split(table, "validation", taxonomy).images == ("c.png",)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("Fruit\\Lemon", "has '\\' in it; write '/' between the names of a class"),
        ("Fruit/Lemon/", "'Fruit/Lemon/' has a name that is empty or has spaces around it; write 'Fruit/Lemon'"),
        ("/Fruit/Lemon", "write 'Fruit/Lemon'"),
        ("Fruit / Lemon", "write 'Fruit/Lemon'"),
        ("Fruit//Lemon", "write 'Fruit/Lemon'"),
        ("Fruit/..", "column 'path' is not a class name"),
        ("Fruit/Lem\x07on", "column 'path' is not a class name"),
        ("Fruit/apple/Fuji", "'apple' looks like 'Apple'"),
        ("Fruit/App\u200ble/Fuji", "'App\\u200ble' looks like 'Apple'"),
    ],
)
def test_a_class_path_that_can_t_be_one_names_row_and_column(folder: Path, path: str, said: str) -> None:
    with pytest.raises(TaxonomyError) as raised:
        read_table(write(folder, PATHS.replace("Fruit/Lemon", path)))
    assert "m.csv, row 2, column 'path'" in str(raised.value) and said in str(raised.value)


def test_a_windows_path_says_what_to_write(folder: Path) -> None:
    table = write(folder, PATHS.replace("deep/b.png", "deep\\b.png"))
    with pytest.raises(InputError, match=r"row 2, column 'image': there is no file .*; write '/' instead of"):
        read_taxonomy(table)


@pytest.mark.parametrize("how", ["./a.png", "deep/../a.png", "absolute", "link.png", "linked/b.png"])
def test_one_file_under_two_names_is_one_image(folder: Path, how: str) -> None:
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "linked").symlink_to(folder / "deep", target_is_directory=True)
    name = str(folder / "a.png") if how == "absolute" else how
    first = "deep/b.png" if how == "linked/b.png" else "a.png"
    with pytest.raises(InputError) as raised:
        read_table(write(folder, PATHS.replace("d.png", name)))
    row = 2 if how == "linked/b.png" else 1
    assert f"row 4, column 'image': {name!r} is the file {first!r}, which is in row {row} already" in str(raised.value)


def test_a_class_is_one_whatever_the_composition_of_its_name(folder: Path) -> None:
    table = write(folder, PATHS.replace("Garlic,train", "Cre\u0300me,train"))
    taxonomy = read_taxonomy(table)
    assert "Cr\u00e8me" in taxonomy.names
    other = write(folder, PATHS.replace("Fruit/Apple/Gala,test", "Cr\u00e8me,test"), "other.csv")
    assert read_split(other, "test", taxonomy).images == ("d.png",)


def test_a_table_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "latin.csv").write_bytes(PATHS.replace("Garlic", "Cr\u00e8me").encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv: can't read it as CSV in UTF-8"):
        read_table(folder / "latin.csv")
