"""IDX files: their arrays, and the data sets that pairs of them form."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from protoserve.data.dataset import hold_out, holds_split, read_split, read_taxonomy
from protoserve.data.idx import holds_idx, read_idx, read_idx_split
from protoserve.errors import InputError, TaxonomyError
from protoserve.taxonomy import Taxonomy
from tests.idx import IDX_TREE


def header(*shape: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_array_comes_back_as_it_was_written(zipped: bool, tmp_path: Path) -> None:
    content = header(2, 3, 4) + bytes(range(24))
    file = tmp_path / "images"
    file.write_bytes(gzip.compress(content) if zipped else content)
    found = read_idx(file, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.arange(24).reshape(2, 3, 4))


WHOLE = header(2, 3) + bytes(6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "starts with nothing, so it is not an IDX file"),
        (b"\x89PNG\r\n\x1a\n", "starts with 89 50 4e 47, so it is not an IDX file"),
        (header(2, 3, kind=0x0D) + bytes(24), "holds values of type 13 in 2 dimensions; expected type 8"),
        (header(6) + bytes(6), "in 1 dimensions; expected type 8 (unsigned byte) in 2"),
        (WHOLE[:9], "ends within its header"),
        (WHOLE[:-1], "announces 2 × 3 bytes, but it holds 5"),
        (WHOLE + b"\0", "announces 2 × 3 bytes, but it holds more"),
        (header(2**32 - 1, 2**32 - 1), "the file is damaged"),
        (gzip.compress(WHOLE)[:-9], "can't read it"),
        (gzip.compress(WHOLE)[:-8] + bytes(8), "can't read it"),
    ],
    ids=["empty", "picture", "floats", "dimensions", "header", "short", "long", "huge", "torn", "checksum"],
)
def test_a_damaged_file_is_refused_with_its_fault(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_idx(file, 2)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_pictures_and_labels_must_belong_together(tiny_idx: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_idx, tmp_path / "idx")
    shutil.copyfile(root / "t10k-labels-idx1-ubyte.gz", root / "train-labels-idx1-ubyte.gz")
    with pytest.raises(InputError, match=r"200 pictures and train-labels-idx1-ubyte\.gz 40 labels"):
        read_idx_split(root, "train")
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz is missing"):
        read_idx_split(root, "train")


def test_the_other_usual_names_are_found_too(tiny_idx: Path, tmp_path: Path) -> None:
    for name in ("images-idx3", "labels-idx1"):
        content = gzip.decompress((tiny_idx / f"train-{name}-ubyte.gz").read_bytes())
        (tmp_path / f"train-{name.replace('-', '.')}-ubyte").write_bytes(content)
    assert holds_idx(tmp_path)
    assert len(read_split(tmp_path, "train", read_taxonomy(tmp_path))) == 200


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files_have_their_published_sizes(name: str) -> None:
    folder = Path(os.environ.get("PROTOSERVE_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")) / name
    if not holds_idx(folder):
        pytest.skip(f"there is no {name} in {folder.parent}; PROTOSERVE_DATA names the folder that holds it")
    images, labels = read_idx_split(folder, "test")
    assert images.shape == (10_000, 28, 28)
    counts = np.bincount(labels).tolist()
    # MNIST's test split has so many of each digit (LeCun et al.); Fashion-MNIST is balanced (Xiao et al. 2017).
    expected = {"mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009], "fashion-mnist": [1000] * 10}
    assert counts == expected[name]


# ---- as a data set -------------------------------------------------------------------------------------------


def test_labels_are_the_leaves(tiny_idx: Path) -> None:
    taxonomy = read_taxonomy(tiny_idx)
    assert taxonomy.names == ("0", "1", "2", "3")
    dataset = read_split(tiny_idx, "test", taxonomy)
    pixels, labels = read_idx_split(tiny_idx, "test")
    np.testing.assert_array_equal(dataset.leaves, labels)
    assert dataset.images[5] == "test/1/00005"
    assert dataset.index("test/1/00005") == 5
    # Grey, in all three colours.
    np.testing.assert_array_equal(np.asarray(dataset.picture(5).picture), np.repeat(pixels[5][:, :, None], 3, axis=2))


def test_splits_are_those_whose_files_are_there(tiny_idx: Path, tmp_path: Path) -> None:
    assert [holds_split(tiny_idx, split) for split in ("train", "val", "test")] == [True, False, True]
    with pytest.raises(InputError, match="no split 'val'; a data set of IDX files has train, test"):
        read_split(tiny_idx, "val", read_taxonomy(tiny_idx))
    root = shutil.copytree(tiny_idx, tmp_path / "idx")
    (root / "t10k-images-idx3-ubyte.gz").unlink()
    assert not holds_split(root, "test")


def test_parts_and_sums_keep_pictures_with_their_labels(tiny_idx: Path) -> None:
    dataset = read_split(tiny_idx, "train", read_taxonomy(tiny_idx))
    rest, held = hold_out(dataset, 0.2, seed=1)
    assert (len(rest), len(held)) == (160, 40)
    for part in (rest, held, held.joined(rest)):
        for number in (0, len(part) - 1):
            original = dataset.index(part.images[number])
            assert part.leaves[number] == dataset.leaves[original]
            np.testing.assert_array_equal(
                np.asarray(part.picture(number).picture), np.asarray(dataset.picture(original).picture)
            )


def test_the_fingerprint_changes_with_one_pixel(tiny_idx: Path) -> None:
    dataset = read_split(tiny_idx, "test", read_taxonomy(tiny_idx))
    before = dataset.fingerprint()
    assert read_split(tiny_idx, "test", read_taxonomy(tiny_idx)).fingerprint() == before
    assert dataset.pixels is not None
    dataset.pixels[7, 3, 2] ^= 1
    assert dataset.fingerprint() != before


def test_a_taxonomy_names_labels_and_puts_them_in_a_tree(tiny_idx: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_idx, tmp_path / "idx")
    (root / "taxonomy.yaml").write_text(IDX_TREE)
    taxonomy = read_taxonomy(root)
    dataset = read_split(root, "test", taxonomy)
    _, labels = read_idx_split(root, "test")
    names = {0: "Dark/Nought", 1: "Bright/One", 2: "Bright/Two", 3: "Three"}
    for number in range(len(dataset)):
        assert taxonomy.names[taxonomy.leaves[dataset.leaves[number]]] == names[int(labels[number])]


def test_a_taxonomy_of_idx_files_maps_names_to_labels(tiny_idx: Path, tmp_path: Path) -> None:
    root = shutil.copytree(tiny_idx, tmp_path / "idx")
    (root / "taxonomy.yaml").write_text("Nought:\nOne:\n")
    with pytest.raises(TaxonomyError, match=r"'Nought' has the folder 'Nought'.*write for example Nought: \"0\""):
        read_split(root, "train", read_taxonomy(root))
    (root / "taxonomy.yaml").write_text(IDX_TREE.replace('Three: "3"', ""))
    with pytest.raises(TaxonomyError, match="images of the class 3, but the taxonomy has no such leaf"):
        read_split(root, "train", read_taxonomy(root))
    (root / "taxonomy.yaml").write_text(IDX_TREE + 'Four: "4"\n')
    with pytest.raises(TaxonomyError, match="leaf 'Four' has no images of the class 4"):
        read_split(root, "train", read_taxonomy(root), every_leaf=True)


def test_left_out_leaves_are_skipped(tiny_idx: Path) -> None:
    taxonomy = Taxonomy.from_paths(["0", "2", "3"])
    dataset = read_split(tiny_idx, "train", taxonomy, left_out={"1": "1"}, every_leaf=True)
    assert len(dataset) == 150
    assert not any(image.startswith("train/1/") for image in dataset.images)
    assert np.bincount(dataset.leaves).tolist() == [50, 50, 50]
