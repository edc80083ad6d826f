"""Batching: merged and divided tensors, and its parameters."""

import re
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.config import protos
from serving.core.batching import Scheduler
from serving.errors import ServingError
from tests.helpers import running_servers, small_servables
from tests.helpers.batched_models import (
    LONG,
    RecordingMonitor,
    ask,
    failure,
    floats,
    occupy,
    parameters,
    strings,
    until,
    waiting_tasks,
)

CONFIG = Path(__file__).parents[3] / "serving" / "batching.config"
INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


def test_a_batch_is_padded_with_the_last_request_and_the_padding_is_removed(batching, pool):
    scheduler, batched, model = batching(max_batch_size=8, num_batch_threads=1, allowed=(1, 8))
    blocker = occupy(pool, batched, model)
    futures = []
    for rows in (strings(b"ab", b"cd"), strings(b"ef", b"gh", b"ij")):
        futures.append(pool.submit(ask, batched, rows, "text"))
        until(lambda: waiting_tasks(batched) == len(futures))
    model.gate.set()
    assert [future.result(60).tolist() for future in futures] == [[b"ba", b"dc"], [b"fe", b"hg", b"ji"]]
    assert blocker.result(60).tolist() == [-1]
    assert model.seen[1]["text"].tolist() == [b"ab", b"cd", b"ef", b"gh", b"ij", b"ef", b"ef", b"ef"]
    assert scheduler.monitor.batches == [("half", 1, 1, 1), ("half", 2, 5, 8)]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x": floats(1), "z": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": floats(1), "z": floats(1, 2)}, "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_inputs_with_different_numbers_of_rows_are_refused(batching, inputs, message):
    _, batched, _ = batching()
    with pytest.raises(ServingError, match=f"^{re.escape(message)}$") as caught:
        batched.run("two", inputs, ("sum",), None)
    assert caught.value.code is INVALID


def test_a_request_without_rows_is_run_alone(batching):
    _, batched, model = batching(max_batch_size=4, batch_timeout_micros=LONG)
    assert ask(batched, floats()).tolist() == []
    assert model.runs == [0]


@pytest.mark.parametrize(
    "signature, message",
    [
        ("scalar", "Batched output tensor has 0 dimensions"),
        (
            "short",
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_outputs_with_a_wrong_number_of_rows_are_refused(batching, signature, message):
    _, batched, _ = batching(max_batch_size=4)
    with pytest.raises(ServingError, match=f"^{message}$") as caught:
        ask(batched, floats(1, 2), signature)
    assert caught.value.code is PRECONDITION


def submit_together(batched, model, pool, *requests):
    blocker = occupy(pool, batched, model)
    futures = []
    for rows in requests:
        futures.append(pool.submit(ask, batched, rows))
        until(lambda: waiting_tasks(batched) == len(futures))
    model.gate.set()
    blocker.result(60)
    return futures


def test_without_padding_and_isolation_different_shapes_are_refused(batching, pool):
    _, batched, model = batching(isolate=False, max_batch_size=4, num_batch_threads=1)
    for future in submit_together(batched, model, pool, np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32)):
        assert failure(future, PRECONDITION) == (
            "Tensors with name 'x_tensor:0' from different tasks have different shapes and padding is turned off."
            "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
            "have equal dimensions starting with the first dim."
        )


def test_with_isolation_requests_of_different_shapes_are_run_alone(batching, pool):
    _, batched, model = batching(max_batch_size=4, num_batch_threads=1)
    first, second = submit_together(batched, model, pool, floats([1, 2]), floats([3, 4, 5]))
    np.testing.assert_array_equal(first.result(60), [[3, 5]])
    np.testing.assert_array_equal(second.result(60), [[7, 9, 11]])
    assert model.runs == [1, 1, 1]


def test_shapes_are_padded_with_the_first_value_of_each_request(batching, pool):
    _, batched, model = batching(max_batch_size=4, num_batch_threads=1, pad=True)
    first, second = submit_together(batched, model, pool, floats([[7, 8]]), floats([[1], [2], [3]], [[4], [5], [6]]))
    padded = floats([[7, 8], [7, 7], [7, 7]], [[1, 1], [2, 1], [3, 1]], [[4, 1], [5, 1], [6, 1]])
    np.testing.assert_array_equal(model.seen[1]["x"], padded)
    # Like in TensorFlow Serving, the outputs are not cropped.
    np.testing.assert_array_equal(first.result(60), 2 * padded[:1] + 1)
    np.testing.assert_array_equal(second.result(60), 2 * padded[1:] + 1)


def test_different_ranks_cannot_be_padded(batching, pool):
    _, batched, model = batching(isolate=False, max_batch_size=4, num_batch_threads=1, pad=True)
    for future in submit_together(batched, model, pool, floats([1]), floats([[1]])):
        assert "different ranks" in failure(future, PRECONDITION)


def test_a_model_may_have_its_own_parameters(batching):
    scheduler, batched, model = batching(max_batch_size=2)
    other = scheduler.wrap("half", model, parameters(max_batch_size=3))
    assert other.directory == model.directory and other.signatures is model.signatures
    assert ask(other, floats(1, 2, 3)).tolist() == [3, 5, 7]
    with pytest.raises(ServingError, match="larger than maximum input batch size 2"):
        ask(batched, floats(1, 2, 3))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"max_batch_size": 0}, "max_batch_size must be positive; was 0"),
        ({"max_enqueued_batches": 0}, "max_enqueued_batches must be positive; was 0"),
        ({"num_batch_threads": 0}, "num_batch_threads must be positive; was 0"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros must be non-negative; was -1"),
        ({"max_batch_size": 8, "allowed": (4, 2, 8)}, "allowed_batch_sizes entries must be monotonically increasing"),
        ({"max_batch_size": 8, "allowed": (4, 4, 8)}, "allowed_batch_sizes entries must be monotonically increasing"),
        ({"max_batch_size": 8, "allowed": (0, 8)}, "allowed_batch_sizes entries must be monotonically increasing"),
        (
            {"max_batch_size": 8, "allowed": (2, 4)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            {
                "max_batch_size": 8,
                "enable_large_batch_splitting": True,
                "max_execution_batch_size": 4,
                "allowed": (2, 8),
            },
            "must be equal to max_execution_batch_size; last entry was 8; expected 4",
        ),
        (
            {"max_batch_size": 8, "enable_large_batch_splitting": True, "max_execution_batch_size": 9},
            "max_batch_size must be greater than or equal to max_execution_batch_size; they were 8 and 9",
        ),
    ],
)
def test_contradictory_parameters_are_refused(values, message):
    with pytest.raises(ServingError, match=message) as caught:
        Scheduler(parameters(**values), RecordingMonitor())
    assert caught.value.code is INVALID


