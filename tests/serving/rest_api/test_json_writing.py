"""Answers in JSON, read back by json."""

import json
import math

import ml_dtypes
import numpy as np
import pytest
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.errors import ServingError
from serving.rest_api import json_examples, json_writing


def back(outputs, rows=True):
    return json.loads(json_writing.write(outputs, rows))


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 0), (0, 3), (2, 3), (3, 4, 2), (2, 1, 3, 1),
                                   (2, 3, 50, 61)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "uint32", "int64", "uint64", "bool", "float32", "float64"])
def test_every_type_and_shape(shape, dtype):
    random = np.random.default_rng(2)
    values = np.asarray(random.integers(-5, 120, shape) if dtype[0] != "u" else random.integers(0, 120, shape), dtype)
    assert json.loads(json_writing.text(values)) == values.tolist()


@pytest.mark.parametrize("limits", [(0, 10), (0, 256), (0, 1000), (0, 1001), (-1, 5), (-2 ** 31, 2 ** 31)])
def test_integers_in_and_beyond_the_table_of_texts(limits):
    values = np.random.default_rng(3).integers(*limits, (4, 500), np.int64)
    values[0, :2] = limits[0], limits[1] - 1
    assert back({"x": values}) == {"predictions": values.tolist()}


def test_a_class_map_larger_than_a_piece():
    values = np.random.default_rng(4).integers(0, 255, (2, 1100, 1000), np.uint8)
    assert values.size > json_writing.TABLED_PIECE
    assert np.array_equal(back({"class_map": values})["predictions"], values)


def test_strings_are_base64_only_under_names_that_end_in_bytes():
    pictures = np.array([b"\x89PNG\xff", b""], object)
    assert back({"png_bytes": pictures}) == {"predictions": [{"b64": "iVBOR/8="}, {"b64": ""}]}
    assert back({"bytes": np.array([['née "\n'.encode()]], object)}) == {"predictions": [['née "\n']]}
    # As they are, which is no JSON, as TensorFlow Serving answers.
    assert json_writing.write({"png": pictures}, True) == b'{"predictions":["\x89PNG\xff",""]}'


def test_rows_and_columns_of_several_outputs():
    outputs = {"size": np.array([[2, 3], [4, 5]], np.int32), "png_bytes": np.array([b"a", b"b"], object)}
    assert back(outputs) == {"predictions": [{"png_bytes": {"b64": "YQ=="}, "size": [2, 3]},
                                             {"png_bytes": {"b64": "Yg=="}, "size": [4, 5]}]}
    assert back(outputs, rows=False) == {"outputs": {"png_bytes": [{"b64": "YQ=="}, {"b64": "Yg=="}],
                                                     "size": [[2, 3], [4, 5]]}}
    assert back({"y": np.float32(2.5).reshape(())}, rows=False) == {"outputs": 2.5}


@pytest.mark.parametrize(("outputs", "words"), [
    ({"a": np.zeros(2), "b": np.zeros(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
    ({"a": np.zeros(())}, "Tensor name: a has no shape information "),
    ({"a": np.zeros(2, np.float16)}, "Failed to write JSON value for tensor type: half"),
    ({"a": np.zeros(2, ml_dtypes.bfloat16)}, "Failed to write JSON value for tensor type: bfloat16"),
    ({"a": np.zeros(2, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
    ({}, "Cannot convert empty tensor map to JSON")])
def test_what_has_no_form_is_refused(outputs, words):
    with pytest.raises(ServingError, match=words):
        json_writing.write(outputs, True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_mean_the_same_value_when_read_back(dtype):
    bits = np.random.default_rng(5).integers(0, 256, (20_000, np.dtype(dtype).itemsize), np.uint8)
    values = bits.view(dtype)[:, 0]
    found = np.array(back({"x": values})["predictions"], dtype)
    np.testing.assert_array_equal(found, values)


def test_floats_are_short_and_never_look_like_integers():
    values = np.array([0.2, 1 / 3, 9e6, 3e-5, 1e10, 2.5, 100000, 0, -1, math.nan, math.inf, -math.inf], np.float32)
    assert json_writing.decimals(values) == ["0.2", "0.333333343", "9e+06", "3e-05", "1e+10", "2.5", "100000.0", "0.0",
                                             "-1.0", "NaN", "Infinity", "-Infinity"]
    assert json_writing.decimals(np.array([0.1, 1 / 3])) == ["0.1", "0.33333333333333331"]


def test_classifications_and_regressions():
    result = classification_pb2.ClassificationResult()
    for score in (0.25, 1.0):
        row = result.classifications.add()
        row.classes.add(label='a"', score=score)
        row.classes.add(score=0.1)
    assert json_examples.classifications(result) == (
        rb'{"results":[[["a\"",0.25],["",0.1]],[["a\"",1.0],["",0.1]]]}')
    regressions = regression_pb2.RegressionResult(regressions=[regression_pb2.Regression(value=2.5)])
    assert json_examples.regressions(regressions) == b'{"results":[2.5]}'
    with pytest.raises(ServingError):
        json_examples.regressions(regression_pb2.RegressionResult())
