"""`protoserve serve` as operators run it: scraped, beside another server, without a home, behind a proxy, stopped."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path
from urllib.parse import urljoin

import httpx
import psutil
import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from protoserve.client import Client
from service.api_keys import create_key
from service.operations import metrics
from tests.e2e.serving import proxied, serving, wait_until
from tests.service.bundles import rename_bundle

pytestmark = pytest.mark.slow


def families(text: str) -> dict[str, set[str]]:
    """The names of a scrape's families, each with the names of its samples."""
    return {family.name: {sample.name for sample in family.samples} for family in text_string_to_metric_families(text)}


def test_a_scrape_holds_every_documented_metric(calibrated_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(calibrated_bundle)
    with serving(link, tmp_path, "--workers", "2", PROTOSERVE_RELOAD_SECONDS="0.2") as server:
        wait_until(lambda: server.log.read_text().count('"message": "ready"') == 2, 60, server.log)
        (tmp_path / "draft").symlink_to(rename_bundle(calibrated_bundle, tmp_path / "next"))
        (tmp_path / "draft").replace(link)
        with Client(server.address) as client:
            client.predict(photograph)
        httpx.get(f"{server.address}/nope")
        wait_until(lambda: server.metric("protoserve_reloads_total", missing=0) == 2, 30, server.log)
        found = families(httpx.get(f"{server.address}/metrics").text)
    documented = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    assert len(documented) >= 15
    for metric in documented:
        name = metric._name
        assert name in found, name
        samples = {"counter": {f"{name}_total"}, "gauge": {name}}
        assert found[name] == samples.get(
            str(metric._type), {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        ), name


def test_two_servers_with_one_folder_for_metrics_count_apart(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "missing" / "metrics"
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        home.mkdir()
    setting = {"PROTOSERVE_METRICS_DIRECTORY": str(folder)}
    with serving(tiny_bundle, homes[0], **setting) as first:
        with Client(first.address) as client:
            for _ in range(3):
                client.predict(photograph)
        with serving(tiny_bundle, homes[1], **setting) as second:
            with Client(second.address) as client:
                client.predict(photograph)
            assert len(list(folder.iterdir())) == 2
            assert (first.metric("protoserve_batch_size_sum"), second.metric("protoserve_batch_size_sum")) == (3, 1)
        # The end of the second takes nothing from the first.
        assert first.metric("protoserve_batch_size_sum") == 3
        assert len(list(folder.iterdir())) == 1
    assert list(folder.iterdir()) == []


def test_a_service_account_without_a_home_can_serve(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    nowhere = "/dev/null/home"
    with (
        serving(tiny_bundle, tmp_path, HOME=nowhere, BENTOML_HOME=f"{nowhere}/bentoml") as server,
        Client(server.address) as client,
    ):
        assert client.predict(photograph).path


@pytest.mark.parametrize(("host", "shown"), [("localhost", "localhost"), ("0.0.0.0", "127.0.0.1")])
def test_hosts_may_be_named(tiny_bundle: Path, tmp_path: Path, host: str, shown: str) -> None:
    with serving(tiny_bundle, tmp_path, "--host", host) as server:
        assert f"serving tiny at http://{shown}:{server.port} " in server.log.read_text()


def test_a_server_that_stops_refuses_connections_at_once_and_finishes_its_work(
    tiny_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    data = photograph.read_bytes()
    with serving(tiny_bundle, tmp_path, "--workers", "2") as server:
        wait_until(lambda: server.log.read_text().count('"message": "ready"') == 2, 60, server.log)
        with socket.create_connection(("127.0.0.1", server.port)) as upload:
            head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
            upload.sendall(head + data[:100])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(2)
            assert server.process.poll() is None
            begun = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5)
            assert time.monotonic() - begun < 1
            upload.sendall(data[100:])
            upload.settimeout(10)
            assert upload.recv(12) == b"HTTP/1.1 200"
        assert server.process.wait(20) == 0
    assert "Traceback" not in server.log.read_text()


def test_prometheus_needs_no_key_on_a_port_of_its_own(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    secret, key = create_key("camera")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    settings = {"PROTOSERVE_API_KEYS": f"{key.name}:{key.hash}", "PROTOSERVE_METRICS_PORT": str(port)}
    with serving(tiny_bundle, tmp_path, "--workers", "2", **settings) as server:
        with Client(server.address, key=secret) as client:
            client.predict(photograph)
        found = families(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        assert {"protoserve_requests", "protoserve_batch_size", "protoserve_in_flight"} <= set(found)
        assert httpx.get(f"{server.address}/metrics", headers={"x-api-key": secret}).status_code == 404
        # The page itself needs no key; it asks for one.
        assert httpx.get(server.address).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_behind_a_proxy_with_a_prefix_every_address_works(tiny_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    with serving(tiny_bundle, tmp_path) as server, proxied(server, "/models/tiny") as address:
        # The page: what it links to and what its script asks.
        page = httpx.get(f"{address}/").text
        named = set(re.findall(r'href="([^"#]+)"|["`](v1/[a-z]+)', page))
        addresses = {link or asked for link, asked in named} - {"data:,"}
        assert {"openapi.json", "v1/model", "v1/predict", "v1/taxonomy", "v1/prototypes"} <= addresses
        # The others take a picture, or name one.
        for found in addresses - {"v1/predict", "v1/input", "v1/samples"}:
            assert httpx.get(urljoin(f"{address}/", found)).status_code == 200, found
        # The JSON documents.
        with Client(address) as client:
            assert client.is_ready() and client.model()["name"] == "tiny"
            prediction = client.predict(photograph)
        pieces = [piece for level in prediction.levels for piece in level.evidence]
        for piece in pieces:
            assert piece.source is not None and piece.source.href is not None
            assert httpx.get(urljoin(f"{address}/", piece.source.href)).headers["content-type"] == "image/webp"
        assert pieces
        # The contract: its server, relative to where it was read.
        contract = httpx.get(f"{address}/openapi.json")
        [listed] = contract.json()["servers"]
        root = urljoin(str(contract.url), listed["url"])
        assert httpx.get(root.rstrip("/") + "/v1/taxonomy").status_code == 200


def test_nothing_is_left_behind_in_the_folder_for_temporary_files(tiny_bundle: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with serving(tiny_bundle, tmp_path, TMPDIR=str(scratch)) as server:
        assert {entry.name.partition("-")[0] for entry in scratch.iterdir()} >= {"protoserve"}
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        assert not [child for child in family if child.is_running()]
    assert list(scratch.iterdir()) == []
