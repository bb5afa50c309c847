"""The Open Inference Protocol over the real routes, by Triton's own client and by hand."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from protoserve import __version__
from protoserve.inference.classifier import Classifier
from service.api_keys import create_key
from service.app import create_app
from service.model.holder import ModelHolder
from service.settings import Settings
from tests.service.predictions import as_served
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient


@pytest.fixture(scope="module")
def address(holder: ModelHolder) -> Iterator[str]:
    """The address of a server: Triton's client has a transport of its own."""
    app = create_app(Settings(device="cpu", threads=1, max_images=3), holder.current)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def triton(address: str) -> Iterator[Any]:
    module = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is missing; install the extra dev")
    client = module.InferenceServerClient(address)
    yield client
    client.close()


def encoded(*pictures: bytes, binary: bool = True) -> Any:
    from tritonclient.http import InferInput

    tensor = InferInput("image", [len(pictures)], "BYTES")
    if binary:
        tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_))
    else:
        texts = [base64.b64encode(picture) for picture in pictures]
        tensor.set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=False)
    return tensor


def document(photograph: Path, **more: Any) -> dict[str, Any]:
    data = [base64.b64encode(photograph.read_bytes()).decode()]
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}], **more}


def test_tritons_client_finds_the_server_and_its_model(triton: Any, classifier: Classifier) -> None:
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("tiny")
    assert triton.get_server_metadata() == {
        "name": "protoserve",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }
    version = classifier.bundle.version
    assert triton.is_model_ready("tiny", version) and not triton.is_model_ready("tiny", "2")
    found = triton.get_model_metadata("tiny")
    assert (found["name"], found["versions"]) == ("tiny", [version])
    assert [(tensor["name"], tensor["datatype"]) for tensor in found["inputs"]] == [
        ("image", "BYTES"),
        ("pixels", "UINT8"),
    ]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_the_answers_of_the_python_interface(
    triton: Any, classifier: Classifier, photograph: Path, tmp_path: Path, binary: bool
) -> None:
    from tritonclient.http import InferRequestedOutput

    other = tmp_path / "other.png"
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(other)
    asked = [InferRequestedOutput(name, binary_data=binary) for name in ("prediction", "path", "probability")]
    found = triton.infer(
        "tiny",
        [encoded(photograph.read_bytes(), other.read_bytes(), binary=binary)],
        outputs=asked,
        request_id="seven",
        parameters={"top_k": 2},
    )
    expected = classifier.predict([photograph, other], top_k=2)
    answer = found.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "tiny", classifier.bundle.version)
    texts = [text if isinstance(text, str) else text.decode() for text in found.as_numpy("prediction").tolist()]
    for text, prediction in zip(texts, expected, strict=True):
        served = json.loads(text)
        assert served["id"] == prediction.id and served["path"] == prediction.path
        assert served["levels"][0]["evidence"][0]["source"]["href"].startswith("v1/prototypes/")
    paths = [[text.decode() if isinstance(text, bytes) else text for text in row] for row in found.as_numpy("path")]
    assert paths == [
        [level.node for level in one.levels] + [""] * (classifier.taxonomy.depth - len(one.levels)) for one in expected
    ]
    probability = [level.probability for level in expected[0].levels]
    np.testing.assert_allclose(found.as_numpy("probability")[0, : len(probability)], probability, atol=1e-5)


def test_all_outputs_come_where_none_is_named(triton: Any, classifier: Classifier, photograph: Path) -> None:
    found = triton.infer("tiny", [encoded(photograph.read_bytes())], model_version=classifier.bundle.version)
    whole = classifier.engine.run(classifier.fit(photograph).array[None])
    np.testing.assert_allclose(found.as_numpy("node_probability"), np.exp(whole.log_probability), atol=1e-5)
    served = as_served(classifier.predict(photograph)).model_dump_json()
    assert found.as_numpy("prediction").tolist() == [served.encode()]


