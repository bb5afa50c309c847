from pathlib import Path

import pytest
from PIL import Image

from protoserve.data.dataset import hold_out, read_novel, read_split, read_taxonomy
from protoserve.errors import InputError, TaxonomyError


def add(root, folder, count=1) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / folder / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path):
    for leaf in ("Fruit/Apple", "Fruit/Lemon", "Garlic"):
        add(tmp_path, f"train/{leaf}", 10)
    add(tmp_path, "val/Garlic", 2)
    return tmp_path


def test_images_are_known_by_their_path_and_leaf(root) -> None:
    taxonomy = read_taxonomy(root)
    dataset = read_split(root, "train", taxonomy, every_leaf=True)
    assert len(dataset) == 30
    for image, leaf in zip(dataset.images, dataset.leaves, strict=True):
        assert image.startswith(f"train/{taxonomy.names[taxonomy.leaves[leaf]]}/")


def test_a_split_may_cover_a_part_of_the_leaves_but_train_may_not(root) -> None:
    taxonomy = read_taxonomy(root)
    assert len(read_split(root, "val", taxonomy)) == 2
    with pytest.raises(TaxonomyError, match="leaf 'Fruit/Apple' has no images"):
        read_split(root, "val", taxonomy, every_leaf=True)


def test_a_level_that_tells_nothing_apart_may_be_there_or_not(root) -> None:
    add(root, "test/Bulbs/Garlic", 2)
    dataset = read_split(root, "test", read_taxonomy(root))
    assert dataset.renamed == (("Bulbs/Garlic", "Garlic"),)
    assert [dataset.taxonomy.names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves] == ["Garlic"] * 2


def test_a_parent_of_the_taxonomy_is_never_skipped(root) -> None:
    # Garlic below Fruit is another class than Garlic, although Fruit has one child in this split.
    add(root, "test/Fruit/Garlic", 2)
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Garlic'"):
        read_split(root, "test", read_taxonomy(root))


def test_an_unknown_class_is_named_with_the_nearest_known_one(root) -> None:
    add(root, "test/Fruit/Aple")
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Aple'; did you mean 'Fruit/Apple'"):
        read_split(root, "test", read_taxonomy(root))


def test_a_missing_split_and_a_missing_folder_are_named(root) -> None:
    with pytest.raises(InputError, match="no split 'vall'; did you mean 'val'"):
        read_split(root, "vall", read_taxonomy(root))
    with pytest.raises(InputError, match="no such folder"):
        read_taxonomy(root / "nowhere")
    with pytest.raises(InputError, match="holds no folder 'train'"):
        read_taxonomy(root / "val")


def test_held_out_images_are_a_share_of_every_leaf_and_depend_on_the_seed_alone(root) -> None:
    dataset = read_split(root, "train", read_taxonomy(root))
    rest, held = hold_out(dataset, 0.2, seed=3)
    assert sorted(rest.images + held.images) == sorted(dataset.images)
    assert [int((held.leaves == leaf).sum()) for leaf in range(3)] == [2, 2, 2]
    shuffled = dataset.subset(list(reversed(range(len(dataset)))))
    assert set(hold_out(shuffled, 0.2, seed=3)[1].images) == set(held.images)
    assert set(hold_out(dataset, 0.2, seed=4)[1].images) != set(held.images)
    assert len(hold_out(dataset, 0.0, seed=3)[1]) == 0


def test_the_fingerprint_sees_content_and_labels(root) -> None:
    taxonomy = read_taxonomy(root)
    before = read_split(root, "train", taxonomy).fingerprint()
    assert read_split(root, "train", taxonomy).fingerprint() == before
    Image.new("RGB", (4, 4), (99, 99, 99)).save(root / "train/Garlic/0.png")
    assert read_split(root, "train", taxonomy).fingerprint() != before


def test_a_taxonomy_file_over_flat_folders(tmp_path: Path) -> None:
    for leaf in ("gibbon", "lion"):
        add(tmp_path, f"train/{leaf}")
    (tmp_path / "taxonomy.yaml").write_text("animal:\n  ape:\n    gibbon:\n  cat:\n    lion:\n")
    dataset = read_split(tmp_path, "train", read_taxonomy(tmp_path), every_leaf=True)
    names = dataset.taxonomy.names
    assert [names[dataset.taxonomy.leaves[leaf]] for leaf in dataset.leaves] == [
        "animal/ape/gibbon",
        "animal/cat/lion",
    ]


