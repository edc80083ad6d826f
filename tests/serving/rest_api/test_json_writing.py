"""Test JSON responses by parsing them with the json module."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.errors import ServingError
from serving.rest_api import json_examples, json_writing


def round_trip(outputs, rows=True):
    return json.loads(json_writing.predict_json(outputs, rows))


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (0,), (2, 0), (0, 3), (2, 3), (3, 4, 2), (2, 1, 3, 1), (2, 3, 50, 61)]
)
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "int64", "uint64", "bool", "float32", "float64"])
def test_every_dtype_and_shape(shape, dtype):
    random = np.random.default_rng(2)
    values = np.asarray(random.integers(-5, 120, shape) if dtype[0] != "u" else random.integers(0, 120, shape), dtype)
    assert json.loads(json_writing.array_json(values)) == values.tolist()


@pytest.mark.parametrize("limits", [(0, 10), (0, 256), (0, 1000), (0, 1001), (-1, 5), (-(2**31), 2**31)])
def test_integers_in_and_beyond_the_table(limits):
    values = np.random.default_rng(3).integers(*limits, (4, 500), np.int64)
    values[0, :2] = limits[0], limits[1] - 1
    assert round_trip({"x": values}) == {"predictions": values.tolist()}


def test_class_map_larger_than_a_piece():
    values = np.random.default_rng(4).integers(0, 255, (2, 1100, 1000), np.uint8)
    assert values.size > json_writing.TABLE_PIECE
    assert np.array_equal(round_trip({"class_map": values})["predictions"], values)


def test_strings_are_base64_only_if_the_name_ends_in_bytes():
    images = np.array([b"\x89PNG\xff", b""], object)
    assert round_trip({"png_bytes": images}) == {"predictions": [{"b64": "iVBOR/8="}, {"b64": ""}]}
    assert round_trip({"bytes": np.array([['née "\n'.encode()]], object)}) == {"predictions": [['née "\n']]}
    # TensorFlow Serving writes raw bytes here too, although the result is not valid JSON.
    assert json_writing.predict_json({"png": images}, True) == b'{"predictions":["\x89PNG\xff",""]}'


def test_rows_and_columns_of_multiple_outputs():
    outputs = {"size": np.array([[2, 3], [4, 5]], np.int32), "png_bytes": np.array([b"a", b"b"], object)}
    assert round_trip(outputs) == {
        "predictions": [{"png_bytes": {"b64": "YQ=="}, "size": [2, 3]}, {"png_bytes": {"b64": "Yg=="}, "size": [4, 5]}]
    }
    assert round_trip(outputs, rows=False) == {
        "outputs": {"png_bytes": [{"b64": "YQ=="}, {"b64": "Yg=="}], "size": [[2, 3], [4, 5]]}
    }
    assert round_trip({"y": np.float32(2.5).reshape(())}, rows=False) == {"outputs": 2.5}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"a": np.zeros(2), "b": np.zeros(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
        ({"a": np.zeros(())}, "Tensor name: a has no shape information "),
        ({"a": np.zeros(2, np.float16)}, "Failed to write JSON value for tensor type: half"),
        ({"a": np.zeros(2, ml_dtypes.bfloat16)}, "Failed to write JSON value for tensor type: bfloat16"),
        ({"a": np.zeros(2, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({}, "Cannot convert empty tensor map to JSON"),
    ],
)
def test_outputs_without_a_json_form_are_rejected(outputs, message):
    with pytest.raises(ServingError, match=message):
        json_writing.predict_json(outputs, True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_survive_a_round_trip(dtype):
    bits = np.random.default_rng(5).integers(0, 256, (20_000, np.dtype(dtype).itemsize), np.uint8)
    values = bits.view(dtype)[:, 0]
    parsed = np.array(round_trip({"x": values})["predictions"], dtype)
    np.testing.assert_array_equal(parsed, values)


def test_floats_are_short_and_do_not_look_like_integers():
    values = np.array([0.2, 1 / 3, 9e6, 3e-5, 1e10, 2.5, 100000, 0, -1, math.nan, math.inf, -math.inf], np.float32)
    assert json_writing.decimal_texts(values) == [
        "0.2",
        "0.333333343",
        "9e+06",
        "3e-05",
        "1e+10",
        "2.5",
        "100000.0",
        "0.0",
        "-1.0",
        "NaN",
        "Infinity",
        "-Infinity",
    ]
    assert json_writing.decimal_texts(np.array([0.1, 1 / 3])) == ["0.1", "0.33333333333333331"]


def test_classifications_and_regressions():
    result = classification_pb2.ClassificationResult()
    for score in (0.25, 1.0):
        row = result.classifications.add()
        row.classes.add(label='a"', score=score)
        row.classes.add(score=0.1)
    assert json_examples.classifications(result) == (rb'{"results":[[["a\"",0.25],["",0.1]],[["a\"",1.0],["",0.1]]]}')
    regressions = regression_pb2.RegressionResult(regressions=[regression_pb2.Regression(value=2.5)])
    assert json_examples.regressions(regressions) == b'{"results":[2.5]}'
    with pytest.raises(ServingError):
        json_examples.regressions(regression_pb2.RegressionResult())
