"""TensorProtos from and to arrays, compared with TensorFlow and protobuf."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.core import tensors

EDGES = [
    0,
    1,
    127,
    128,
    129,
    255,
    300,
    16383,
    16384,
    2**21 - 1,
    2**21,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -1,
    -128,
    -129,
    -32768,
    -(2**31),
    -(2**63),
]


def edges(dtype):
    """Return the values at which a varint changes its length, and the bounds of the dtype."""
    bounds = np.iinfo(dtype)
    return np.array([value for value in EDGES if bounds.min <= value <= bounds.max] + [bounds.min, bounds.max], dtype)


def samples():
    generator = np.random.default_rng(0)
    floats = np.array([[0.0, -0.0, 1.5, -2.75], [np.inf, -np.inf, 6e4, 1e-40]], np.float32)
    return [
        np.array(7, np.uint8),
        np.zeros((0, 3), np.float32),
        np.zeros((2, 0), np.int64),
        floats,
        floats.astype(np.float64),
        floats[:, :3].astype(np.float16),
        floats[:, :3].astype(ml_dtypes.bfloat16),
        np.array([True, False]),
        np.array([1 + 2j, -3j], np.complex64),
        np.array([1 - 2j], np.complex128),
        generator.integers(0, 256, (3, 40, 50), np.uint8),
        generator.integers(0, 19, (1, 40, 50), np.uint8),
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
        np.array([[b"", b"a\x00b"], [b"\xff" * 300, b"x"]], object),
        *[edges(dtype) for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64)],
    ]


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("values", samples(), ids=lambda values: f"{values.dtype}{values.shape}")
def test_protobuf_and_tensorflow_parse_the_assembled_bytes(values, as_content):
    written = tensor_pb2.TensorProto.FromString(b"".join(tensors.wire_parts(values, as_content)))
    np.testing.assert_array_equal(tf.make_ndarray(written), values)
    parsed = tf.io.parse_tensor(written.SerializeToString(), tf.as_dtype(written.dtype)).numpy()
    np.testing.assert_array_equal(parsed, values)
    assert bool(written.tensor_content) == (as_content and values.dtype != object and values.size > 0)


@pytest.mark.parametrize("values", samples(), ids=lambda values: f"{values.dtype}{values.shape}")
def test_lists_of_values_are_encoded_like_in_protobuf(values):
    expected = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING if values.dtype == object else tf.as_dtype(values.dtype).as_datatype_enum
    )
    expected.tensor_shape.SetInParent()
    for size in values.shape:
        expected.tensor_shape.dim.add(size=size)
    flat = values.reshape(-1)
    if values.dtype == object:
        expected.string_val.extend(flat)
    elif values.dtype in (np.float16, ml_dtypes.bfloat16):
        expected.half_val.extend(flat.view(np.uint16).tolist())
    elif values.dtype.kind == "c":
        half = flat.view(np.float32 if values.dtype == np.complex64 else np.float64).tolist()
        (expected.scomplex_val if values.dtype == np.complex64 else expected.dcomplex_val).extend(half)
    else:
        field = {
            "float32": "float_val",
            "float64": "double_val",
            "int64": "int64_val",
            "uint32": "uint32_val",
            "uint64": "uint64_val",
            "bool": "bool_val",
        }.get(values.dtype.name, "int_val")
        getattr(expected, field).extend(flat.tolist())
    assert b"".join(tensors.wire_parts(values, False)) == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("values", samples(), ids=lambda values: f"{values.dtype}{values.shape}")
def test_arrays_are_read_from_tensor_content_and_from_lists(values):
    content = tf.make_tensor_proto(values)
    np.testing.assert_array_equal(tensors.to_array(content), values)
    assert tensors.to_array(content).dtype == values.dtype
    listed = tensor_pb2.TensorProto.FromString(b"".join(tensors.wire_parts(values, False)))
    np.testing.assert_array_equal(tensors.to_array(listed), values)
    assert tensors.to_array(listed).dtype == values.dtype and tensors.to_array(listed).shape == values.shape


def tensor(dtype, shape, **values):
    made = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def test_a_short_list_repeats_its_last_value_and_an_empty_list_means_zeros():
    np.testing.assert_array_equal(
        tensors.to_array(tensor(types_pb2.DT_FLOAT, (2, 3), float_val=[1, 2])),
        np.array([[1, 2, 2], [2, 2, 2]], np.float32),
    )
    np.testing.assert_array_equal(tensors.to_array(tensor(types_pb2.DT_UINT8, (3,), int_val=[200])), [200] * 3)
    np.testing.assert_array_equal(tensors.to_array(tensor(types_pb2.DT_INT32, (2,))), [0, 0])
    assert tensors.to_array(tensor(types_pb2.DT_STRING, (3,), string_val=[b"a", b"b"])).tolist() == [b"a", b"b", b"b"]
    assert tensors.to_array(tensor(types_pb2.DT_STRING, (2,))).tolist() == [b"", b""]
    # Surplus values are ignored.
    np.testing.assert_array_equal(tensors.to_array(tensor(types_pb2.DT_INT32, (2,), int_val=[1, 2, 3])), [1, 2])


def test_strings_are_read_from_tensor_content():
    # TensorFlow writes the lengths as varints, then the strings.
    content = b"\x03\x00\x02" + b"abc" + b"" + b"xy"
    assert tensors.to_array(tensor(types_pb2.DT_STRING, (3,), tensor_content=content)).tolist() == [b"abc", b"", b"xy"]


@pytest.mark.parametrize(
    "broken",
    [
        tensor(types_pb2.DT_FLOAT, (3,), tensor_content=b"\0" * 11),
        tensor(types_pb2.DT_FLOAT, (-1,), float_val=[1]),
        tensor(types_pb2.DT_INVALID, (1,), float_val=[1]),
        tensor(999, (1,), float_val=[1]),
        tensor(types_pb2.DT_RESOURCE, (1,)),
        tensor(types_pb2.DT_VARIANT, (1,)),
        tensor(types_pb2.DT_STRING, (1 << 40,), string_val=[b"x"]),
        tensor(types_pb2.DT_UINT8, (1 << 40,), int_val=[1]),
        tensor(types_pb2.DT_UINT8, (1 << 40, 1 << 40), int_val=[1]),
        tensor(types_pb2.DT_STRING, (9,), tensor_content=b"a"),
        tensor(types_pb2.DT_STRING, (2,), tensor_content=b"\x05\x01a"),
        tensor(types_pb2.DT_UINT8, (1,), tensor_content=b"aa"),
    ],
)
def test_invalid_tensors_are_refused(broken):
    with pytest.raises(ValueError):
        tensors.to_array(broken)
    unknown = tensor(types_pb2.DT_FLOAT, (), float_val=[1])
    unknown.tensor_shape.unknown_rank = True
    with pytest.raises(ValueError):
        tensors.to_array(unknown)


def test_images_are_converted_without_tensorflows_slow_functions(monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
    proto = tensor_pb2.TensorProto.FromString(b"".join(tensors.wire_parts(image, False)))
    monkeypatch.setattr(tf, "make_ndarray", None)
    monkeypatch.setattr(tf, "make_tensor_proto", None)
    np.testing.assert_array_equal(tensors.to_array(proto), image)
    assert len(proto.int_val) == image.size