LEFT_OUT = {"Fruit/Lemon": "Fruit/Lemon"}


def test_images_of_a_left_out_leaf_are_passed_over(root) -> None:
    taxonomy = read_taxonomy(root).without(LEFT_OUT)
    dataset = read_split(root, "train", taxonomy, left_out=LEFT_OUT, every_leaf=True)
    assert len(dataset) == 20
    assert not any("Lemon" in image for image in dataset.images)
    with pytest.raises(TaxonomyError, match="no leaf 'Fruit/Lemon'"):
        read_split(root, "train", taxonomy)


def test_a_left_out_leaf_is_known_by_another_path_too(root) -> None:
    add(root, "val/Citrus/Garlic")
    taxonomy = read_taxonomy(root).without(["Garlic"])
    add(root, "val/Fruit/Apple")
    (root / "val/Garlic/0.png").unlink()
    (root / "val/Garlic/1.png").unlink()
    (root / "val/Garlic").rmdir()
    dataset = read_split(root, "val", taxonomy, left_out={"Garlic": "Garlic"})
    assert dataset.images == ("val/Fruit/Apple/0.png",)
    assert dataset.renamed == ()


def ancestors(novel, taxonomy):
    names = ["the root" if node < 0 else taxonomy.names[node] for node in novel.ancestor]
    return dict(zip(novel.images, names, strict=True))


def test_the_data_set_itself_holds_the_novel_images_of_left_out_leaves(root) -> None:
    taxonomy = read_taxonomy(root).without(LEFT_OUT)
    novel = read_novel(root, "train", taxonomy, LEFT_OUT)
    assert len(novel) == 10 and novel.passed_over == 20
    assert set(ancestors(novel, taxonomy).values()) == {"Fruit"}
    assert novel.picture(0).width == 4


def test_novel_folders_are_placed_as_far_as_they_are_known(root, tmp_path: Path) -> None:
    taxonomy = read_taxonomy(root)
    other = tmp_path / "other"
    for folder in ("Fruit/Pear/Anjou", "Fruit", "Bicycle", "Tool/Saw", "Fruit/Apple", "Fruit/Apple/Bitten", ".hidden"):
        add(other, folder)
    novel = read_novel(other, "test", taxonomy)
    assert ancestors(novel, taxonomy) == {
        "Fruit/Pear/Anjou/0.png": "Fruit",
        "Fruit/0.png": "Fruit",
        "Bicycle/0.png": "the root",
        "Tool/Saw/0.png": "the root",
    }
    # A known leaf, and what lies within it.
    assert novel.passed_over == 2


def test_a_taxonomy_file_says_where_flat_novel_folders_belong(tmp_path: Path) -> None:
    for leaf in ("gibbon", "lion", "tiger", "axe"):
        add(tmp_path, f"test/{leaf}")
    (tmp_path / "taxonomy.yaml").write_text("animal:\n  ape:\n    gibbon:\n  cat:\n    lion:\n    tiger:\naxe:\n")
    whole = read_taxonomy(tmp_path)
    taxonomy = whole.without(["animal/cat/tiger"])
    for left_out in ({"animal/cat/tiger": "tiger"}, None):
        novel = read_novel(tmp_path, "test", taxonomy, left_out)
        assert ancestors(novel, taxonomy) == {"test/tiger/0.png": "animal/cat"}
    (tmp_path / "taxonomy.yaml").unlink()
    novel = read_novel(tmp_path, "test", taxonomy, {"animal/cat/tiger": "tiger"})
    assert ancestors(novel, taxonomy) == {"test/tiger/0.png": "animal/cat"}


def test_a_folder_without_anything_novel_is_refused(root, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image of a class that the taxonomy lacks \(30 of known ones\)"):
        read_novel(root, "train", read_taxonomy(root))
    with pytest.raises(InputError, match="no such folder"):
        read_novel(tmp_path / "nowhere", "train", read_taxonomy(root))
