"""Test the REST API of a real server with plain HTTP clients."""

import base64
import gzip
import io
import json
import logging
import os
import socket
import stat
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from kseg.errors import UserError
from serving.config.flags import Options
from serving.rest_api import app
from tests.helpers import running_servers, small_servables
from tests.helpers.rest_clients import Client

PREDICT = "/v1/models/seg:predict"
METRICS = "/metrics/of/mine"


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    small_servables.segmentation(base / "seg", 3)
    small_servables.half_plus_two(base / "half", 1)
    small_servables.half_plus_two(base / "half", 2, add=3.0)
    (base / "models.config").write_text(f"""model_config_list {{
        config {{ name: "seg" base_path: "{base}/seg" model_platform: "tensorflow" }}
        config {{ name: "half & half" base_path: "{base}/half" model_platform: "tensorflow"
                  model_version_policy {{ all {{}} }}
                  version_labels {{ key: "stable one" value: 1 }} }} }}""")
    (base / "monitoring.config").write_text(f'prometheus_config {{ enable: true path: "{METRICS}" }}')
    options = replace(
        running_servers.QUICK,
        rest_api_port=-1,
        model_config_file=str(base / "models.config"),
        monitoring_config_file=str(base / "monitoring.config"),
        max_request_bytes=8 << 20,
        allow_version_labels_for_unavailable_models=True,
        page=False,
    )
    with running_servers.running(options) as server:
        yield server.rest_port


@pytest.fixture
def client(port):
    return Client(port)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def encode(pixels, image_format="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def instances(*strings):
    return {"instances": [{"b64": base64.b64encode(string).decode()} for string in strings]}


def decode(value):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(value["b64"]))))


def test_status_of_all_versions_and_of_one_version(client):
    status, response = client.request("GET", "/v1/models/half%20%26%20half")
    assert status == 200 and client.headers["Content-Type"] == "application/json"
    ok = {"error_code": "OK", "error_message": ""}
    versions = [{"version": version, "state": "AVAILABLE", "status": ok} for version in ("2", "1")]
    assert json.loads(response) == {"model_version_status": versions}
    assert json.loads(client.request("GET", "/V1/Models/half%20%26%20half/Versions/1")[1]) == {
        "model_version_status": versions[1:]
    }
    assert client.request("GET", "/v1/models/seg/versions/9") == (
        404,
        b'{"error": "Could not find version 9 of model seg"}',
    )
    assert client.request("GET", "/v1/models/nobody") == (
        404,
        b'{"error": "Could not find any versions of model nobody"}',
    )
    assert client.request("GET", "/v1/models") == (400, b'{"error": "Missing model name in request."}')


def test_metadata_lists_all_signatures(client):
    status, response = client.request("GET", "/v1/models/seg/metadata")
    metadata = json.loads(response)
    assert status == 200 and metadata["model_spec"] == {"name": "seg", "signature_name": "", "version": "3"}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) >= {"serving_default", "predict_map", "predict_tensor", "serve_tf_examples"}
    assert signatures["predict_tensor"]["inputs"]["image"]["dtype"] == "DT_UINT8"
    assert signatures["predict_tensor"]["inputs"]["image"]["tensor_shape"]["dim"] == [
        {"name": "", "size": size} for size in ("-1", "-1", "-1", "3")
    ]
    for path in ("half%20%26%20half/versions/1", "half%20%26%20half/labels/stable%20one"):
        assert json.loads(client.request("GET", f"/v1/models/{path}/metadata")[1])["model_spec"]["version"] == "1"
    assert client.request("GET", "/v1/models/nobody/metadata") == (
        404,
        b'{"error": "Servable not found for request: Latest(nobody)"}',
    )


def test_predict_maps_images_to_class_ids_in_every_form(client, image):
    small = image[:9, :11]
    expected = [small_servables.ids_of(pixels) for pixels in (image, small)]
    status, response = client.post(PREDICT, instances(encode(image), encode(small)))
    assert status == 200
    for row, ids in zip(response["predictions"], expected, strict=True):
        np.testing.assert_array_equal(decode(row["png_bytes"]), ids)
        assert row["size"] == list(ids.shape)
    _, columns = client.post(PREDICT, {"inputs": {"image_bytes": instances(encode(image))["instances"]}})
    assert columns["outputs"]["png_bytes"] == [response["predictions"][0]["png_bytes"]]
    _, pixels = client.post(PREDICT, {"signature_name": "predict_tensor", "instances": [image.tolist()]})
    np.testing.assert_array_equal(pixels["predictions"], [expected[0]])


