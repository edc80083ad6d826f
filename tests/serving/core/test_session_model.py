"""SavedModels in sessions: results, dtypes, errors and memory."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.core import session_model
from serving.errors import ServingError
from tests.helpers.small_servables import CLASSES, SIZE, corrupt, half_plus_two, ids_of, segmentation

DEFAULT = "serving_default"


def load(directory, tags=("serve",)):
    return session_model.load_session_model(directory, tags, session_model.Threads())


def saved(directory, build, shape=(None,), dtype=tf.float32):
    """Write a model of one placeholder x and y = build(x)."""
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(dtype, shape, name="x")
        x_info, y_info = (tf.compat.v1.saved_model.build_tensor_info(tensor) for tensor in (x, build(x)))
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            builder = tf.compat.v1.saved_model.Builder(str(directory))
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {DEFAULT: tf.compat.v1.saved_model.build_signature_def({"x": x_info}, {"y": y_info})},
            )
            builder.save()
    return directory


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    model = load(half_plus_two(tmp_path_factory.mktemp("half"), 1))
    yield model
    model.close()


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    model = load(segmentation(tmp_path_factory.mktemp("segmenter"), 3, shift=1))
    yield model
    model.close()


def random_image(height=9, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def error_of(model, values, key="x", signature=DEFAULT, output="y", deadline=None):
    with pytest.raises(ServingError) as caught:
        model.run(signature, {key: values}, (output,), deadline)
    return caught.value


def test_prediction_classification_and_regression_signatures(half):
    values = np.array([0, 1, -8], np.float32)
    assert half.run(DEFAULT, {"x": values}, ("y",), None)["y"].tolist() == [2.0, 2.5, -2.0]
    examples = np.array(
        [
            tf.train.Example(
                features=tf.train.Features(
                    feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))}
                )
            ).SerializeToString()
            for value in values
        ],
        object,
    )
    for signature, output in (("regress_x_to_y", "outputs"), ("classify_x_to_y", "scores")):
        outputs = half.run(signature, {"inputs": examples}, (output,), None)
        assert outputs[output].tolist() == [[2.0], [2.5], [-2.0]]
    assert half.signatures["regress_x_to_y"].method_name == "tensorflow/serving/regress"


def test_all_signatures_of_an_exported_model(segmenter):
    image = random_image()
    assert sorted(name for name in segmenter.signatures if not name.startswith("__")) == [
        "predict_map",
        "predict_scores",
        "predict_tensor",
        "serve_tf_examples",
        DEFAULT,
    ]
    outputs = segmenter.run("predict_scores", {"image": image[None]}, ("confidence", "class_map"), None)
    assert list(outputs) == ["confidence", "class_map"] and (outputs["class_map"][0] == ids_of(image, 1)).all()
    data = [cv2.imencode(".png", source[..., ::-1])[1].tobytes() for source in (image, random_image(20, 30, 1))]
    outputs = segmenter.run(DEFAULT, {"image_bytes": np.array(data, object)}, ("png_bytes", "size"), None)
    assert outputs["png_bytes"].dtype == object and outputs["size"].tolist() == [[9, 7], [20, 30]]
    for png, source in zip(outputs["png_bytes"], (image, random_image(20, 30, 1)), strict=True):
        assert isinstance(png, bytes)
        ids = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (ids == ids_of(source, 1)).all()
    class_map = segmenter.run("predict_map", {"image_bytes": np.array(data, object)}, ("class_map",), None)["class_map"]
    assert class_map.shape == (2, *SIZE) and class_map.max() < len(CLASSES)


def test_values_of_a_wrong_dtype_are_refused_and_not_cast(half, segmenter):
    error = error_of(half, np.array([1, 2], np.uint8))
    assert (error.code, error.message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Expects arg[0] to be float but uint8 is provided",
    )
    error = error_of(segmenter, random_image()[None].astype(np.float32), "image", "predict_tensor", "class_map")
    assert error.message == "Expects arg[0] to be uint8 but float is provided"
    assert error_of(half, np.array([b"1"], object)).message == "Expects arg[0] to be float but string is provided"


@pytest.mark.parametrize("shape", [(), (3,), (4, 5, 3), (1, 4, 5, 4), (1, 1, 4, 5, 3)])
def test_a_wrong_rank_is_an_error_and_does_not_end_the_process(segmenter, shape):
    error = error_of(segmenter, np.zeros(shape, np.uint8), "image", "predict_tensor", "class_map")
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT and "is not compatible with expected shape" in error.message


def test_the_graph_and_not_the_signature_checks_shapes(tmp_path):
    model = load(saved(tmp_path / "1", lambda x: 2 * x, shape=(None, 1)))
    assert model.run(DEFAULT, {"x": np.array([3], np.float32)}, ("y",), None)["y"].tolist() == [6.0]
    model.close()


def test_errors_of_the_graph_keep_their_code_and_text(segmenter):
    error = error_of(segmenter, np.array([b"text"], object), "image_bytes", output="png_bytes")
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "neither a JPEG nor a PNG" in error.message


def test_unknown_tensors_are_unimplemented(half):
    error = error_of(half, np.ones(1, np.float32), "z")
    assert (error.code, error.message) == (
        grpc.StatusCode.UNIMPLEMENTED,
        f"z is not a dense tensor of the signature {DEFAULT}",
    )


def test_a_run_ends_at_its_deadline(half, tmp_path):
    error = error_of(half, np.ones(1, np.float32), deadline=time.monotonic() - 1)
    assert (error.code, error.message) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    # Without a deadline this loop would run for hours.
    endless = load(
        saved(
            tmp_path / "1",
            lambda x: tf.while_loop(
                lambda turn, _: turn < 2**31 - 1, lambda turn, total: (turn + 1, total * 0.5), (tf.constant(0), x)
            )[1],
        )
    )
    error = error_of(endless, np.ones(1, np.float32), deadline=time.monotonic() + 0.05)
    assert (error.code, error.message) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    endless.close()
    for far in (time.monotonic() + 60, float("inf")):
        assert half.run(DEFAULT, {"x": np.ones(1, np.float32)}, ("y",), far)["y"].tolist() == [2.5]


def test_concurrent_threads_get_correct_results(half, segmenter):
    def ask(number):
        image = random_image(5 + number % 7, 6, number)
        outputs = segmenter.run("predict_tensor", {"image": image[None]}, ("class_map",), time.monotonic() + 60)
        value = half.run(DEFAULT, {"x": np.full(3, number, np.float32)}, ("y",), None)["y"]
        return (outputs["class_map"][0] == ids_of(image, 1)).all() and value.tolist() == [number / 2 + 2] * 3

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(200)))


def without(name):
    return lambda directory: (
        shutil.rmtree(directory / name) if (directory / name).is_dir() else (directory / name).unlink()
    )


def cut(name, length):
    def damage(directory):
        path = directory / name
        path.write_bytes(path.read_bytes()[:length])

    return damage


DATA = "variables/variables.data-00000-of-00001"


@pytest.mark.parametrize(
    "damage, tags, code, message",
    [
        (
            without("saved_model.pb"),
            "serve",
            "NOT_FOUND",
            "Could not find SavedModel .pb or .pbtxt at supplied export ",
        ),
        (
            lambda directory: None,
            "serve,gpu",
            "NOT_FOUND",
            "Could not find meta graph def matching supplied tags: { serve gpu }",
        ),
        (
            cut("saved_model.pb", 0),
            "serve",
            "NOT_FOUND",
            "Could not find meta graph def matching supplied tags: { serve }",
        ),
        (cut("saved_model.pb", 1000), "serve", "DATA_LOSS", "saved_model.pb"),
        (without("variables"), "serve", "NOT_FOUND", "variables: The passed save_path is not a valid checkpoint"),
        (without("variables/variables.index"), "serve", "NOT_FOUND", "not a valid checkpoint"),
        (without(DATA), "serve", "NOT_FOUND", "variables.data-00000-of-00001"),
        (cut(DATA, 3), "serve", "OUT_OF_RANGE", "1: Read less bytes than requested"),
        (cut("variables/variables.index", 20), "serve", "DATA_LOSS", "1: file is too short to be an sstable"),
    ],
)
def test_damaged_models_are_refused_with_a_code(tmp_path, damage, tags, code, message):
    directory = half_plus_two(tmp_path, 1)
    damage(directory)
    with pytest.raises(ServingError) as caught:
        load(directory, tuple(tags.split(",")))
    assert caught.value.code.name == code and message in caught.value.message
    assert str(directory) in caught.value.message and "stack trace" not in caught.value.message


@pytest.mark.parametrize("around", ["", "Detected at node 'x' defined at:\nNode: 'x'\n"], ids=["", "with a node"])
def test_the_context_that_python_adds_to_messages_is_removed(around):
    text = f"Graph execution error:\n\n{around}Read less bytes\n\nOriginal stack trace for 'x':\n  line"
    assert session_model.PYTHON_CONTEXT.sub("", text) == "Read less bytes"


def test_a_file_that_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(ServingError) as caught:
        load(corrupt(tmp_path, 1))
    assert caught.value.code == grpc.StatusCode.DATA_LOSS
    assert str(tmp_path / "1" / "saved_model.pb") in caught.value.message


def test_a_closed_model_refuses_to_run(tmp_path):
    model = load(half_plus_two(tmp_path, 1))
    model.close()
    model.close()
    assert error_of(model, np.ones(1, np.float32)).code == grpc.StatusCode.CANCELLED


def resident():
    """Return the resident memory of the process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_closing_frees_the_memory(tmp_path):
    size = 2**25

    def large(x):
        with tf.compat.v1.variable_scope("", use_resource=True):
            return x + tf.compat.v1.get_variable("weights", initializer=tf.fill([size // 4], 1.0))[:1]

    directory, sizes = saved(tmp_path / "1", large), []
    for _ in range(6):
        model = load(directory)
        assert model.run(DEFAULT, {"x": np.ones(1, np.float32)}, ("y",), None)["y"].tolist() == [2.0]
        model.close()
        sizes.append(resident())
    # Two leaked models would exceed this limit.
    assert sizes[-1] - sizes[1] < size
