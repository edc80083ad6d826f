"""Convert JSON values to arrays of a tensor's dtype, and format values for messages.

The checks and their messages match TensorFlow Serving word for word (util/json_tensor.cc).
"""

import array
import binascii
import json
import math
from typing import NoReturn

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.errors import ServingError, invalid
from serving.rest_api.json_reading import Dense

BASE64 = "b64"
# Type codes of the array module, which rejects integers out of range.
INTEGERS = {"int8": "b", "uint8": "B", "int16": "h", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q"}
# Name of the type in messages, and the magnitude up to which it represents all integers exactly.
DECIMALS = {"float32": ("float", (1 << 24) - 1), "float64": ("double", (1 << 53) - 1)}
MAX_SHOWN = 256
TYPES = {
    type(None): "Null",
    dict: "Object",
    list: "Array",
    Dense: "Array",
    str: "String",
    int: "Number",
    float: "Number",
}


class BadValue(Exception):
    """A value that does not fit its tensor's dtype, at a flat index of the tensor."""

    def __init__(self, index: int, error: ServingError):
        super().__init__(index, error)
        self.index, self.error = index, error


def dense_array(value: Dense, dtype: int) -> np.ndarray:
    """Return a Dense as an array of a types_pb2 dtype; raises BadValue."""
    result = np.empty(math.prod(value.shape), tf.as_dtype(dtype).as_numpy_dtype)
    code = INTEGERS.get(result.dtype.name)
    begin = 0
    for piece in value.pieces():
        try:
            result[begin : begin + len(piece)] = array.array(code, piece) if code else convert_value(piece, dtype)
        # The piece contains floats or integers out of range.
        except (TypeError, OverflowError):
            _raise_first_bad_value(piece, dtype, begin)
        except BadValue as bad:
            raise BadValue(begin + bad.index, bad.error) from None
        begin += len(piece)
    return result.reshape(value.shape)


def convert_value(values: list, dtype: int) -> np.ndarray:
    """Return values that are not lists as a 1-D array; raises BadValue for the first value that does not fit.

    `dtype` is a types_pb2 dtype. Strings become an object array of bytes.
    """
    types = set(map(type, values))
    name = tf.as_dtype(dtype).name
    if name == "string" and types <= {str, dict}:
        strings = np.empty(len(values), object)
        strings[:] = [
            value.encode() if isinstance(value, str) else _decode_object(value, index)
            for index, value in enumerate(values)
        ]
        return strings
    if name == "bool" and types <= {bool}:
        return np.array(values, bool)
    if name in INTEGERS and types <= {int}:
        try:
            return np.frombuffer(array.array(INTEGERS[name], values), name)
        except OverflowError:
            # The search for the value that is out of range follows below.
            pass
    if name in DECIMALS and types <= {int, float}:
        return _convert_decimals(values, name)
    _raise_first_bad_value(values, dtype, 0)


def _raise_first_bad_value(values: list, dtype: int, begin: int) -> NoReturn:
    """Raise BadValue for the first value that does not fit; `begin` is the flat index of the first value."""
    name = tf.as_dtype(dtype).name
    index, value = next((index, value) for index, value in enumerate(values, begin) if not _fits(value, name))
    if name not in ("string", "bool", *INTEGERS, *DECIMALS):
        raise BadValue(
            index,
            ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Conversion of JSON Value: {shown_value(value)} to type: {_dtype_name(dtype)}",
            ),
        )
    raise BadValue(
        index,
        invalid(
            f"JSON Value: {shown_value(value)} Type: {type_name(value)} is not of expected type: {_dtype_name(dtype)}"
        ),
    )


def _fits(value: object, name: str) -> bool:
    if name in INTEGERS:
        return type(value) is int and np.iinfo(name).min <= value <= np.iinfo(name).max
    types = {"string": (str, dict), "bool": (bool,), "float32": (int, float), "float64": (int, float)}
    return type(value) in types.get(name, ())


def _convert_decimals(values: list[int | float], name: str) -> np.ndarray:
    shown_name, largest = DECIMALS[name]
    try:
        wide = np.frombuffer(array.array("d", values), np.float64)
        suspect = bool((np.abs(wide) > largest).any())
    except OverflowError:
        suspect = True
    if suspect:
        for index, value in enumerate(values):
            whole, limit = type(value) is int, float(np.finfo(name).max)
            if abs(value) > (largest if whole else limit) and (whole or math.isfinite(value)):
                raise BadValue(index, lossy(value, shown_name))
    return wide.astype(name)


def is_base64(value: object) -> bool:
    """Return whether a value is an object {"b64": TEXT}, which represents bytes."""
    return isinstance(value, dict) and list(value) == [BASE64] and isinstance(value[BASE64], str)


def _decode_object(value: dict, index: int) -> bytes:
    if not is_base64(value):
        raise BadValue(index, invalid(f"JSON Value: {shown_value(value)} not formatted correctly for base64 data"))
    try:
        return decode_base64(value[BASE64])
    except ServingError as error:
        raise BadValue(index, error) from None


def decode_base64(text: str) -> bytes:
    """Return the bytes of base64, with or without line breaks and padding; raises ServingError."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    # binascii.Error is a ValueError, and characters beyond ASCII raise ValueError itself.
    except ValueError:
        bare = "".join(text.split()).rstrip("=")
    try:
        return binascii.a2b_base64(bare + "=" * (-len(bare) % 4), strict_mode=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def _dtype_name(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def shown_value(value: object) -> str:
    """Return a value's JSON for messages, truncated to MAX_SHOWN characters."""
    text = ""
    # The encoder stops at the limit, since the JSON of all pixels of an image takes a second.
    for part in json.JSONEncoder(indent=4, ensure_ascii=False, default=_first_numbers).iterencode(value):
        text += part[:MAX_SHOWN]
        if len(text) > MAX_SHOWN:
            return text[:MAX_SHOWN] + "..."
    return text


def type_name(value: object) -> str:
    """Return the name of a value's JSON type as it appears in messages."""
    return str(value) if isinstance(value, bool) else TYPES[type(value)]


def lossy(value: int | float, name: str) -> ServingError:
    """Return the error of a number that a type cannot represent."""
    return invalid(f"Cannot convert JSON value: {shown_value(value)} to {name} without loss of precision.")


def _first_numbers(value: Dense) -> list[int | float]:
    return next(value.pieces())[:MAX_SHOWN]
