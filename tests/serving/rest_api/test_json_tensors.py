"""Test the conversion of JSON requests to tensors against json and NumPy, and its error messages."""

import base64
import json
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2 as types

from serving.errors import ServingError
from serving.rest_api import json_examples, json_reading, json_tensors
from serving.rest_api.json_reading import Dense


def parse(body, **dtypes):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json_tensors.parse_predict(
        body, lambda name: {alias: SimpleNamespace(dtype=dtype) for alias, dtype in dtypes.items()}
    )


def message(body, **dtypes):
    with pytest.raises(ServingError) as error:
        parse(body, **dtypes)
    assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
    return error.value.message


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" ,\n\t", " :\r\n")])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (types.DT_UINT8, "uint8"),
        (types.DT_INT8, "int8"),
        (types.DT_INT16, "int16"),
        (types.DT_INT32, "int32"),
        (types.DT_INT64, "int64"),
        (types.DT_UINT32, "uint32"),
        (types.DT_UINT64, "uint64"),
        (types.DT_FLOAT, "float32"),
        (types.DT_DOUBLE, "float64"),
    ],
)
def test_numbers_of_every_dtype_with_any_white_space(dtype, name, separators):
    random = np.random.default_rng(0)
    values = random.normal(size=(2, 7, 5, 3)) * 100
    if "float" not in name:
        limits = np.iinfo(name)
        values = random.integers(limits.min, limits.max, values.shape, name, endpoint=True)
        values[0, 0, 0] = limits.min, limits.max, 0
    values = values.astype(name)
    for key in ("instances", "inputs"):
        body = json.dumps({key: values.tolist(), "signature_name": "named"}, separators=separators).encode()
        request = parse(body, x=dtype)
        assert (request.signature_name, request.rows) == ("named", key == "instances")
        assert request.inputs["x"].dtype == name
        np.testing.assert_array_equal(request.inputs["x"], values)


def test_large_arrays_are_read_in_pieces():
    values = np.random.default_rng(1).integers(0, 256, (3, 90, 101, 3))
    body = json.dumps({"instances": values.tolist()}).encode()
    dense = json_reading.parse_document(body)["instances"]
    assert isinstance(dense, Dense) and dense.shape == values.shape
    pieces = list(dense.pieces())
    assert len(pieces) > 3
    assert [number for piece in pieces for number in piece] == values.reshape(-1).tolist()


def test_named_inputs_in_rows_and_columns():
    rows = [{"a": [1, 2], "b": 0.5}, {"b": 1.5, "a": [3, 4]}]
    for body in ({"instances": rows}, {"inputs": {"a": [[1, 2], [3, 4]], "b": [0.5, 1.5], "not asked": 1}}):
        inputs = parse(body, a=types.DT_UINT8, b=types.DT_FLOAT).inputs
        np.testing.assert_array_equal(inputs["a"], np.array([[1, 2], [3, 4]], np.uint8))
        np.testing.assert_array_equal(inputs["b"], np.array([0.5, 1.5], np.float32))


def test_scalars_empty_lists_and_booleans():
    assert parse({"inputs": 2.5}, x=types.DT_FLOAT).inputs["x"] == np.float32(2.5)
    assert parse({"inputs": []}, x=types.DT_FLOAT).inputs["x"].shape == (0,)
    assert parse({"inputs": [[], []]}, x=types.DT_FLOAT).inputs["x"].shape == (2, 0)
    np.testing.assert_array_equal(
        parse({"instances": [[True, False], [False, False]]}, x=types.DT_BOOL).inputs["x"],
        [[True, False], [False, False]],
    )


def test_not_a_number_and_infinity():
    values = parse(b'{"instances": [[NaN, 1], [Infinity, -Infinity]]}', x=types.DT_FLOAT).inputs["x"]
    np.testing.assert_array_equal(values, np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32))


def test_strings_as_text_and_as_base64():
    content = bytes(range(256)) * 3
    encoded = base64.b64encode(content).decode()
    lines = [encoded[start : start + 76] for start in range(0, len(encoded), 76)]
    for text in (encoded, encoded.rstrip("="), "\n".join(lines)):
        strings = parse({"instances": ["née", {"b64": text}, {"b64": ""}]}, x=types.DT_STRING).inputs["x"]
        assert strings.dtype == object and strings.tolist() == ["née".encode(), content, b""]
        assert parse({"instances": [{"x": {"b64": text}}]}, x=types.DT_STRING).inputs["x"].tolist() == [content]
        assert parse({"inputs": {"b64": text}}, x=types.DT_STRING).inputs["x"].item() == content
    assert parse({"inputs": [["a", "b"]]}, x=types.DT_STRING).inputs["x"].shape == (1, 2)
    assert message({"instances": [{"b64": "@@"}]}, x=types.DT_STRING).endswith("Unable to base64 decode")


