"""Routes of feedback: off by default, kept before they answer, and clear where they can't keep it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from protoserve.errors import InputError
from protoserve.feedback.store import open_store
from protoserve.inference.classifier import Classifier
from service.api_keys import ApiKey, create_key
from service.routes.feedback import FEEDBACK_BYTES, prepare_feedback
from service.settings import Settings
from tests.service.problems import check_problem
from tests.service.running import RunApp, TestClient

SECRET, KEY = create_key("kiosk")
HEADERS = {"X-API-Key": SECRET}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "feedback.jsonl"


@pytest.fixture
def service(run_app: RunApp, file: Path) -> TestClient:
    """An application that takes feedback, without pictures."""
    return run_app(feedback=str(file), api_keys=(KEY,), feedback_per_minute=1000)


@pytest.fixture
def said(classifier: Classifier, photograph: Path) -> dict[str, Any]:
    """Feedback on the model's own answer."""
    answer = classifier.predict(photograph)
    return {
        "answer": "0" * 32,
        "model": answer.model.version,
        "image": hashlib.sha256(photograph.read_bytes()).hexdigest(),
        "path": answer.path,
        "verdict": "right",
    }


def post(service: TestClient, said: dict[str, Any], **headers: str) -> Any:
    return service.post("/v1/feedback", json=said, headers=HEADERS | headers)


def test_without_the_setting_there_is_no_route(client: TestClient, said: dict[str, Any]) -> None:
    check_problem(client.post("/v1/feedback", json=said), "not_found")


def test_feedback_needs_a_key(service: TestClient, said: dict[str, Any]) -> None:
    check_problem(service.post("/v1/feedback", json=said), "invalid_key")


@pytest.mark.parametrize(
    "verdict",
    [
        {"verdict": "right", "comment": "well done"},
        {"verdict": "wrong", "node": "Animal", "by": "Ann"},
        {"verdict": "wrong reason", "prototypes": [0, 3]},
    ],
)
def test_feedback_is_kept_as_it_was_said(
    service: TestClient, said: dict[str, Any], file: Path, verdict: dict[str, Any]
) -> None:
    said |= verdict
    if said["path"] == ["Animal"]:
        said["node"] = "Scuba"
    response = post(service, said, **{"X-Request-ID": "abc-1"})
    assert response.status_code == 201, response.text
    [record] = open_store(str(file)).read().records
    assert response.text == record.model_dump_json()
    assert said.items() <= record.model_dump().items()
    assert (record.request, record.key, record.checked) == ("abc-1", "kiosk", True)
    assert f'protoserve_feedback_total{{verdict="{said["verdict"]}"}}' in service.get("/metrics", headers=HEADERS).text


def test_a_database_keeps_it_too(run_app: RunApp, said: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra 'feedback'")
    url = f"sqlite:///{tmp_path}/feedback.db"
    service = run_app(feedback=url, api_keys=(KEY,))
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda _: post(service, said).status_code, range(8)))
    assert codes == [201] * 8
    assert len(open_store(url).read().records) == 8


@pytest.mark.parametrize(
    ("wrong", "code", "hint"),
    [
        ({"verdict": "wrong", "node": "Animal/Lino"}, "unknown_node", "did you mean 'Animal/Lion'"),
        ({"path": ["Animals"]}, "unknown_node", "did you mean 'Animal'"),
        ({"verdict": "wrong reason", "prototypes": [0, 999]}, "unknown_prototype", "no prototype has the id 999; ids"),
        ({"verdicts": "right"}, "invalid_feedback", "did you mean 'verdict'"),
        ({"comment": "x" * 2001}, "invalid_feedback", "comment: String should have at most 2000"),
        ({"comment": "x" * FEEDBACK_BYTES}, "request_too_large", f"{FEEDBACK_BYTES:,} bytes"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    service: TestClient, said: dict[str, Any], file: Path, wrong: dict[str, Any], code: str, hint: str
) -> None:
    assert hint in check_problem(post(service, said | wrong), code)["detail"]
    assert not file.exists()


def test_an_answer_of_another_version_is_kept_unchecked(service: TestClient, said: dict[str, Any], file: Path) -> None:
    """The worker may have loaded a new model since the answer."""
    said |= {"model": "sha256:" + "0" * 64, "verdict": "wrong reason", "prototypes": [9999]}
    assert post(service, said).status_code == 201
    assert [record.checked for record in open_store(str(file)).read().records] == [False]


def test_a_repeated_request_counts_once(service: TestClient, said: dict[str, Any], file: Path) -> None:
    for _ in range(3):
        post(service, said, **{"X-Request-ID": "same"})
    post(service, said)
    kept = open_store(str(file)).read()
    assert (len(kept.records), kept.repeated) == (2, 2)


def test_too_much_is_refused_and_the_records_stay(
    run_app: RunApp, said: dict[str, Any], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = run_app(feedback=str(file), api_keys=(KEY,), feedback_bytes=600, feedback_per_minute=3)
    assert post(service, said).status_code == 201
    refusal = check_problem(post(service, said), "storage_full")
    assert str(file) not in refusal["detail"]
    assert str(file) in caplog.text
    post(service, said)
    response = post(service, said)
    check_problem(response, "too_many_requests")
    assert int(response.headers["retry-after"]) > 0
    assert len(open_store(str(file)).read().records) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_and_a_lost_folder_are_told(run_app: RunApp, said: dict[str, Any], file: Path) -> None:
    file.parent.mkdir()
    file.symlink_to("/dev/full")
    service = run_app(feedback=str(file), api_keys=(KEY,))
    check_problem(post(service, said), "storage_full")
    file.unlink()
    file.mkdir()
    check_problem(post(service, said), "storage_unavailable")


def test_pictures_are_kept_only_where_the_setting_says_so(
    service: TestClient, run_app: RunApp, file: Path, tmp_path: Path, photograph: Path
) -> None:
    data = photograph.read_bytes()
    refused = service.post("/v1/feedback/picture", content=data, headers=HEADERS)
    assert "keeps no pictures" in check_problem(refused, "unexpected_part")["detail"]
    folder = tmp_path / "pictures"
    keeping = run_app(feedback=str(file), feedback_pictures=folder, api_keys=(KEY,), feedback_bytes=2 * len(data))
    for _ in range(2):
        answer = keeping.post("/v1/feedback/picture", content=data, headers=HEADERS)
        assert answer.json() == {"sha256": hashlib.sha256(data).hexdigest()}
    assert [kept.read_bytes() for kept in folder.iterdir()] == [data]
    assert [kept.name for kept in folder.iterdir()] == [f"{answer.json()['sha256']}.jpg"]
    check_problem(keeping.post("/v1/feedback/picture", content=b"text", headers=HEADERS), "unsupported_image")
    # Others follow the picture in a JPEG; they make it another file.
    full = keeping.post("/v1/feedback/picture", content=data + bytes(2), headers=HEADERS)
    check_problem(full, "storage_full")


def test_a_place_that_can_not_be_used_stops_the_start(tmp_path: Path, key: ApiKey = KEY) -> None:
    def prepared(**settings: Any) -> Any:
        return prepare_feedback(Settings(api_keys=(key,), **settings))

    assert prepared() is None
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        prepared(feedback=str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't make this folder"):
        prepared(feedback=str(tmp_path / "file" / "feedback.jsonl"))


def test_the_openapi_document_states_the_routes(service: TestClient, client: TestClient) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    assert {"bearer": []} in paths["/v1/feedback"]["post"]["security"]
    assert "/v1/feedback" not in client.get("/openapi.json").json()["paths"]
