"""The folder for browsers, and npm that is missing, slow or wrong. tests/e2e/test_browser.py runs the page."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.targets import web
from protoserve.bundle.folder import read_bundle
from protoserve.errors import InputError
from protoserve.graph_signature import named_arrays
from protoserve.images.geometry import Cells, InputRule, geometry_of
from protoserve.inference.evidence import predictions
from protoserve.inference.options import PredictOptions
from protoserve.replay.comparing import differences
from protoserve.taxonomy import Kind
from tests.protoserve.inference.random_heads import GEOMETRY, random_head


def test_web_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(InputError, match="install Node"):
        web.write_web(
            tmp_path / "model.onnx",
            tmp_path / "web" / "index.html",
            "{}",
            tmp_path / "pictures",
            np.zeros(3, dtype=np.float32),
        )


def test_an_npm_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexec sleep 60\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setattr(web, "TIMEOUT", 1)
    with pytest.raises(InputError, match=r"did not fetch onnxruntime-web@.+ within 1 s"):
        web.fetch_runtime(tmp_path)


def npm_that_packs(folder: Path, contents: dict[str, bytes]) -> Path:
    """An npm that packs these files, whatever its arguments."""
    package = folder / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\ncp "{package}" "$5"\n')
    npm.chmod(0o755)
    return npm


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = npm_that_packs(tmp_path, {"ort.wasm.bundle.min.mjs": b"changed"})
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    with pytest.raises(InputError, match="differs from the published one"):
        web.fetch_runtime(tmp_path)
    assert not (tmp_path / "ort.wasm.bundle.min.mjs").exists()


def test_the_folder_holds_the_graph_the_page_the_runtime_and_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    npm = npm_that_packs(tmp_path, {name: name.encode() for name in web.RUNTIME_FILES})
    digest = base64.b64encode(hashlib.sha512((tmp_path / "package.tgz").read_bytes()).digest()).decode()
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    monkeypatch.setattr(web, "RUNTIME_SHA512", digest)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "0000.webp").write_bytes(b"picture")
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    manifest = read_bundle(tiny_bundle).manifest
    document = web.web_document(manifest, '{"batch": 1}')
    folder = tmp_path / "web"
    weights = np.array([1.5, -0.25], dtype=np.float32)
    web.write_web(tmp_path / "graph.onnx", folder / "index.html", document, tmp_path / "pictures", weights)
    assert np.fromfile(folder / "weights.bin", dtype="<f4").tolist() == weights.tolist()
    assert "./contrast.mjs" in (folder / "page.mjs").read_text() and (folder / "contrast.mjs").is_file()
    assert (folder / "model.onnx").read_bytes() == b"graph"
    assert (folder / "prototypes" / "0000.webp").read_bytes() == b"picture"
    written = json.loads((folder / "model.json").read_text())
    assert written == {"manifest": json.loads(manifest.model_dump_json()), "options": {"batch": 1}}
    assert "page.mjs" in (folder / "index.html").read_text() and (folder / "page.mjs").is_file()
    assert "./geometry.mjs" in (folder / "page.mjs").read_text() and (folder / "geometry.mjs").is_file()
    for name in web.RUNTIME_FILES:
        assert (folder / name).read_bytes() == name.encode()


def test_the_page_computes_the_boxes_of_the_service(tmp_path: Path) -> None:
    """Of cells, of smoothed cells and of tiles, for every rule, up- and downscaled."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    generator = np.random.default_rng(0)
    asked: list[list[Any]] = []
    expected: list[list[list[int]]] = []
    for resize in ("stretch", "crop", "pad") * 100:
        tile, step, start = [(32, 16, 0), (32, 32, 0), (19, 8, -9)][int(generator.integers(3))]
        tiles = {"tile": tile, "tile_step": step, "tile_start": start}
        form: dict[str, int] = [{"smoothing": 1}, {"smoothing": 3}, tiles][len(asked) % 3]
        share = float(generator.choice([1.0, 0.875, 0.7])) if resize == "crop" else 1.0
        rule = InputRule(height=64, width=96, resize=resize, share=share)
        rows, columns = ((64 - tile) // step + 1, (96 - tile) // step + 1) if form.get("tile") == 32 else (8, 12)
        # Sizes at which scales are whole numbers, and others.
        width, height = generator.integers(1, 400, 2).tolist() if len(asked) % 2 else (96 * 2, 64 * 2)
        cells = Cells(
            rows,
            columns,
            form.get("smoothing", 1),
            form.get("tile"),
            form.get("tile_step"),
            start=form.get("tile_start", 0),
        )
        geometry = geometry_of(width, height, rule)
        asked.append([rule.model_dump(), width, height, {"rows": rows, "columns": columns, **form}])
        expected.append([list(geometry.cell_box(cell, cells)) for cell in range(rows * columns)])
    script = tmp_path / "boxes.mjs"
    module = (Path(web.__file__).parent / "geometry.mjs").as_uri()
    script.write_text(
        f"""import {{ box, geometry }} from {json.dumps(module)};
const boxes = {json.dumps(asked)}.map(([rule, width, height, graph]) =>
  Array.from({{ length: graph.rows * graph.columns }}, (_, cell) => box(geometry(rule, width, height), graph, cell)));
console.log(JSON.stringify(boxes));
"""
    )
    printed = subprocess.run([node, str(script)], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(printed) == expected


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_page_computes_the_seen_regions_of_the_service(resize: Any) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    rule, cells = InputRule(height=48, width=64, resize=resize), Cells(6, 8, reach=(10, 20))
    sizes = [(64, 48), (640, 480), (31, 47), (500, 333), (97, 1200), (2, 3)]
    graph = {"rows": 6, "columns": 8, "reach": cells.reach}
    module = (Path(web.__file__).parent / "geometry.mjs").as_uri()
    code = f"""import {{ geometry, seenBox }} from {json.dumps(module)};
const graph = {json.dumps(graph)}, rule = {rule.model_dump_json()};
const seen = {json.dumps(sizes)}.map(([width, height]) =>
  Array.from({{ length: 48 }}, (_, cell) => seenBox(geometry(rule, width, height), graph, cell)));
const without = [{{ ...graph, tile: 8 }}, {{ ...graph, reach: null }}].map((other) => seenBox([], other, 0));
console.log(JSON.stringify([seen, ...without]));
"""
    command = [node, "--input-type=module", "-e", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    expected = [[geometry_of(*size, rule).seen_box(cell, cells) for cell in range(48)] for size in sizes]
    assert json.loads(printed) == [json.loads(json.dumps(expected)), None, None]


def test_the_pages_of_the_service_and_of_the_target_read_the_resize_rule_alike() -> None:
    """Each is a folder of its own without the other, so both have these lines."""
    root = Path(web.__file__).parents[2]
    parts = []
    for page in ("export/targets/geometry.mjs", "service/page/geometry.mjs"):
        text = (root / page).read_text(encoding="utf-8")
        parts.append(text[text.index("  const wider = ") : text.index("  const axis = ")])
    assert parts[0] == parts[1] and "quotient" in parts[0]


@pytest.mark.parametrize("kind", ["hierarchical", "flat"])
def test_the_page_says_why_not_as_the_service_does(kind: Kind, tmp_path: Path) -> None:
    """On random heads and trees, for every node that can be asked about."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    asked, expected = [], []
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        head, random = random_head(seed, folder, kind), np.random.default_rng(seed)
        outputs = head.outputs(random.uniform(0, 3, (1, len(head.usual))).astype(np.float32).astype(np.float64))
        arrays = {name: {"data": np.ravel(array).tolist()} for name, array in named_arrays(outputs).items()}
        weights = np.load(folder / "weights.npy").tolist()
        for name in head.bundle.taxonomy.names:
            asked.append([arrays, head.bundle.manifest.model_dump(mode="json"), weights, name])
            options = PredictOptions(contrast=name).resolved(head.table)
            [prediction] = predictions(outputs, head.table, [GEOMETRY], options)
            assert prediction.contrast is not None
            expected.append(prediction.contrast.model_dump(mode="json"))
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    code = f"""import {{ readFileSync }} from "node:fs";
import {{ contrastOf }} from {json.dumps((Path(web.__file__).parent / "contrast.mjs").as_uri())};
const asked = JSON.parse(readFileSync({json.dumps(str(tmp_path / "asked.json"))}, "utf8"));
console.log(JSON.stringify(asked.map((one) => contrastOf(...one, () => ({{}})))));
"""
    command = [node, "--input-type=module", "-e", code]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert {one["relation"] for one in expected} >= {"beside", "predicted"}
    for one, wanted in zip(found, expected, strict=True):
        for piece in (*wanted["evidence"], *wanted["missing"]):
            for key in ("box", "seen", "source", "member"):
                del piece[key]
        assert differences(wanted, one, 1e-4) == []