# The parser compares only brackets and commas of arrays of numbers, but must reject all that the json module rejects.
@pytest.mark.parametrize(
    "text",
    [
        "[1,2",
        "[1,2]]",
        "[[1,]2,[3,4]]",
        "[[1,2]3,[4]]",
        "[1 2]",
        "[1,,2]",
        "[,1]",
        "[1,]",
        "[[1],[2],]",
        "[[1][2]]",
        "[01]",
        "[1.]",
        "[.5]",
        "[+1]",
        "[1e]",
        "[--1]",
        "[1-2]",
        "[Nan]",
        "[Infinit]",
        "[1[2]]",
        "[[1,2],3[4,5]]",
        "[[1 ,2] 3]",
        "[[]1,[]2]",
        "[\u0661]",
        "[1" + "0" * 5000 + "]",
        "[" * 100_000,
        "[1] x",
        "{",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        '"a',
        "",
        " ",
        "nul",
        '"\\x"',
        '"\\ud80"',
        '"\n"',
        "\ufeff",
    ],
)
def test_malformed_json_is_rejected(text):
    if "0" * 5000 not in text and text != "\ufeff":
        with pytest.raises((ValueError, RecursionError)):
            json.loads(text)
    for body in (text, f'{{"inputs": {text}}}' if text else ""):
        assert message(body.encode(), x=types.DT_FLOAT).startswith("JSON Parse error: ")