def test_pixels_are_resized_by_the_models_rule(triton: Any, classifier: Classifier) -> None:
    from tritonclient.http import InferInput

    pixels = np.random.default_rng(0).integers(0, 255, (2, 70, 90, 3), dtype=np.uint8)
    tensor = InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    found = triton.infer("tiny", [tensor])
    for text, expected in zip(found.as_numpy("prediction").tolist(), classifier.predict(list(pixels)), strict=True):
        served = json.loads(text)
        assert served["path"] == expected.path and served["id"] is None
        assert served["image"] == {"width": 90, "height": 70, "sha256": None, "drafted": False}


def test_tritons_client_shows_what_is_wrong(triton: Any, photograph: Path) -> None:
    from tritonclient.utils import InferenceServerException

    for name, pictures, told in (
        ("tinny", [photograph.read_bytes()], "no model 'tinny'; did you mean 'tiny'"),
        ("tiny", [photograph.read_bytes(), b"no picture"], "picture 1: "),
        ("tiny", [photograph.read_bytes()] * 4, "4 pictures, more than the 3 allowed"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            triton.infer(name, [encoded(*pictures)])
        assert told in refused.value.message()


def test_a_restriction_changes_all_outputs(client: TestClient, classifier: Classifier, photograph: Path) -> None:
    [denied] = [classifier.predict(photograph).path[0]]
    answer = client.post("/v2/models/tiny/infer", json=document(photograph, parameters={"deny": denied})).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert "id" not in answer
    assert json.loads(outputs["prediction"][0])["restriction"]["excluded"] > 0
    names = classifier.taxonomy.names
    assert not outputs["path"][0].startswith(denied) and outputs["node_probability"][names.index(denied)] == 0


def test_other_names_versions_and_methods_are_problems_that_name_the_right_ones(
    client: TestClient, photograph: Path
) -> None:
    for place in ("", "/ready"):
        for path in (f"/v2/models/tinny{place}", f"/v2/models/tiny/versions/1{place}"):
            check_problem(client.get(path), "unknown_model", inference=True)
    told = check_problem(client.post("/v2/models/tinny/infer", json={}), "unknown_model", inference=True)
    assert "did you mean 'tiny'" in told["detail"]
    check_problem(client.get("/v2/models/tiny/infer"), "method_not_allowed", inference=True)
    check_problem(client.get("/v2/nothing"), "not_found", inference=True)
    check_problem(client.get("/v2?a=1"), "unknown_parameter", inference=True)
    check_problem(client.post("/v2/models/tiny/infer?top_k=1", json={}), "unknown_parameter", inference=True)
    check_problem(client.get("/v20"), "not_found")
    version = client.get("/v2/models/tiny").json()["versions"][0]
    for name in (version, version.removeprefix("sha256:")):
        answer = client.post(f"/v2/models/tiny/versions/{name}/infer", json=document(photograph))
        assert answer.status_code == 200, answer.text


def test_limits_and_bodies_are_those_of_v1(client: TestClient, photograph: Path) -> None:
    address = "/v2/models/tiny/infer"
    check_problem(client.post(address, content=b"x" * 200_001), "request_too_large", inference=True)
    check_problem(client.post(address, content=b""), "invalid_tensor", inference=True)
    compressed = client.post(address, content=b"x", headers={"content-encoding": "gzip"})
    check_problem(compressed, "unsupported_encoding", inference=True)
    broken = document(photograph)
    broken["inputs"][0]["data"] = [base64.b64encode(photograph.read_bytes()[:500]).decode()]
    assert check_problem(client.post(address, json=broken), "broken_image", inference=True)["detail"].startswith(
        "picture 0: "
    )
    unknown = document(photograph, parameters={"contrast": "Nothing"})
    check_problem(client.post(address, json=unknown), "invalid_parameter", inference=True)


def test_a_key_is_needed_for_all_but_the_probes(run_app: RunApp, photograph: Path) -> None:
    secret, key = create_key("kserve")
    client = run_app(api_keys=(key,))
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2", "/v2/models/tiny", "/v2/models/tiny/ready"):
        check_problem(client.get(path), "invalid_key", inference=True)
    check_problem(client.post("/v2/models/tiny/infer", json=document(photograph)), "invalid_key", inference=True)
    answer = client.post("/v2/models/tiny/infer", json=document(photograph), headers={"X-API-Key": secret})
    assert answer.status_code == 200