def test_predict_floats_by_version_and_label(client):
    body = {"instances": [1.0, 2.0, 5.0]}
    for path, expected in (
        ("", [3.5, 4.0, 5.5]),
        ("/versions/1", [2.5, 3.0, 4.5]),
        ("/versions/2", [3.5, 4.0, 5.5]),
        ("/labels/stable%20one", [2.5, 3.0, 4.5]),
    ):
        assert client.post(f"/v1/models/half%20%26%20half{path}:predict", body) == (200, {"predictions": expected})
    # The raw text shows that floats keep their decimal point.
    assert client.request("POST", "/v1/models/half%20%26%20half:PREDICT", {"inputs": [1]})[1] == b'{"outputs":[3.5]}'


def test_classify_and_regress(client):
    path, examples = "/v1/models/half%20%26%20half/versions/1", [{"x": 1.0}, {"x": 2.0}]
    assert client.post(f"{path}:classify", {"signature_name": "classify_x_to_y", "examples": examples}) == (
        200,
        {"results": [[["", 2.5]], [["", 3.0]]]},
    )
    assert client.post(f"{path}:regress", {"signature_name": "regress_x_to_y", "examples": examples}) == (
        200,
        {"results": [2.5, 3.0]},
    )
    status, response = client.post("/v1/models/seg:classify", {"examples": examples})
    assert status == 400 and "classification" in response["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PREDICT),
        ("POST", "/v1/models/seg"),
        ("POST", "/v1/models/seg:guess"),
        ("GET", "/v1/models/seg/"),
        ("DELETE", "/v1/models/seg"),
        ("PUT", PREDICT),
        ("OPTIONS", PREDICT),
        ("GET", "/v1/models/seg/versions/x"),
        ("GET", "/v1/models/a/b"),
        ("POST", "/v1/models/seg/versions/1/labels/a:predict"),
        ("GET", "/v1/"),
    ],
)
def test_malformed_paths_are_invalid_arguments(client, method, path):
    assert client.request(method, path) == (400, json.dumps({"error": f"Malformed request: {method} {path}"}).encode())


def test_other_paths_are_404_with_an_empty_body(client):
    for path in ("/", "/v1", "/v2/models/seg", "/favicon.ico", "/monitoring/prometheus/metrics"):
        assert client.request("GET", path) == (404, b"")


