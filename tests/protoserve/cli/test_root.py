"""The commands that need only a bundle: what they print, where, and how they fail."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from PIL import Image

import protoserve
from protoserve.bundle.folder import read_bundle
from protoserve.cli import root
from protoserve.cli.root import main
from protoserve.schema import Prediction

Captured = pytest.CaptureFixture[str]


def run(arguments: Sequence[object], captured: Captured) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    output = captured.readouterr()
    code = stop.value.code
    assert isinstance(code, int)
    return code, output.out, output.err


def process(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


# ---- predict -----------------------------------------------------------------------------------------------


def test_predict_json_is_the_prediction_and_nothing_else(tiny_bundle: Path, photograph: Path, capsys: Captured) -> None:
    code, out, err = run(["predict", tiny_bundle, photograph, "--top-k", "2", "--json", "--device", "cpu"], capsys)
    assert code == 0 and err == ""
    expected = protoserve.load(tiny_bundle, device="cpu").predict(photograph, top_k=2)
    assert Prediction.model_validate_json(out) == expected
    assert json.loads(out) == json.loads(expected.model_dump_json())


def test_predict_json_of_several_images_is_a_list(tiny_bundle: Path, photograph: Path, capsys: Captured) -> None:
    arguments = ["predict", tiny_bundle, *[photograph] * 3, "--maps", "--alternatives", "0", "--json"]
    code, out, _ = run(arguments, capsys)
    document = json.loads(out)
    assert code == 0 and len(document) == 3 and document[0] == document[2]
    level = document[0]["levels"][0]
    assert level["alternatives"] == [] and len(level["evidence"][0]["map"]) == 8


def test_predict_prints_a_readable_tree(tiny_bundle: Path, photograph: Path, capsys: Captured) -> None:
    code, out, err = run(["predict", tiny_bundle, photograph, photograph, "--top-k", "1"], capsys)
    prediction = protoserve.load(tiny_bundle).predict(photograph, top_k=1)
    assert code == 0 and err == ""
    assert out.count("200 × 150 pixels") == 2
    for level in prediction.levels:
        assert f"{level.label}  {level.probability:.1%}" in out
        for evidence in level.evidence:
            assert f"prototype {evidence.prototype}" in out
            assert f"{evidence.contribution:+.2f} = {evidence.similarity:.2f} × {evidence.weight:.2f}" in out
    assert max(map(len, out.splitlines())) < 400 and not any(line.endswith("  ") for line in out.splitlines())


def test_a_label_with_brackets_is_printed_as_it_is(photograph: Path) -> None:
    from rich.console import Console

    from protoserve.cli.terminal import prediction_tree
    from protoserve.schema import ImageSize, Level, ModelReference

    level = Level(level=1, node="[bold]x[/]", label="[bold]x[/]", probability=1.0, conditional=1.0)
    prediction = Prediction(
        model=ModelReference(name="m", version="v"),
        image=ImageSize(width=1, height=1),
        path=["x"],
        levels=[level],
    )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(prediction_tree(photograph, prediction))
    assert "[bold]x[/]  100.0%" in captured.get()


# ---- explain -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.webp"])
def test_explain_writes_a_whole_figure(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, name: str, capsys: Captured
) -> None:
    output = tmp_path / name
    output.write_bytes(b"something older")
    code, out, err = run(["explain", tiny_bundle, photograph, "-o", output, "--top-k", "1"], capsys)
    assert code == 0 and err == "" and str(output) in out
    with Image.open(output) as figure:
        figure.load()
        assert figure.width == 1200
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_explain_never_leaves_or_harms_a_file_on_failure(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "older.png").write_bytes(b"older")
    (tmp_path / "notes.jpg").write_text("no picture")
    own = tmp_path / "own.jpg"
    shutil.copy(photograph, own)
    before = own.read_bytes()
    for image, output, message in [
        (photograph, tmp_path / "figure.pdf", "can't write a figure as '.pdf'"),
        (photograph, tmp_path / "figure", "can't write a figure"),
        (photograph, tmp_path / "nowhere" / "figure.png", "no such folder"),
        (tmp_path / "notes.jpg", tmp_path / "older.png", "is not a picture"),
        (own, own, "the image itself"),
    ]:
        code, out, err = run(["explain", tiny_bundle, image, "-o", output], capsys)
        assert (code, out) == (2, "") and message in err
    assert (tmp_path / "older.png").read_bytes() == b"older" and own.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.jpg", "older.png", "own.jpg"]


# ---- inspect -----------------------------------------------------------------------------------------------


def test_inspect_json(tiny_bundle: Path, capsys: Captured) -> None:
    code, out, err = run(["inspect", tiny_bundle, "--json"], capsys)
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


def test_inspect_for_people(tiny_bundle: Path, capsys: Captured) -> None:
    code, out, err = run(["inspect", tiny_bundle], capsys)
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


# ---- failures ----------------------------------------------------------------------------------------------


def test_bad_input_gives_one_clear_line_and_exit_code_2(
    tiny_bundle: Path, photograph: Path, tmp_path: Path, capsys: Captured
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
        (tmp_path / "empty", "is a folder; give an image file"),
        (tmp_path / "notes.jpg", "notes.jpg is not a picture"),
        (tmp_path / "half.jpg", "half.jpg is damaged or truncated"),
    ]:
        for arguments in (
            ["predict", tiny_bundle, image, "--json"],
            ["explain", tiny_bundle, image, "-o", figure],
        ):
            code, out, err = run(arguments, capsys)
            assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1
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
            code, out, err = run(arguments, capsys)
            assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not figure.exists()


@pytest.mark.parametrize("options", [["--top-k", "99"], ["--top-k", "-1"], ["--alternatives", "-1"]])
def test_choices_out_of_range(tiny_bundle: Path, photograph: Path, options: list[str], capsys: Captured) -> None:
    code, out, err = run(["predict", tiny_bundle, photograph, *options], capsys)
    assert (code, out) == (2, "") and err.startswith("error: ") and "not " in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict"],
        ["predict", "bundle"],
        ["predict", "bundle", "image", "--top-k", "many"],
        ["predict", "bundle", "image", "--device", "tpu"],
        ["explain", "bundle", "image"],
        ["inspect"],
        ["inspect", "bundle", "--yaml"],
        ["pretend"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: Captured) -> None:
    code, out, err = run(arguments, capsys)
    assert (code, out) == (2, "") and "Usage" in err and "Traceback" not in err


def test_version_and_help(capsys: Captured) -> None:
    assert run(["--version"], capsys) == (0, f"protoserve {protoserve.__version__}\n", "")
    for command in ("predict", "explain", "inspect"):
        code, out, _ = run([command, "--help"], capsys)
        assert code == 0 and f"Example: protoserve {command} bundles/" in out


# ---- other packages' commands --------------------------------------------------------------------------------

PROJECT = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Read from the project's file, not from the code under test.
DECLARED = sorted(PROJECT["entry-points"]["protoserve.commands"])


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, code: str) -> None:
    """Install one command: a module with a function `run`, found through the entry point `name`."""
    module = f"module_{name.replace('.', '_')}_{abs(hash(code))}"
    (folder / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    installed = [EntryPoint(name=name, value=f"{module}:run", group=root.ENTRY_POINTS)]
    monkeypatch.setattr(root, "entry_points", lambda group: installed)


def command(body: str) -> str:
    """A module with one command."""
    return f"def run() -> None:\n    {body}\n"


def test_every_command_has_its_entry_point(capsys: Captured) -> None:
    words = [name.split(".")[1:] for name in DECLARED]
    assert ["report"] in words and ["ablate"] in words and ["data", "render"] in words
    for path in words:
        code, out, _ = run([*path, "--help"], capsys)
        assert code == 0 and f"Usage: protoserve {' '.join(path)} " in out and "Needs the extra" not in out


def test_help_lists_the_commands_of_all_packages(capsys: Captured) -> None:
    _, out, _ = run(["--help"], capsys)
    listed = [line.split()[1] for line in out.splitlines() if line.startswith("│ ") and len(line.split()) > 2]
    assert {name.split(".")[1] for name in DECLARED} | {"predict", "explain", "inspect"} <= set(listed)


def test_an_installed_command_is_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    install(monkeypatch, tmp_path, "train.sing", command("print('la')"))
    assert run(["sing"], capsys) == (0, "la\n", "")


@pytest.mark.parametrize("name", DECLARED)
def test_a_command_without_its_extra_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path, capsys: Captured
) -> None:
    install(monkeypatch, tmp_path, name, "import library_that_nobody_has\n")
    extra, *words = name.split(".")
    code, out, err = run([*words, "runs/grocery", "--seed", "1"], capsys)
    assert (code, out) == (2, "") and f"pip install 'protoserve[{extra}]'" in err
    assert f"'protoserve {' '.join(words)}'" in err and "library_that_nobody_has" in err
    assert run(["inspect", tiny_bundle, "--json"], capsys)[0] == 0


@pytest.mark.parametrize("name", [name for name in DECLARED if name.count(".") == 1])
def test_an_extra_that_is_missing_only_when_the_command_runs(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured
) -> None:
    install(monkeypatch, tmp_path, name, command("import library_that_nobody_has"))
    extra, word = name.split(".")
    status, out, err = run([word], capsys)
    assert (status, out) == (2, "") and f"pip install 'protoserve[{extra}]'" in err


@pytest.mark.parametrize("command", [["report"], ["ablate", "--data", "d", "--out", "o"]])
def test_report_and_ablate_without_the_extra_train_end_in_one_line(command: list[str], tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "model.pt").touch()
    code = (
        "import sys\n"
        "for library in ('torch', 'torchvision', 'jinja2', 'matplotlib', 'sklearn', 'ruamel', 'ruamel.yaml'):\n"
        "    sys.modules[library] = None\n"
        "from protoserve.cli.root import main\nmain()"
    )
    finished = process(code, command[0], run_folder, *command[1:])
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and "pip install 'protoserve[train]'" in finished.stderr


def test_a_mistake_in_our_own_imports_is_not_blamed_on_an_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "train.train", command("import protoserve.absent"))
    with pytest.raises(ModuleNotFoundError, match=r"protoserve\.absent"):
        main(["train"])


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Captured) -> None:
    install(monkeypatch, tmp_path, "train.train", command("raise KeyboardInterrupt"))
    status, out, err = run(["train"], capsys)
    assert (status, out) == (130, "") and "Traceback" not in err


# ---- as a process ------------------------------------------------------------------------------------------

MAIN = "from protoserve.cli.root import main; main()"


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom protoserve.cli.root import main\n"
        "try:\n    main(['predict', '--help'])\nexcept SystemExit:\n"
        "    print(sorted(set(sys.modules) & {'torch', 'bentoml', 'onnxruntime'}), file=sys.stderr)"
    )
    finished = process(code)
    assert finished.returncode == 0 and finished.stderr == "[]\n"


def test_predict_needs_no_torch(tiny_bundle: Path, photograph: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nfrom protoserve.cli.root import main\n"
        f"main(['predict', {str(tiny_bundle)!r}, {str(photograph)!r}, '--json', '--device', 'cpu'])"
    )
    finished = process(code)
    assert finished.returncode == 0, finished.stderr
    assert Prediction.model_validate_json(finished.stdout).path


def test_errors_of_a_real_process(tiny_bundle: Path, tmp_path: Path) -> None:
    finished = process(MAIN, "predict", tiny_bundle, tmp_path / "gone.jpg", "--json")
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr == f"error: {tmp_path / 'gone.jpg'}: no such image\n"


def test_a_closed_pipe_is_quiet(tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", MAIN, "inspect", str(tiny_bundle), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
