"""Several bundles on the command line: named one by one with `--with`, or as one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import protoserve
from protoserve.cli.root import main

Captured = pytest.CaptureFixture[str]


def run(captured: Captured, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    output = captured.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out, output.err


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, twin_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ensembles") / "both"
    with pytest.raises(SystemExit) as stop:
        main(["ensemble", str(directory), str(tiny_bundle), str(twin_bundle), "--name", "both"])
    assert stop.value.code == 0
    return directory


def test_named_one_by_one_or_as_a_folder_the_answer_is_the_same(
    tiny_bundle: Path, twin_bundle: Path, folder: Path, photograph: Path, capsys: Captured
) -> None:
    choices = ("--json", "--device", "cpu", "--top-k", "4")
    code, out, err = run(capsys, "predict", tiny_bundle, photograph, "--with", twin_bundle, *choices)
    assert (code, err) == (0, "")
    document = json.loads(out)
    expected = protoserve.load([tiny_bundle, twin_bundle], device="cpu").predict(photograph, top_k=4)
    assert document == json.loads(expected.model_dump_json())
    assert {evidence["member"] for level in document["levels"] for evidence in level["evidence"]} == {0, 1}
    code, out, _ = run(capsys, "predict", folder, photograph, *choices)
    assert code == 0
    assert document["model"].pop("name") == "tiny+twin"
    again = json.loads(out)
    assert again["model"].pop("name") == "both"
    assert again == document


def test_people_see_whose_a_prototype_is(folder: Path, photograph: Path, tmp_path: Path, capsys: Captured) -> None:
    code, out, _ = run(capsys, "predict", folder, photograph, "--device", "cpu")
    assert code == 0 and " of member 0" in out and " of member 1" in out
    figure = tmp_path / "figure.png"
    code, _, _ = run(capsys, "explain", folder, photograph, "-o", figure, "--device", "cpu")
    assert code == 0
    with Image.open(figure) as picture:
        assert picture.width == 1200


def test_inspect_shows_every_member(tiny_bundle: Path, twin_bundle: Path, folder: Path, capsys: Captured) -> None:
    code, out, _ = run(capsys, "inspect", folder, "--json")
    document = json.loads(out)
    assert code == 0 and [member["name"] for member in document["members"]] == ["tiny", "twin"]
    count = document["members"][0]["graph"]["prototypes"]
    assert [member["first_prototype"] for member in document["members"]] == [0, count]
    code, out, _ = run(capsys, "inspect", tiny_bundle, "--with", twin_bundle)
    assert code == 0 and f"member 1, its prototypes numbered from {count}" in out


def test_validate_scores_the_ensemble(
    tiny_bundle: Path, twin_bundle: Path, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    model = protoserve.load(folder, device="cpu")
    # Labelled by the ensemble itself, but for one picture.
    right = wrong = 0
    for number in range(6):
        picture = Image.effect_noise((96, 64), 20 + 20 * number).convert("RGB")
        leaf = "/".join(model.predict(picture).path)
        if number == 5:
            leaf, wrong = next(name for name in leaf_names(model) if name != leaf), 1
        (tmp_path / "test" / leaf).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "test" / leaf / f"{number}.png")
        right += number < 5
    for leaf in leaf_names(model):
        (tmp_path / "train" / leaf).mkdir(parents=True)
        Image.new("RGB", (96, 64)).save(tmp_path / "train" / leaf / "0.png")
    options = ("--data", tmp_path, "--split", "test", "--device", "cpu", "--json")
    for bundles in ([folder], [tiny_bundle, "--with", twin_bundle]):
        code, out, err = run(capsys, "validate", *bundles, *options)
        assert code == 0, err
        assert json.loads(out)["accuracy"]["leaf"] == pytest.approx(right / (right + wrong))


def leaf_names(model: protoserve.Classifier) -> list[str]:
    return [model.taxonomy.names[leaf] for leaf in model.taxonomy.leaves]


def test_bundles_that_do_not_fit_cost_one_line(tiny_bundle: Path, photograph: Path, capsys: Captured) -> None:
    code, out, err = run(capsys, "predict", tiny_bundle, photograph, "--with", tiny_bundle)
    assert (code, out) == (2, "") and "are the same bundle; give each member once" in err
    assert err.count("\n") == 1
    code, _, err = run(capsys, "predict", tiny_bundle, photograph, "--with", "nowhere")
    assert code == 2 and "nowhere: no such bundle" in err
