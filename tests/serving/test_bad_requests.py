"""Bad requests, clients and models get TensorFlow Serving's errors, and the server keeps answering."""

import shutil
import socket
import struct
import threading
import time
import zlib
from dataclasses import replace

import cv2
import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_pb2, prediction_service_pb2_grpc

from tests.helpers import running_servers, small_servables
from tests.helpers.grpc_requests import (
    FLOATS,
    SECONDS,
    assert_healthy,
    predict_request,
    random_image,
    refusal,
    states,
    status_request,
    until,
)
from tests.helpers.running_servers import QUICK


def test_requests_that_do_not_match_the_signature(stubs):
    call = stubs.predictions.Predict
    assert refusal(call, predict_request("half", "other", x=FLOATS)) == (
        "FAILED_PRECONDITION",
        'Serving signature key "other" not found.',
    )
    assert refusal(call, predict_request("half", a=FLOATS, b=FLOATS)) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 2!=1 len({a,b}) != len({x}). "
        "Sent extra: {a,b}. Missing but required: {x}.",
    )
    assert refusal(call, predict_request("half", z=FLOATS)) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {z}, or default input alias set: ",
    )
    broken = predict_request("half", x=FLOATS)
    broken.inputs["x"].tensor_content = b"123"
    assert refusal(call, broken) == ("INVALID_ARGUMENT", "tensor parsing error: x")
    # A message of twenty bytes with the shape of an exabyte.
    claiming = predict_request("half", x=np.float32([1]))
    claiming.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32(1)))
    claiming.inputs["x"].tensor_shape.dim.add(size=1 << 60)
    claiming.inputs["x"].ClearField("tensor_content")
    assert refusal(call, claiming) == ("INVALID_ARGUMENT", "tensor parsing error: x")
    filtered = predict_request("half", x=FLOATS)
    filtered.output_filter.append("z")
    assert refusal(call, filtered) == (
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
    )
    filtered.output_filter[:] = ["y", "y"]
    assert refusal(call, filtered) == ("INVALID_ARGUMENT", "duplicate output tensor alias: y")
    code, message = refusal(call, predict_request("half", x=np.array([1], np.int32)))
    assert code == "INVALID_ARGUMENT" and message.startswith("Expects arg[0] to be float but int32 is provided")
    code, message = refusal(call, predict_request("half", x=np.ones((2, 2), np.float32)))
    assert code == "INVALID_ARGUMENT" and "[2,2] is not compatible with expected shape [?]" in message
    code, message = refusal(call, predict_request("half", "s" * 5000, x=FLOATS))
    assert code == "FAILED_PRECONDITION" and len(message) == 1024 and message.endswith("...TRUNCATED")
    assert_healthy(stubs)


