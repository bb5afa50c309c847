"""The commands that need only bundles: their output, their failures, and ensembles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import protoserve
from protoserve.bundle.folder import read_bundle
from protoserve.cli.root import main
from protoserve.schema import Prediction
from tests.protoserve.cli.command_line import CommandLine

# ---- predict ---------------------------------------------------------------------------------------------------------


def test_predict_json_is_the_prediction_and_nothing_else(
    tiny_bundle: Path, photograph: Path, protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command("predict", tiny_bundle, photograph, "--top-k", "2", "--json", "--device", "cpu")
    assert code == 0 and err == ""
    expected = protoserve.load(tiny_bundle, device="cpu").predict(photograph, top_k=2)
    assert Prediction.model_validate_json(out) == expected
    assert json.loads(out) == json.loads(expected.model_dump_json())


def test_predict_json_of_several_images_is_a_list(
    tiny_bundle: Path, photograph: Path, protoserve_command: CommandLine
) -> None:
    arguments = ["predict", tiny_bundle, *[photograph] * 3, "--maps", "--alternatives", "0", "--json"]
    code, out, _ = protoserve_command(*arguments)
    document = json.loads(out)
    assert code == 0 and len(document) == 3 and document[0] == document[2]
    level = document[0]["levels"][0]
    assert level["alternatives"] == [] and len(level["evidence"][0]["map"]) == 8


def test_predict_prints_a_readable_tree(tiny_bundle: Path, photograph: Path, protoserve_command: CommandLine) -> None:
    code, out, err = protoserve_command("predict", tiny_bundle, photograph, photograph, "--top-k", "1")
    prediction = protoserve.load(tiny_bundle).predict(photograph, top_k=1)
    assert code == 0 and err == ""
    assert out.count("200 × 150 pixels") == 2
    for level in prediction.levels:
        assert f"{level.label}  {level.probability:.1%}" in out
        if level.evidence or level.against:
            assert f"score {level.logit:.2f} = {level.prior:+.2f} prior" in out
        for evidence in (*level.evidence, *level.against):
            assert f"prototype {evidence.prototype}" in out
            factors = f"{evidence.weight:.2f} × ({evidence.similarity:.2f} - {evidence.usual:.2f})"
            assert f"{evidence.contribution:+.2f} = {factors}" in out
    assert any(level.against for level in prediction.levels)
    assert max(map(len, out.splitlines())) < 400 and not any(line.endswith("  ") for line in out.splitlines())


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_json(tiny_bundle: Path, protoserve_command: CommandLine) -> None:
    code, out, err = protoserve_command("inspect", tiny_bundle, "--json")
    document = json.loads(out)
    manifest = read_bundle(tiny_bundle).manifest
    assert code == 0 and err == ""
    assert (document["name"], document["version"], document["kind"]) == (
        "tiny",
        manifest.version,
        "hierarchical",
    )
    taxonomy = document["taxonomy"]
    assert (taxonomy["leaves"], taxonomy["depth"]) == (5, 3)
    assert sum(taxonomy["prototypes"].values()) == len(manifest.prototypes)
    assert taxonomy["prototypes"]["Tool/Blade/Knife"] == 0
    assert document["files"]["model.onnx"] == (tiny_bundle / "model.onnx").stat().st_size
    assert document["input"] == {
        "height": 64,
        "width": 96,
        "resize": "stretch",
        "share": 1.0,
        "interpolation": "bilinear-antialiased",
    }
    assert document["metrics"] == manifest.metrics.model_dump()


def test_inspect_for_people(tiny_bundle: Path, protoserve_command: CommandLine) -> None:
    code, out, err = protoserve_command("inspect", tiny_bundle)
    assert code == 0 and err == "" and out.count("\n") <= 24
    assert "Animal  3 leaves" in out and "--all shows" in out and "Orangutan" not in out
    code, out, err = protoserve_command("inspect", tiny_bundle, "--all")
    assert code == 0 and err == ""
    for expected in (
        "tiny",
        "hierarchical",
        "Orangutan  3 prototypes",
        "model.onnx",
        "96 × 64 pixels",
        "leaf: 0.2",
    ):
        assert expected in out


# ---- failures --------------------------------------------------------------------------------------------------------


def test_bad_input_gives_one_clear_line_and_exit_code_2(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    (tmp_path / "half.jpg").write_bytes(photograph.read_bytes()[:900])
    (tmp_path / "empty").mkdir()
    torn = tmp_path / "torn"
    shutil.copytree(tiny_bundle, torn)
    (torn / "model.onnx").write_bytes(b"x")
    figure = tmp_path / "figure.png"
    for image, message in [
        (tmp_path / "gone.jpg", "gone.jpg: no such image"),
        (tmp_path / "notes.jpg", "notes.jpg is not a picture"),
        (tmp_path / "half.jpg", "half.jpg is damaged or truncated"),
    ]:
        for arguments in (
            ["predict", tiny_bundle, image, "--json"],
            ["explain", tiny_bundle, image, "-o", figure],
        ):
            code, out, err = protoserve_command(*arguments)
            assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1
    code, out, err = protoserve_command("predict", tiny_bundle, tmp_path / "empty")
    assert (code, out) == (2, "") and "is a folder; give an image file" in err
    for bundle, message in [
        (tmp_path / "nothing", "no such bundle"),
        (tmp_path / "empty", "manifest.json is missing"),
        (photograph, "no such bundle"),
        (torn, "model.onnx does not match SHA256SUMS"),
    ]:
        for arguments in (
            ["predict", bundle, photograph, "--json"],
            ["explain", bundle, photograph, "-o", figure],
            ["inspect", bundle, "--json"],
        ):
            code, out, err = protoserve_command(*arguments)
            assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not figure.exists()


@pytest.mark.parametrize("options", [["--top-k", "99"], ["--top-k", "-1"], ["--alternatives", "-1"]])
def test_choices_out_of_range(
    tiny_bundle: Path, photograph: Path, options: list[str], protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command("predict", tiny_bundle, photograph, *options)
    assert (code, out) == (2, "") and err.startswith("error: ") and "not " in err


# ---- ensembles -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, twin_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ensembles") / "both"
    with pytest.raises(SystemExit) as stop:
        main(["ensemble", str(directory), str(tiny_bundle), str(twin_bundle), "--name", "both"])
    assert stop.value.code == 0
    return directory


def test_named_one_by_one_or_as_a_folder_the_answer_is_the_same(
    tiny_bundle: Path, twin_bundle: Path, folder: Path, photograph: Path, protoserve_command: CommandLine
) -> None:
    choices = ("--json", "--device", "cpu", "--top-k", "4")
    code, out, err = protoserve_command("predict", tiny_bundle, photograph, "--with", twin_bundle, *choices)
    assert (code, err) == (0, "")
    document = json.loads(out)
    expected = protoserve.load([tiny_bundle, twin_bundle], device="cpu").predict(photograph, top_k=4)
    assert document == json.loads(expected.model_dump_json())
    assert {evidence["member"] for level in document["levels"] for evidence in level["evidence"]} == {0, 1}
    code, out, _ = protoserve_command("predict", folder, photograph, *choices)
    assert code == 0
    assert document["model"].pop("name") == "tiny+twin"
    again = json.loads(out)
    assert again["model"].pop("name") == "both"
    assert again == document


def test_the_terminal_names_the_member_of_a_prototype(
    folder: Path, photograph: Path, tmp_path: Path, protoserve_command: CommandLine
) -> None:
    code, out, _ = protoserve_command("predict", folder, photograph, "--device", "cpu")
    assert code == 0 and " of member 0" in out and " of member 1" in out
    figure = tmp_path / "figure.png"
    code, _, _ = protoserve_command("explain", folder, photograph, "-o", figure, "--device", "cpu")
    assert code == 0
    with Image.open(figure) as picture:
        assert picture.width == 1200


def test_inspect_shows_every_member(
    tiny_bundle: Path, twin_bundle: Path, folder: Path, protoserve_command: CommandLine
) -> None:
    code, out, _ = protoserve_command("inspect", folder, "--json")
    document = json.loads(out)
    assert code == 0 and [member["name"] for member in document["members"]] == ["tiny", "twin"]
    count = document["members"][0]["graph"]["prototypes"]
    assert [member["first_prototype"] for member in document["members"]] == [0, count]
    code, out, _ = protoserve_command("inspect", tiny_bundle, "--with", twin_bundle)
    assert code == 0 and f"member 1, its prototypes numbered from {count}" in out


def test_validate_scores_the_ensemble(
    tiny_bundle: Path, twin_bundle: Path, folder: Path, tmp_path: Path, protoserve_command: CommandLine
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
        code, out, err = protoserve_command("validate", *bundles, *options)
        assert code == 0, err
        assert json.loads(out)["accuracy"]["leaf"] == pytest.approx(right / (right + wrong))


def leaf_names(model: protoserve.Classifier) -> list[str]:
    return [model.taxonomy.names[leaf] for leaf in model.taxonomy.leaves]


def test_bundles_that_do_not_fit_cost_one_line(
    tiny_bundle: Path, photograph: Path, protoserve_command: CommandLine
) -> None:
    code, out, err = protoserve_command("predict", tiny_bundle, photograph, "--with", tiny_bundle)
    assert (code, out) == (2, "") and "are the same bundle; give each member once" in err
    assert err.count("\n") == 1
    code, _, err = protoserve_command("predict", tiny_bundle, photograph, "--with", "nowhere")
    assert code == 2 and "nowhere: no such bundle" in err
