import json

from protoserve.bundle import read_bundle


def test_bundle_holds_what_its_manifest_says(tiny_bundle):
    bundle = read_bundle(tiny_bundle)
    assert set(bundle.manifest.files) == {"onnx", "torchscript"}
    parity = json.loads((tiny_bundle / "parity.json").read_text())
    assert parity["onnx"]["batch_3"]["agreement"]["path"] == 1.0
