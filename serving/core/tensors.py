"""TensorProtos to arrays and back to their wire bytes, without Python lists of numbers.

Fields and their meaning: tensorflow/core/framework/tensor.proto; what is read and written where: tensor.cc (FromProto,
AsProtoField, AsProtoTensorContent).
"""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

# A list shorter than its tensor repeats its last value, so a message of 20 bytes can claim any size.
LARGEST_REPETITION = 1 << 26
# What a string takes in an array and again in TensorFlow, at least.
STRING_SIZE = 64
LENGTH_DELIMITED = 2
# numpy's dtype: the field of TensorProto for its values, and whether the field holds varints.
FIELDS = {"float32": (5, False), "float64": (6, False), "complex64": (9, False), "complex128": (12, False),
          "uint8": (7, True), "uint16": (7, True), "int8": (7, True), "int16": (7, True), "int32": (7, True),
          "int64": (10, True), "uint32": (16, True), "uint64": (17, True), "bool": (11, True),
          "float16": (13, True), "bfloat16": (13, True)}
DTYPES = {tf.as_dtype(name).as_datatype_enum: tf.as_dtype(name) for name in FIELDS}


def array(tensor: tensor_pb2.TensorProto) -> np.ndarray:
    """Return a TensorProto's array, from tensor_content or from its list of values; strings are an array of bytes.

    A shorter list repeats its last value, an empty one stands for zeros. Raises ValueError where TensorFlow refuses
    the message, and where such repeating would fill LARGEST_REPETITION bytes.
    """
    shape = tuple(dimension.size for dimension in tensor.tensor_shape.dim)
    if tensor.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape has unknown parts")
    count = math.prod(shape)
    if tensor.dtype == types_pb2.DT_STRING:
        return _strings(tensor, shape, count)
    if tensor.dtype not in DTYPES:
        raise ValueError("not a dtype of numbers, booleans or strings")
    dtype = DTYPES[tensor.dtype]
    content = tensor.tensor_content
    if not count:
        return np.empty(shape, dtype.as_numpy_dtype)
    if content:
        if len(content) != count * dtype.size:
            raise ValueError("tensor_content's length does not fit the shape")
        return np.frombuffer(content, dtype.as_numpy_dtype).reshape(shape)
    given = getattr(tensor, tensor.DESCRIPTOR.fields_by_number[FIELDS[dtype.name][0]].name)
    if len(given) < count and count * dtype.size > LARGEST_REPETITION:
        raise ValueError("too large a tensor of one value")
    return _parsed(tensor, dtype)


def _strings(tensor: tensor_pb2.TensorProto, shape: tuple[int, ...], count: int) -> np.ndarray:
    if tensor.tensor_content:
        # Each takes at least the byte of its length.
        if count > len(tensor.tensor_content):
            raise ValueError("tensor_content's length does not fit the shape")
        return _parsed(tensor, tf.string)
    values = list(tensor.string_val[:count])
    if (count - len(values)) * STRING_SIZE > LARGEST_REPETITION:
        raise ValueError("too large a tensor of one value")
    strings = np.empty(count, object)
    strings[:len(values)] = values
    strings[len(values):] = values[-1] if values else b""
    return strings.reshape(shape)


def _parsed(tensor: tensor_pb2.TensorProto, dtype: tf.DType) -> np.ndarray:
    # TensorFlow's own reading, in C++: numbers one by one through Python take longer than a prediction.
    try:
        values = tf.io.parse_tensor(tensor.SerializeToString(), dtype).numpy()
    except tf.errors.OpError as error:
        raise ValueError(error.message) from None
    return np.asarray(values, dtype.as_numpy_dtype)


def varints(values: np.ndarray) -> bytes:
    """Return the varints of integers or booleans of any shape, negative ones as 10 bytes, as protobuf writes them."""
    flat = values.reshape(-1)
    if not flat.size:
        return b""
    if flat.dtype == bool or (flat.min() >= 0 and flat.max() < 128):
        return flat.astype(np.uint8).tobytes()
    # Two's complement of 64 bits.
    rest = flat.astype(np.int64).view(np.uint64) if flat.min() < 0 else flat
    places = -(-int(rest.max()).bit_length() // 7)
    encoded = np.empty((rest.size, places), np.uint8)
    used = np.ones((rest.size, places), bool)
    for place in range(places):
        more = rest > 127
        encoded[:, place] = rest & rest.dtype.type(127)
        encoded[:, place] |= more.view(np.uint8) << 7
        if place + 1 < places:
            used[:, place + 1] = more
            rest = rest >> rest.dtype.type(7)
    return encoded[used].tobytes()


def varint(value: int) -> bytes:
    """Return one varint of a number that is not negative."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(field: int, parts: list) -> list:
    """Return the parts of a wire field that holds bytes, a string or a message: its tag, its length and its parts."""
    return [varint(field << 3 | LENGTH_DELIMITED) + varint(sum(map(len, parts))), *parts]


def wire_parts(values: np.ndarray, as_content: bool) -> list:
    """Return buffers that joined are the wire bytes of the TensorProto of an array; `as_content`: as tensor_content.

    Strings are an object array of bytes and are never written as content.
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
    # By way of uint8, as bfloat16 has no format of the buffer protocol.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
