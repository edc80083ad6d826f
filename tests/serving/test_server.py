"""The server's process: killed during a load, restarted, a second one on the same port, stopped by SIGTERM.

Other tests run servers in this process: reloaded files, warm-up requests, a port in use, batching.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from serving.core import loading, session_model
from serving.errors import ServingError
from tests.helpers import running, running_servers, small_servables
from tests.helpers.grpc_requests import until
from tests.helpers.running_servers import QUICK

X = np.array([1, 2, 5], np.float32)


def predict_request(name, x=X):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
    return request


def start(log, *arguments):
    """Start a server process with stdout in LOG.out and stderr in LOG.err."""
    with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "serving.server", *map(str, arguments)], cwd=running.ROOT, stdout=out, stderr=err
        )


def events(log):
    """Return the log's lines so far as objects, without TensorFlow's own lines."""
    with open(f"{log}.err") as err:
        return [json.loads(line) for line in err if line.startswith("{") and line.endswith("\n")]


def events_named(log, event):
    return [line for line in events(log) if line["event"] == event]


def test_a_process_is_killed_restarted_and_drained(tmp_path):
    directory = small_servables.half_plus_two(tmp_path / "half", 1)
    write_log(directory, predict_request("half", np.ones(1000, np.float32)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = [
        "--model_name=half",
        f"--model_base_path={tmp_path / 'half'}",
        f"--port={port}",
        "--log_format=json",
        "--enable_grpc_healthcheck_service",
    ]
    # This warm-up keeps the load running until the test kills the process.
    killed = start(tmp_path / "killed", *common, "--num_request_iterations_for_warmup=1000000000")
    running_server = None
    try:
        until(lambda: events_named(tmp_path / "killed", "loading"), 120)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        running_server = start(tmp_path / "log", *common, "--drain_seconds=5")
        until(lambda: events_named(tmp_path / "log", "started"), 120)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            assert stub.Predict(predict_request("half"), timeout=30).outputs["y"].float_val[0] == 2.5
            second = start(tmp_path / "second", *common)
            assert second.wait(120) == 255
            output = (tmp_path / "second.out").read_text()
            assert output == (
                f"Failed to start server. Error: UNAVAILABLE: cannot listen on port {port} of 127.0.0.1: "
                f"{os.strerror(98)}\n"
            )
            # After the signal the server answers requests until it closes the port.
            running_server.send_signal(signal.SIGTERM)
            signaled = time.monotonic()
            answers = 0
            while time.monotonic() - signaled < 2:
                assert stub.Predict(predict_request("half"), timeout=30).outputs["y"].float_val[0] == 2.5
                answers += 1
            assert answers
        assert running_server.wait(60) == 0
        assert [line["event"] for line in events(tmp_path / "log")][-1] == "stopped"
        assert events_named(tmp_path / "log", "draining") and events_named(tmp_path / "log", "loaded")
        line = events_named(tmp_path / "log", "request")[0]
        assert {"time", "level", "event", "model", "version", "signature", "status", "milliseconds", "peer"} <= set(
            line
        )
        assert (line["model"], line["version"], line["status"]) == ("half", 1, "OK")
    finally:
        for process in (killed, running_server):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def write_log(directory, *requests):
    """Write the warm-up requests of a version."""
    path = directory / loading.WARM_UP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            if isinstance(request, predict_pb2.PredictRequest):
                log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())
    return path


def test_warm_up_requests_run_repeatedly_and_their_failures_are_raised(tmp_path):
    directory = small_servables.half_plus_two(tmp_path / "half", 1)
    model = session_model.load_session_model(directory, ("serve",), session_model.Threads())
    try:
        # The model's name in a warm-up request is ignored.
        path = write_log(directory, predict_request("another"), predict_request(""))
        calls = []
        run, model.run = model.run, lambda *arguments: calls.append(arguments) or run(*arguments)
        assert loading.warm_up(model, path, 3) == 2
        assert len(calls) == 6 and calls[0][0] == "serving_default"
        path = write_log(directory, predict_request("half"), predict_request("half", np.ones((2, 2), np.float32)))
        with pytest.raises(ServingError) as caught:
            loading.warm_up(model, path, 1)
        assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
        path = write_log(directory, None)
        with pytest.raises(ServingError, match="Unsupported log_type for warmup: 0") as caught:
            loading.warm_up(model, path, 1)
        assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED
        path = write_log(directory, *[predict_request("half")] * 1001)
        with pytest.raises(ServingError, match=r"Number of warmup records exceeds the maximum \(1000\) at "):
            loading.warm_up(model, path, 1)
        path.write_bytes(b"no records " * 10)
        with pytest.raises(ServingError, match="Please verify your warmup data is in TFRecord format") as caught:
            loading.warm_up(model, path, 1)
        assert caught.value.code == grpc.StatusCode.DATA_LOSS
    finally:
        model.close()


def test_a_version_whose_warm_up_fails_is_not_served(tmp_path):
    directory = small_servables.half_plus_two(tmp_path / "half", 1)
    write_log(directory, predict_request("half", np.ones((2, 2), np.float32)))
    with pytest.raises(ServingError, match="not compatible with expected shape"):
        with running_servers.running(tmp_path / "half", "half"):
            pass
    with running_servers.running(
        replace(QUICK, model_name="half", model_base_path=str(tmp_path / "half"), enable_model_warmup=False)
    ) as server:
        assert server.grpc_port


def test_the_model_config_file_is_reloaded_and_an_invalid_one_changes_nothing(tmp_path, caplog):
    small_servables.half_plus_two(tmp_path / "one", 1)
    small_servables.half_plus_two(tmp_path / "two", 1)
    config = tmp_path / "models.config"

    def write(*names):
        temporary = tmp_path / "temporary"
        entries = [
            f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" }}' for name in names
        ] or ["nonsense"]
        temporary.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        temporary.rename(config)

    write("one")
    with running_servers.running(
        replace(QUICK, model_config_file=str(config), model_config_file_poll_wait_seconds=1)
    ) as server:
        assert server.models.names() == ["one"]
        write("one", "two")
        until(lambda: server.models.names() == ["one", "two"])
        write()
        until(lambda: any(record.getMessage() == "reload failed" for record in caplog.records))
        assert server.models.names() == ["one", "two"]
        write("two")
        until(lambda: server.models.names() == ["two"])
        # The file is read again even while a model has no version.
        write("two", "nowhere")
        until(lambda: server.models.names() == ["nowhere", "two"])
        write("one", "two")
        until(lambda: server.models.names() == ["one", "two"])


def test_rest_is_disabled_on_the_port_of_grpc(tmp_path, caplog):
    small_servables.half_plus_two(tmp_path / "half", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = replace(QUICK, model_name="half", model_base_path=str(tmp_path / "half"), port=port, rest_api_port=port)
    with running_servers.running(options) as server:
        assert (server.grpc_port, server.rest_port) == (port, 0)
        assert "serving half, version 1" in server.describe() and "REST" not in server.describe()
        assert [record for record in caplog.records if record.levelname == "ERROR" and "REST" in record.getMessage()]
        # Another server cannot use the port.
        with pytest.raises(ServingError, match=f"cannot listen on port {port} of 127.0.0.1"):
            with running_servers.running(replace(options, rest_api_port=0)):
                pass


def test_the_batching_files_of_the_server_and_of_a_model_are_used(tmp_path):
    directory = small_servables.half_plus_two(tmp_path / "half", 1)
    parameters = tmp_path / "batching.config"
    parameters.write_text("max_batch_size { value: 4 } num_batch_threads { value: 1 }")
    options = replace(
        QUICK,
        model_name="half",
        model_base_path=str(tmp_path / "half"),
        enable_batching=True,
        batching_parameters_file=str(parameters),
        enable_per_model_batching_parameters=True,
    )

    def answered(count):
        with running_servers.running(options) as server, running_servers.connected(server) as stubs:
            response = stubs.predictions.Predict(predict_request("half", np.ones(count, np.float32)), timeout=30)
            return list(response.outputs["y"].float_val)

    assert answered(4) == [2.5] * 4
    with pytest.raises(grpc.RpcError) as caught:
        answered(5)
    assert caught.value.details() == "Task size 5 is larger than maximum input batch size 4"
    parameters = directory / loading.BATCHING_FILE
    parameters.write_text("max_batch_size { value: 5 }")
    assert answered(5) == [2.5] * 5
    parameters.write_text("max_batch_size { nonsense }")
    with pytest.raises(ServingError, match="Error parsing text-format tensorflow.serving.BatchingParameters"):
        answered(1)
