"""Convert TensorProtos to arrays, and arrays to the wire bytes of TensorProtos, without Python lists of numbers.

The fields are those of tensorflow/core/framework/tensor.proto; the rules are those of tensor.cc (FromProto,
AsProtoField, AsProtoTensorContent).
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# A list shorter than its tensor repeats its last value, so a message of 20 bytes could claim any amount of memory.
MAX_REPEATED_BYTES = 1 << 26
# The least memory of a string: its entry in the array and its copy in TensorFlow.
STRING_BYTES = 64
# The wire type of bytes, strings and messages.
LENGTH_DELIMITED = 2
# NumPy dtype -> (the field of TensorProto for its values, whether the field holds varints).
FIELDS = {
    "float32": (5, False),
    "float64": (6, False),
    "complex64": (9, False),
    "complex128": (12, False),
    "uint8": (7, True),
    "uint16": (7, True),
    "int8": (7, True),
    "int16": (7, True),
    "int32": (7, True),
    "int64": (10, True),
    "uint32": (16, True),
    "uint64": (17, True),
    "bool": (11, True),
    "float16": (13, True),
    "bfloat16": (13, True),
}
DTYPES = {tf.as_dtype(name).as_datatype_enum: tf.as_dtype(name) for name in FIELDS}


def to_array(tensor: tensor_pb2.TensorProto) -> np.ndarray:
    """Return the array of a TensorProto.

    The values come from tensor_content or from the list of values. A list shorter than the shape repeats its last
    value; an empty list means zeros. Strings become an object array of bytes.

    Raises:
        ValueError: if TensorFlow refuses the message, or the repeated values exceed MAX_REPEATED_BYTES.
    """
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape is not fully defined")
    count = math.prod(shape)
    if tensor.dtype == types_pb2.DT_STRING:
        return _strings(tensor, shape, count)
    if tensor.dtype not in DTYPES:
        raise ValueError("the dtype is neither a number, bool nor string")
    dtype = DTYPES[tensor.dtype]
    content = tensor.tensor_content
    if not count:
        return np.empty(shape, dtype.as_numpy_dtype)
    if content:
        if len(content) != count * dtype.size:
            raise ValueError("the length of tensor_content does not match the shape")
        return np.frombuffer(content, dtype.as_numpy_dtype).reshape(shape)
    values = getattr(tensor, tensor.DESCRIPTOR.fields_by_number[FIELDS[dtype.name][0]].name)
    if len(values) < count and count * dtype.size > MAX_REPEATED_BYTES:
        raise ValueError(f"the repeated values exceed {MAX_REPEATED_BYTES} bytes")
    return _parse(tensor, dtype)


def _strings(tensor: tensor_pb2.TensorProto, shape: tuple[int, ...], count: int) -> np.ndarray:
    if tensor.tensor_content:
        # Every string takes at least one byte for its length.
        if count > len(tensor.tensor_content):
            raise ValueError("the length of tensor_content does not match the shape")
        return _parse(tensor, tf.string)
    values = list(tensor.string_val[:count])
    if (count - len(values)) * STRING_BYTES > MAX_REPEATED_BYTES:
        raise ValueError(f"the repeated values exceed {MAX_REPEATED_BYTES} bytes")
    strings = np.empty(count, object)
    strings[: len(values)] = values
    strings[len(values) :] = values[-1] if values else b""
    return strings.reshape(shape)


def _parse(tensor: tensor_pb2.TensorProto, dtype: tf.DType) -> np.ndarray:
    # TensorFlow parses in C++; reading the numbers one by one in Python takes longer than a prediction.
    try:
        values = tf.io.parse_tensor(tensor.SerializeToString(), dtype).numpy()
    except tf.errors.OpError as error:
        raise ValueError(error.message) from None
    return np.asarray(values, dtype.as_numpy_dtype)


def varints(values: np.ndarray) -> bytes:
    """Return the protobuf varints of integers or booleans of any shape.

    Negative values take 10 bytes.
    """
    flat = values.reshape(-1)
    if not flat.size:
        return b""
    if flat.dtype == bool or (flat.min() >= 0 and flat.max() < 128):
        return flat.astype(np.uint8).tobytes()
    # Negative values are encoded as 64-bit two's complement.
    rest = flat.astype(np.int64).view(np.uint64) if flat.min() < 0 else flat
    length = -(-int(rest.max()).bit_length() // 7)
    encoded = np.empty((rest.size, length), np.uint8)
    used = np.ones((rest.size, length), bool)
    for position in range(length):
        more = rest > 127
        encoded[:, position] = rest & rest.dtype.type(127)
        encoded[:, position] |= more.view(np.uint8) << 7
        if position + 1 < length:
            used[:, position + 1] = more
            rest = rest >> rest.dtype.type(7)
    return encoded[used].tobytes()


def varint(value: int) -> bytes:
    """Return the protobuf varint of a non-negative integer."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(field: int, parts: list) -> list:
    """Return the buffers of a length-delimited wire field.

    Args:
        field: The field's number.
        parts: Buffers that joined are the bytes, string or message in the field.
    """
    return [varint(field << 3 | LENGTH_DELIMITED) + varint(sum(map(len, parts))), *parts]


def wire_parts(values: np.ndarray, as_content: bool) -> list:
    """Return buffers that joined are the wire bytes of an array's TensorProto.

    Args:
        values: An array of any shape; strings are an object array of bytes.
        as_content: Write numbers as tensor_content instead of a list of values.
    """
    if values.dtype != object and values.dtype.name not in FIELDS:
        return [tf.make_tensor_proto(values).SerializeToString()]
    dtype = types_pb2.DT_STRING if values.dtype == object else tf.as_dtype(values.dtype).as_datatype_enum
    shape = [part for size in values.shape for part in delimited(2, [b"\x08" + varint(size)] if size else [])]
    head = [b"\x08" + varint(dtype), *delimited(2, shape)]
    if not values.size:
        return head
    if values.dtype == object:
        return head + [part for value in values.reshape(-1) for part in delimited(8, [value])]
    field, has_varints = FIELDS[values.dtype.name]
    if as_content:
        return head + delimited(4, [_buffer(values)])
    if has_varints:
        halves = values.dtype.name in ("float16", "bfloat16")
        return head + delimited(field, [varints(np.ascontiguousarray(values).view(np.uint16) if halves else values)])
    return head + delimited(field, [_buffer(values)])


def _buffer(values: np.ndarray) -> memoryview:
    # The view as uint8 is necessary because the buffer protocol has no format for bfloat16.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