def test_default_parameters():
    scheduler = Scheduler(protos.BatchingParameters(), RecordingMonitor())
    try:
        settings = scheduler.settings
        assert (
            settings.max_request_rows,
            settings.max_run_rows,
            settings.timeout,
            settings.max_enqueued,
            settings.allowed,
            settings.pad,
            settings.splitting,
        ) == (1000, 1000, 0, 10, (), False, False)
        assert {thread.name.rpartition("_")[0] for thread in scheduler.threads} == {"batch_threads"}
    finally:
        scheduler.stop()


def test_the_parameters_of_batching_config():
    message = protos.parse_text_proto(CONFIG, protos.BatchingParameters, "tensorflow.serving.BatchingParameters")
    scheduler = Scheduler(message, RecordingMonitor())
    scheduler.stop()
    assert scheduler.settings.allowed[-1] == scheduler.settings.max_run_rows
    assert len(scheduler.threads) == message.num_batch_threads.value


def test_a_batching_server_answers_images_of_mixed_sizes_and_damaged_ones(tmp_path, pool):
    small_servables.segmentation(tmp_path, 1)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*random.integers(1, 30, 2), 3), np.uint8) for _ in range(90)]
    bad = set(range(4, 90, 9))

    def ask(number):
        request = predict_pb2.PredictRequest(output_filter=["png_bytes"])
        request.model_spec.name = "model"
        data = b"not an image" if number in bad else tf.io.encode_png(images[number]).numpy()
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
        return stubs.predictions.Predict(request, timeout=60).outputs["png_bytes"].string_val[0]

    options = replace(
        running_servers.QUICK,
        model_name="model",
        model_base_path=str(tmp_path),
        enable_batching=True,
        batching_parameters_file=str(CONFIG),
        max_running_requests=64,
    )
    with running_servers.running(options) as server, running_servers.connected(server) as stubs:
        futures = [pool.submit(ask, number) for number in range(90)]
        for number, (image, future) in enumerate(zip(images, futures)):
            if number in bad:
                assert future.exception(60).code() is INVALID
            else:
                np.testing.assert_array_equal(
                    tf.io.decode_png(future.result(60)).numpy()[..., 0], small_servables.ids_of(image)
                )