def png_header(width, height):
    """Return a PNG without pixels whose header has the given size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IEND"
        + struct.pack(">I", zlib.crc32(b"IEND"))
    )


def test_data_that_is_not_an_image(stubs):
    pixels, _ = random_image(shape=(64, 64, 3))
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    for data, words in (
        (b"just some text", "neither a JPEG nor a PNG"),
        (b"", "neither a JPEG nor a PNG"),
        (jpeg[: len(jpeg) // 2], ""),
        (jpeg[:20], ""),
        (png_header(60000, 60000), "maximum"),
        (png_header(0, 10), ""),
        (b"\x89PNG\r\n\x1a\n", "shorter than its header"),
    ):
        for signature in ("serving_default", "predict_map"):
            code, message = refusal(
                stubs.predictions.Predict, predict_request("seg", signature, image_bytes=np.array([data], object))
            )
            assert code == "INVALID_ARGUMENT" and words in message, (data[:30], message)
    assert_healthy(stubs)


def test_an_empty_batch_and_wrong_ranks(stubs):
    call = stubs.predictions.Predict
    for signature, value in (
        ("serving_default", np.empty(0, object)),
        ("predict_map", np.empty(0, object)),
        ("predict_tensor", np.empty((0, 8, 8, 3), np.uint8)),
        ("predict_tensor", np.empty((1, 0, 0, 3), np.uint8)),
        ("predict_tensor", np.zeros((8, 8, 3), np.uint8)),
        ("predict_tensor", np.zeros((1, 8, 8, 4), np.uint8)),
        ("predict_tensor", np.zeros((1, 1, 8, 8, 3), np.uint8)),
        ("serving_default", np.array(random_image()[1], object)),
        ("serving_default", np.array([[random_image()[1]]], object)),
    ):
        request = predict_request("seg", signature)
        key = "image" if signature == "predict_tensor" else "image_bytes"
        request.inputs[key].CopyFrom(
            tf.make_tensor_proto(value, dtype=tf.string if value.dtype == object else None, shape=value.shape)
        )
        try:
            response = call(request, timeout=SECONDS)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, (signature, value.shape, error.details())
        else:
            # An empty batch gets an empty response.
            assert value.size == 0 and all(tf.make_ndarray(each).size == 0 for each in response.outputs.values())
    assert_healthy(stubs)


def test_a_request_that_is_too_large(stubs):
    large = predict_request("seg", "predict_tensor", image=np.zeros((1, 5000, 7000, 3), np.uint8))
    assert large.ByteSize() > 100_000_000
    code, message = refusal(stubs.predictions.Predict, large)
    assert code == "RESOURCE_EXHAUSTED" and "larger than max" in message
    assert_healthy(stubs)


def test_what_is_no_message_of_the_protocol(server, stubs):
    call = stubs.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff no message", timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.RpcError) as caught:
        stubs.channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")(b"", timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert_healthy(stubs)


def test_clients_that_disconnect_in_the_middle_of_a_request(server, stubs):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.grpc_port)) as connection:
            # These bytes are HTTP/2's preface, empty settings, and half a frame of headers.
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0\0\0\x40\1\4\0\0\0\1half")
    # The client opens more requests than the server has threads, sends none of them and disconnects.
    over = threading.Event()
    with running_servers.connected(server) as other:
        never = other.channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        calls = [never.future(iter(over.wait, True)) for _ in range(350)]
        time.sleep(1)
        assert not any(call.done() for call in calls)
    over.set()
    assert_healthy(stubs)
    large = predict_request("seg", "predict_tensor", image=np.zeros((1, 900, 2000, 3), np.uint8))
    for _ in range(10):
        with running_servers.connected(server) as other:
            other.predictions.Predict.future(large, timeout=SECONDS).cancel()
    assert_healthy(stubs)


def test_200_connections_at_once(server):
    request = predict_request("half", version=2, x=FLOATS)
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(200)
    ]
    try:
        calls = [
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(
                request, timeout=60, wait_for_ready=True
            )
            for channel in channels
        ]
        for call in calls:
            assert list(call.result().outputs["y"].float_val) == [2.5, 3, 4.5]
    finally:
        for channel in channels:
            channel.close()


def test_a_full_server_refuses_requests_and_still_reports_its_status(base):
    small_servables.half_plus_two(base / "full", 2)
    release, entered = threading.Event(), threading.Semaphore(0)
    options = replace(
        QUICK,
        model_name="half",
        model_base_path=str(base / "full"),
        max_running_requests=2,
        max_waiting_requests=3,
        enable_grpc_healthcheck_service=True,
    )
    with running_servers.running(options) as server, running_servers.connected(server) as stubs:
        with server.models.use(model_pb2.ModelSpec(name="half")) as handle:
            model, run = handle.model, handle.model.run

        def blocked(*arguments):
            entered.release()
            assert release.wait(SECONDS)
            return run(*arguments)

        model.run = blocked
        request = predict_request("half", x=FLOATS)
        calls = [stubs.predictions.Predict.future(request, timeout=SECONDS) for _ in range(2)]
        assert entered.acquire(timeout=SECONDS) and entered.acquire(timeout=SECONDS)
        calls += [stubs.predictions.Predict.future(request, timeout=SECONDS) for _ in range(9)]
        # Two requests run and three wait; the six others are refused at once.
        until(lambda: sum(call.done() for call in calls) == 6)
        refused = [call for call in calls if call.done()]
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {call.details() for call in refused} == {"The server is busy: 2 requests run and 3 wait"}
        assert states(stubs, "half") == {2: "AVAILABLE"}
        health = health_pb2_grpc.HealthStub(stubs.channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == 1
        release.set()
        for call in calls:
            if call not in refused:
                assert list(call.result().outputs["y"].float_val) == [2.5, 3, 4.5]
        assert_healthy(stubs)


def test_a_corrupt_new_version_and_a_removed_base_path(base):
    base_path = base / "changing"
    small_servables.half_plus_two(base_path, 2)
    with running_servers.running(base_path, "half") as server, running_servers.connected(server) as stubs:
        small_servables.corrupt(base_path, 3)
        until(lambda: states(stubs, "half").get(3) == "END")
        status = stubs.models.GetModelStatus(status_request("half", 3)).model_version_status[0].status
        assert status.error_code != 0 and status.error_message
        assert_healthy(stubs)
        small_servables.half_plus_two(base_path, 4, add=4.0)
        until(lambda: states(stubs, "half").get(4) == "AVAILABLE")
        assert stubs.predictions.Predict(predict_request("half", x=FLOATS)).outputs["y"].float_val[0] == 4.5
        shutil.rmtree(base_path)
        # In this time the server polls the removed base path twice.
        time.sleep(2.5)
        assert stubs.predictions.Predict(predict_request("half", x=FLOATS)).outputs["y"].float_val[0] == 4.5


def test_an_internal_error_affects_only_its_request(server, stubs, caplog):
    with server.models.use(model_pb2.ModelSpec(name="half")) as handle:
        handle.model.run = None
        try:
            code, message = refusal(stubs.predictions.Predict, predict_request("half", x=FLOATS))
        finally:
            del handle.model.run
    assert code == "INTERNAL" and message.startswith("TypeError")
    assert [record for record in caplog.records if record.levelname == "ERROR" and record.exc_info]
    assert_healthy(stubs)
