"""Run the load test against servers with known answers, failures and delays."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from kseg import cli
from serving import load_test
from serving.clients import load_generator

DELAY = 0.02
SERVICE = "tensorflow.serving.PredictionService"


class RequestLog:
    """Bodies of all requests, and the largest number of requests at once.

    A request takes DELAY seconds, and every `refuse`-th one is refused (0: none).
    """

    def __init__(self, refuse=0):
        self.refuse, self.bodies, self.running, self.max_running = refuse, [], 0, 0
        self.lock = threading.Lock()

    def accept(self, body):
        """Record a request, and return whether to answer it."""
        with self.lock:
            self.bodies.append(body)
            number = len(self.bodies)
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        time.sleep(DELAY)
        with self.lock:
            self.running -= 1
        return not self.refuse or number % self.refuse != 0


@contextlib.contextmanager
def grpc_server(log, input_name="image_bytes", dtype=7):
    """Serve Predict and the metadata of a signature with one input; yield HOST:PORT."""
    definition = get_model_metadata_pb2.SignatureDefMap()
    tensors = definition.signature_def["serving_default"]
    tensors.inputs[input_name].dtype = dtype
    tensors.outputs["class_map"].dtype = 4
    metadata = get_model_metadata_pb2.GetModelMetadataResponse()
    metadata.metadata["signature_def"].Pack(definition)

    def predict(request, context):
        if not log.accept(request):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        return predict_pb2.PredictResponse().SerializeToString()

    server = grpc.server(ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    "Predict": grpc.unary_unary_rpc_method_handler(predict),
                    "GetModelMetadata": grpc.unary_unary_rpc_method_handler(lambda *_: metadata.SerializeToString()),
                },
            )
        ]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextlib.contextmanager
def rest_server(log):
    """Serve :predict and the metadata over REST; yield HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(
                200,
                {
                    "metadata": {
                        "signature_def": {
                            "signature_def": {
                                "serving_default": {
                                    "inputs": {"image_bytes": {"dtype": "DT_STRING"}},
                                    "outputs": {"class_map": {}},
                                }
                            }
                        }
                    }
                },
            )

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if log.accept((self.path, body)):
                self.answer(200, {"outputs": []})
            else:
                self.answer(429, {"error": "too many"})

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)).save(path)
    return path


def run(*arguments):
    return load_test.main([*map(str, arguments), "--seconds", "0.6", "--warm-up", "0.2"])


def test_answers_latencies_and_the_printed_table_agree(picture, tmp_path, capsys):
    log = RequestLog(refuse=3)
    with grpc_server(log) as server:
        assert (
            run(
                picture,
                "--server",
                server,
                "--model",
                "street",
                "--concurrency",
                "1,3",
                "--processes",
                2,
                "--out",
                tmp_path / "load.json",
            )
            == 0
        )
    lines = json.loads((tmp_path / "load.json").read_text())
    assert [line["concurrency"] for line in lines] == [1, 3]
    # A client sends its next request only after the previous response.
    assert log.max_running <= 3
    # Requests of the warm-up are not counted.
    counted = sum(line["answers"] + line["failures"]["RESOURCE_EXHAUSTED"] for line in lines)
    assert counted < len(log.bodies)
    for line in lines:
        assert line["requests_per_second"] == line["answers"] / 0.6 > 0
        assert set(line["failures"]) == {"RESOURCE_EXHAUSTED"} and line["messages"] == {
            "RESOURCE_EXHAUSTED": "too many"
        }
        assert DELAY <= line["p50"] <= line["p95"] <= line["p99"] <= line["max"]
    printed = capsys.readouterr().out
    assert "1 images" in printed and "RESOURCE_EXHAUSTED: too many" in printed
    rows = [
        words
        for words in map(str.split, printed.splitlines())
        if words[:1] in (["1"], ["3"]) and words[-1] == "RESOURCE_EXHAUSTED"
    ]
    assert [words[1] for words in rows] == [f"{line['requests_per_second']:.1f}" for line in lines]
    request = predict_pb2.PredictRequest.FromString(log.bodies[0])
    assert request.model_spec.name == "street" and request.model_spec.signature_name == "serving_default"
    assert tf.make_ndarray(request.inputs["image_bytes"]).tolist() == [picture.read_bytes()]


def test_pixels_are_sent_if_the_signature_takes_them(picture):
    log = RequestLog()
    with grpc_server(log, "image", 4) as server:
        assert run(picture, "--server", server, "--concurrency", "1") == 0
    tensor = predict_pb2.PredictRequest.FromString(log.bodies[0]).inputs["image"]
    assert tensor.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(tensor)[0], np.array(Image.open(picture)))


def test_rest_requests(picture, tmp_path):
    log = RequestLog(refuse=2)
    with rest_server(log) as server:
        assert (
            run(
                picture,
                "--server",
                server,
                "--rest",
                "--model",
                "a b",
                "--concurrency",
                "2",
                "--out",
                tmp_path / "load.json",
            )
            == 0
        )
    (line,) = json.loads((tmp_path / "load.json").read_text())
    assert line["answers"] and set(line["failures"]) == {"RESOURCE_EXHAUSTED"}
    path, body = log.bodies[0]
    assert path == "/v1/models/a%20b:predict"
    assert list(json.loads(body)["inputs"]) == ["image_bytes"]


def test_exitedstatus_is_1_if_every_request_fails(picture, capsys):
    with grpc_server(RequestLog(refuse=1)) as server:
        assert run(picture, "--server", server, "--concurrency", "2") == 1
    assert "no request" in capsys.readouterr().err


def test_deadline_applies_to_each_request(picture, tmp_path):
    with grpc_server(RequestLog()) as server:
        assert (
            run(
                picture,
                "--server",
                server,
                "--concurrency",
                "1",
                "--deadline",
                DELAY / 10,
                "--out",
                tmp_path / "load.json",
            )
            == 1
        )
    (line,) = json.loads((tmp_path / "load.json").read_text())
    assert set(line["failures"]) == {"DEADLINE_EXCEEDED"} and not line["answers"] and line["p50"] is None


def test_stopped_server_is_counted_as_unavailable(picture):
    for serve, path in ((grpc_server, ""), (rest_server, "/v1/models/default:predict")):
        with serve(RequestLog()) as server:
            target = load_generator.Target(server, path, 5.0)
        with load_generator.clients(target, [b"{}"], 1) as clients:
            load = clients.run(2, 0.5)
        assert not load.latencies and set(load.failures) == {"UNAVAILABLE"} and load.requests == load.failures.total()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--signature", "serving_defualt"], "Did you mean serving_default?"),
        (["--server", "nowhere"], "--server 'nowhere'"),
    ],
)
def test_user_errors_exitedwith_status_2(picture, capsys, arguments, message):
    with grpc_server(RequestLog()) as server, pytest.raises(SystemExit) as exited:
        cli.run(lambda: run(picture, "--server", server, *arguments))
    assert exited.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--concurrency", "0"],
        ["--concurrency", "1,x"],
        ["--seconds", "0"],
        ["--deadline", "nan"],
        ["--processes", "0"],
        ["--rest", "--tls-ca", "ca.pem"],
    ],
)
def test_arguments_out_of_range_are_rejected(picture, arguments):
    with pytest.raises(SystemExit) as exited:
        load_test.main([str(picture), "--server", "localhost:1", *arguments])
    assert exited.value.code == 2