def test_error_messages_contain_the_offset():
    assert message(b'{"inputs": [1, 2, 03]}', x=types.DT_FLOAT).endswith("at offset: 19")
    assert message(b'{"inputs" [1]}', x=types.DT_FLOAT) == (
        "JSON Parse error: Missing a colon after a name of object member. at offset: 10"
    )
    assert message(b'{"inputs": "\xff"}', x=types.DT_FLOAT).endswith("at offset: 12")
    far = b'{"inputs": [' + b"1, " * 50_000 + b"1 1]}"
    assert message(far, x=types.DT_FLOAT).endswith(f"at offset: {len(far) - 3}")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": [1], "instances": [1]}, "expecting only one of 'inputs' or 'instances' keys to exist"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": {"a": 1}}, "Excepting 'instances' to be an list/array"),
        ({"signature_name": 1, "inputs": [1]}, "'signature_name' key must be a string value."),
        ({"inputs": ["a"]}, 'JSON Value: "a" Type: String is not of expected type: uint8'),
        ({"inputs": [1, 2.5]}, "JSON Value: 2.5 Type: Number is not of expected type: uint8"),
        ({"inputs": [256]}, "JSON Value: 256 Type: Number is not of expected type: uint8"),
        ({"inputs": [-1]}, "JSON Value: -1 Type: Number is not of expected type: uint8"),
        ({"inputs": [1, None]}, "JSON Value: null Type: Null is not of expected type: uint8"),
        ({"inputs": [True]}, "JSON Value: true Type: True is not of expected type: uint8"),
        ({"inputs": [{"b64": "YQ=="}]}, "Type: Object is not of expected type: uint8"),
        ({"inputs": [[1, 2], [3]]}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ({"inputs": [[1, 2], 3]}, "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ({"inputs": [1, [2, 3]]}, "Encountered list at unexpected level: 1 expected < 1"),
        ({"inputs": {"y": [1]}}, "Missing named input: x in 'inputs' object."),
        (
            {"instances": [[1, 2], [3]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1",
        ),
        ({"instances": [[[1, 2]], [[1], [2]]]}, "Expecting shape [1,2] but got: [2,1]"),
        (
            {"instances": [[[1, 2]], [[3, 400]]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: 400 Type: Number",
        ),
        ({"instances": [{"x": 1}, 2]}, "Expecting object but got list at item 1 of input list"),
        ({"instances": [1, {"x": 1}]}, "Expecting value/list but got object at item 1 of input list"),
        (
            {"instances": [{"y": 1}]},
            "Failed to process element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON object: does not have named input: y",
        ),
        ({"instances": [{}]}, "keys must be equal to: x"),
    ],
)
def test_error_messages_match_tensorflow_serving(body, expected):
    assert expected in message(body, x=types.DT_UINT8)


def test_multiple_inputs_need_names():
    two = {"a": types.DT_UINT8, "b": types.DT_UINT8}
    assert "instances is a plain list" in message({"instances": [1, 2]}, **two)
    assert "inputs is a plain value/list" in message({"inputs": [1, 2]}, **two)
    assert message({"instances": [{"a": 1}]}, **two).endswith("keys must be equal to: a,b")


def test_numbers_out_of_a_dtypes_range_are_rejected():
    for value in (16777217, -16777217, 1e39, 10**400):
        assert message({"inputs": [1.5, value]}, x=types.DT_FLOAT).endswith("to float without loss of precision.")
    for value in (16777215, 1e38, 0.1):
        assert parse({"inputs": [value]}, x=types.DT_FLOAT).inputs["x"] == np.float32(value)
    assert "to double without" in message({"inputs": [(1 << 53) + 1]}, x=types.DT_DOUBLE)
    assert "1 to type: half" in message({"instances": [1]}, x=types.DT_HALF)
    with pytest.raises(ServingError) as error:
        parse({"inputs": [1]}, x=types.DT_HALF)
    assert error.value.code == grpc.StatusCode.UNIMPLEMENTED


def test_long_values_are_truncated_in_messages():
    assert len(message({"inputs": ["a" * 100_000]}, x=types.DT_UINT8)) < 500
    assert len(message({"instances": {"a": list(range(100_000))}}, x=types.DT_UINT8)) < 500


def test_irregular_nested_arrays_are_parsed_in_linear_time():
    # Every array begins like an array of numbers, and the search for its end reaches the end of the document.
    count = 20_000
    body = b'{"inputs": ["a"' + b",[1" * count + b"]" * count + b"]}"
    assert "nested too deeply" in message(body, x=types.DT_FLOAT)
    body = b'{"inputs": ["a"' + b",[1]" * count + b"]}"
    assert "Type: String" in message(body, x=types.DT_FLOAT)


def test_too_many_values_outside_of_arrays_are_rejected(monkeypatch):
    monkeypatch.setattr(json_reading, "MAX_VALUES", 1000)
    assert parse({"inputs": list(range(5000))}, x=types.DT_FLOAT).inputs["x"].shape == (5000,)
    assert parse({"inputs": ["a"] * 990}, x=types.DT_STRING).inputs["x"].shape == (990,)
    for body in ({"inputs": ["a"] * 1000}, {"inputs": [{"a": 1}] * 500}, {"inputs": [[], [[[[[[]] * 1000]]]]]}):
        assert "more than 1000 values" in message(body, x=types.DT_STRING)


def test_examples_with_a_context():
    name, request = json_examples.parse_examples(
        json.dumps(
            {
                "signature_name": "s",
                "context": {"c": 3},
                "examples": [
                    {"f": [1.5, 2.0], "i": [1, -2], "t": True, "s": "née", "b": {"b64": "/w=="}, "e": []},
                    {"f": 0.5},
                ],
            }
        ).encode()
    )
    assert name == "s"
    context = request.example_list_with_context.context.features.feature
    assert list(context["c"].int64_list.value) == [3]
    first, second = (example.features.feature for example in request.example_list_with_context.examples)
    assert list(first["f"].float_list.value) == [1.5, 2.0] and list(first["i"].int64_list.value) == [1, -2]
    assert list(first["t"].int64_list.value) == [1] and first["e"].WhichOneof("kind") is None
    assert list(first["s"].bytes_list.value) == ["née".encode()] and list(first["b"].bytes_list.value) == [b"\xff"]
    assert list(second["f"].float_list.value) == [0.5]
    _, request = json_examples.parse_examples(b'{"examples": [{"x": 1}]}')
    assert len(request.example_list.examples) == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "Feature: x has element with unexpected JSON type: Object"),
        ({"examples": [{"x": [1, "a"]}]}, "Unexpected element type in feature: x expecting type: int64"),
        ({"examples": [{"x": [1 << 63]}]}, "Feature: x has uint64 element. Only int64 is supported."),
        ({"examples": [{"x": 1e39}]}, "without loss of precision"),
    ],
)
def test_example_error_messages_match_tensorflow_serving(body, expected):
    with pytest.raises(ServingError, match=expected.replace("(", r"\(")):
        json_examples.parse_examples(json.dumps(body).encode())