def decompression_bomb():
    """Return a PNG of 40000 x 40000 pixels in a few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def bad_inputs(image):
    tensor = {"signature_name": "predict_tensor"}
    jpeg = encode(image, "jpeg")
    return [
        (PREDICT, instances(b"text instead of an image"), 400, "neither a JPEG nor a PNG"),
        (PREDICT, instances(jpeg[: len(jpeg) // 2]), 400, ""),
        (PREDICT, instances(decompression_bomb()), 400, "pixels (height, width); maximum"),
        (PREDICT, {"instances": []}, 400, "No values in 'instances' array"),
        (PREDICT, tensor | {"instances": np.zeros((1, 0, 5, 3)).tolist()}, 400, ""),
        (PREDICT, b"{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
        (PREDICT, b"", 400, "JSON Parse error: The document is empty"),
        (PREDICT, b"[" * 1_000_000, 400, "nested too deeply"),
        (PREDICT, b'{"signature_name": "\\ud800", "instances": [1]}', 400, "surrogate pair"),
        ("/v1/models/nobody:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nobody)"),
        (
            "/v1/models/seg/versions/9:predict",
            {"instances": [1]},
            404,
            "Servable not found for request: Specific(seg, 9)",
        ),
        (
            "/v1/models/seg/versions/0:predict",
            {"instances": [1]},
            404,
            "Servable not found for request: Specific(seg, 0)",
        ),
        (
            "/v1/models/seg/versions/9223372036854775808:predict",
            {"instances": [1]},
            400,
            "Failed to convert version: 9223372036854775808 to numeric.",
        ),
        (f"/v1/models/seg/versions/{'9' * 5000}:predict", {"instances": [1]}, 400, "Failed to convert version: 9999"),
        ("/v1/models/seg/labels/none:predict", {"instances": [1]}, 400, "Unrecognized servable version label: none"),
        (
            PREDICT,
            {"signature_name": "none", "instances": [1]},
            400,
            'Serving signature name: "none" not found in signature def',
        ),
        (PREDICT, {"inputs": {"none": [1]}}, 400, "Missing named input: image_bytes in 'inputs' object."),
        (PREDICT, {"instances": [1]}, 400, "JSON Value: 1 Type: Number is not of expected type: string"),
        (PREDICT, tensor | {"instances": [image[..., 0].tolist()]}, 400, "not compatible with expected shape"),
        (PREDICT, tensor | {"inputs": 1}, 400, "not compatible with expected shape"),
        (PREDICT, tensor | {"instances": [[[[1.5, 2, 3]]]]}, 400, "JSON Value: 1.5 Type: Number"),
        (PREDICT, iter([b"x" * (1 << 20)] * 100), 413, "larger than 8388608 bytes"),
        (PREDICT, b"x" * (9 << 20), 413, "larger than 8388608 bytes"),
    ]


def test_bad_inputs_are_rejected_and_the_server_continues(client, image):
    good = instances(encode(image))
    expected = client.post(PREDICT, good)
    for path, body, expected_status, message in bad_inputs(image):
        # All requests share one connection, which errors must not close.
        status, response = client.post(path, body)
        assert (status, message in response["error"]) == (expected_status, True), (
            path,
            str(body)[:60],
            status,
            response,
        )
    assert expected[0] == 200 and client.post(PREDICT, good) == expected


def test_body_announced_as_too_large_is_refused_immediately(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_gzip_bodies_are_inflated_up_to_the_size_limit(client, image):
    body = json.dumps({"signature_name": "predict_tensor", "instances": [image.tolist()]}).encode()
    plain = client.request("POST", PREDICT, body)
    # A gzip file may consist of several members.
    for packed in (gzip.compress(body), gzip.compress(body[:99]) + gzip.compress(body[99:])):
        assert client.request("POST", PREDICT, packed, {"Content-Encoding": "gzip"}) == plain
    assert plain[0] == 200
    for packed, expected_status, message in (
        (gzip.compress(bytes(9 << 20)), 413, b"larger than"),
        (gzip.compress(body)[:50], 400, b"too early"),
        (body, 400, b"not gzip"),
    ):
        status, response = client.request("POST", PREDICT, packed, {"Content-Encoding": "gzip"})
        assert status == expected_status and message in response


def test_two_hundred_connections_at_once(port):
    clients = [Client(port) for _ in range(200)]
    for client in clients:
        client.connection.request("POST", "/v1/models/half%20%26%20half:predict", b'{"instances":[1.0]}')
    assert [client.connection.getresponse().read() for client in clients] == [b'{"predictions":[3.5]}'] * 200


def test_responses_are_sent_without_nagles_delay(port):
    """Check TCP_NODELAY: without it the body would wait up to 40 ms for the acknowledgment of the headers."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models/seg HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        settings = []
        # The server's end of the connection is one of this process's open files.
        for number in os.listdir("/proc/self/fd"):
            try:
                if stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                    with socket.socket(fileno=os.dup(int(number))) as end:
                        if end.getpeername() == connection.getsockname():
                            settings.append(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            # The file was closed in the meantime, or is a socket without a peer.
            except OSError:
                continue
        assert settings == [1]


def metrics(client):
    status, page = client.request("GET", METRICS)
    assert status == 200 and client.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_requests_are_counted_and_timed(client, image):
    def increase(name, **labels):
        key = name, frozenset(labels.items())
        return after.get(key, 0) - before.get(key, 0)

    before = metrics(client)
    client.post(PREDICT, instances(encode(image)))
    client.post(PREDICT, instances(b"not an image"))
    client.request("GET", "/v1/models/seg")
    after = metrics(client)
    count, latency = ":tensorflow:serving:request_count_total", ":tensorflow:serving:request_latency"
    assert increase(count, model_name="seg", status="OK") == 1
    assert increase(count, model_name="seg", status="INVALID_ARGUMENT") == 1
    assert increase(f"{latency}_count", model_name="seg", API="predict", entrypoint="REST") == 1
    total = increase(f"{latency}_sum", model_name="seg", API="predict", entrypoint="REST")
    in_model = increase(":tensorflow:serving:runtime_latency_sum", model_name="seg", API="predict", runtime="TF1")
    assert 0 < in_model < total


def test_requests_are_logged(client, caplog):
    caplog.set_level(logging.INFO, "serving")
    client.post("/v1/models/half%20%26%20half/labels/stable%20one:predict", {"instances": [1.0]})
    client.post("/v1/models/nobody:predict", {"instances": [1.0]})
    first, second = (record.fields for record in caplog.records if record.message == "request")
    assert first["model"] == "half & half" and first["version"] == 1 and first["signature"] == "serving_default"
    assert first["status"] == "OK" and first["bytes"] == 20 and first["milliseconds"] > 0
    assert second["status"] == "NOT_FOUND" and second["message"] == "Servable not found for request: Latest(nobody)"


def test_metrics_are_served_only_if_configured(tmp_path):
    assert app.metrics_path(Options()) == ""
    config = tmp_path / "monitoring.config"
    for text, path in (
        ("", ""),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { path: "/x" }', ""),
        ('prometheus_config { enable: true path: "/x" }', "/x"),
    ):
        config.write_text(text)
        assert app.metrics_path(Options(monitoring_config_file=str(config))) == path
    config.write_text("prometheus { }")
    with pytest.raises(UserError, match="monitoring.config"):
        app.metrics_path(Options(monitoring_config_file=str(config)))
