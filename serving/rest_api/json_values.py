"""JSON's values in the dtypes of tensors, and how messages show them.

The checks and their words are TensorFlow Serving's (util/json_tensor.cc).
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
# array's type codes, which refuse numbers out of their range.
INTEGERS = {"int8": "b", "uint8": "B", "int16": "h", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q"}
# The largest whole number below which there is none that the type does not hold.
DECIMALS = {"float32": ("float", (1 << 24) - 1), "float64": ("double", (1 << 53) - 1)}
SHOWN = 256
TYPES = {type(None): "Null", dict: "Object", list: "Array", Dense: "Array", str: "String", int: "Number",
         float: "Number"}


class BadValue(Exception):
    """A value that is not of its tensor's type, with its place in the tensor."""

    def __init__(self, index: int, error: ServingError):
        super().__init__(index, error)
        self.index, self.error = index, error


def dense(value: Dense, dtype: int) -> np.ndarray:
    """Return an array of numbers in a dtype of types_pb2; raises BadValue."""
    filled = np.empty(math.prod(value.shape), tf.as_dtype(dtype).as_numpy_dtype)
    code = INTEGERS.get(filled.dtype.name)
    begin = 0
    for piece in value.pieces():
        try:
            filled[begin:begin + len(piece)] = array.array(code, piece) if code else converted(piece, dtype)
        # Floats, or integers out of range: the first is looked for.
        except (TypeError, OverflowError):
            _raise_first(piece, dtype, begin)
        except BadValue as bad:
            raise BadValue(begin + bad.index, bad.error) from None
        begin += len(piece)
    return filled.reshape(value.shape)


def converted(values: list, dtype: int) -> np.ndarray:
    """Return values, none of them a list, as an array of one dimension; raises BadValue for the first that is wrong."""
    types = set(map(type, values))
    name = tf.as_dtype(dtype).name
    if name == "string" and types <= {str, dict}:
        strings = np.empty(len(values), object)
        strings[:] = [value.encode() if isinstance(value, str) else _decoded(value, place)
                      for place, value in enumerate(values)]
        return strings
    if name == "bool" and types <= {bool}:
        return np.array(values, bool)
    if name in INTEGERS and types <= {int}:
        try:
            return np.frombuffer(array.array(INTEGERS[name], values), name)
        except OverflowError:
            # The first that is out of range is looked for below.
            pass
    if name in DECIMALS and types <= {int, float}:
        return _decimals(values, name)
    _raise_first(values, dtype, 0)


def _raise_first(values: list, dtype: int, begin: int) -> NoReturn:
    """Raise BadValue for the first value that is wrong; `begin` is the place of the first of all."""
    name = tf.as_dtype(dtype).name
    place, value = next((place, value) for place, value in enumerate(values, begin) if not _fits(value, name))
    if name not in ("string", "bool", *INTEGERS, *DECIMALS):
        raise BadValue(place, ServingError(grpc.StatusCode.UNIMPLEMENTED,
                                           f"Conversion of JSON Value: {shown(value)} to type: {_type(dtype)}"))
    raise BadValue(place, invalid(f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: "
                                  f"{_type(dtype)}"))


def _fits(value: object, name: str) -> bool:
    if name in INTEGERS:
        return type(value) is int and np.iinfo(name).min <= value <= np.iinfo(name).max
    types = {"string": (str, dict), "bool": (bool,), "float32": (int, float), "float64": (int, float)}
    return type(value) in types.get(name, ())


def _decimals(values: list[int | float], name: str) -> np.ndarray:
    shown_name, largest = DECIMALS[name]
    try:
        wide = np.frombuffer(array.array("d", values), np.float64)
        suspect = bool((np.abs(wide) > largest).any())
    except OverflowError:
        suspect = True
    if suspect:
        for place, value in enumerate(values):
            whole, limit = type(value) is int, float(np.finfo(name).max)
            if abs(value) > (largest if whole else limit) and (whole or math.isfinite(value)):
                raise BadValue(place, lossy(value, shown_name))
    return wide.astype(name)


def is_base64(value: object) -> bool:
    """Return whether a value is an object that stands for bytes."""
    return isinstance(value, dict) and list(value) == [BASE64] and isinstance(value[BASE64], str)


def _decoded(value: dict, place: int) -> bytes:
    if not is_base64(value):
        raise BadValue(place, invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data"))
    try:
        return decode_base64(value[BASE64])
    except ServingError as error:
        raise BadValue(place, error) from None


def decode_base64(text: str) -> bytes:
    """Return what base64 holds, with or without line breaks and padding; raises ServingError."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    # ValueError: characters beyond ASCII.
    except ValueError:
        bare = "".join(text.split()).rstrip("=")
    try:
        return binascii.a2b_base64(bare + "=" * (-len(bare) % 4), strict_mode=True)
    except ValueError:
        raise invalid("Unable to base64 decode") from None


def _type(dtype: int) -> str:
    return types_pb2.DataType.Name(dtype).removeprefix("DT_").lower()


def shown(value: object) -> str:
    """Return a value's JSON as messages show it, cut where it is long."""
    text = ""
    # Only so much is written: all of a picture takes a second.
    for part in json.JSONEncoder(indent=4, ensure_ascii=False, default=_beginning).iterencode(value):
        text += part[:SHOWN]
        if len(text) > SHOWN:
            return text[:SHOWN] + "..."
    return text


def type_name(value: object) -> str:
    """Return what JSON calls a value's type, as messages do."""
    return str(value) if isinstance(value, bool) else TYPES[type(value)]


def lossy(value: int | float, name: str) -> ServingError:
    """Return the error of a number that a type does not hold."""
    return invalid(f"Cannot convert JSON value: {shown(value)} to {name} without loss of precision.")


def _beginning(value: Dense) -> list[int | float]:
    return next(value.pieces())[:SHOWN]
