"""Answers of the REST API, tensors to JSON: predictions by rows, outputs by columns.

The forms are TensorFlow Serving's (util/json_tensor.cc), without its line breaks. A class map of 512 x 1024 is written
in milliseconds, by a table of its ids' texts.
"""

import base64
import json

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.errors import invalid

# Strings of outputs with such names are bytes, which JSON cannot hold as they are.
BYTES = "_bytes"
# A float's digits that are mostly enough, and those that always are.
DIGITS = {"float32": (6, 9), "float64": (6, 17)}
TYPES = ("object", "bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", *DIGITS)
# Integers from 0 to below this have their text in a table, of four characters.
TABLED = 1000
TABLE = np.frombuffer("".join(f"{number},".ljust(4) for number in range(TABLED)).encode(), np.uint32)
# Values written without letting others run: a few milliseconds.
PIECE, TABLED_PIECE = 1 << 12, 1 << 20
BLANK, COMMA = b" ,"


def write(outputs: dict[str, np.ndarray], rows: bool) -> bytes:
    """Return the JSON of a predict answer, `rows` as the request was; one output is written without its name.

    Strings are object arrays of bytes. Raises ServingError, INVALID_ARGUMENT, for rows of different numbers, scalars
    among them, and types that JSON has no form for.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    for values in outputs.values():
        if values.dtype.name not in TYPES:
            kind = types_pb2.DataType.Name(tf.as_dtype(values.dtype).as_datatype_enum).removeprefix("DT_").lower()
            raise invalid(f"Failed to write JSON value for tensor type: {kind}")
    if not rows:
        return b'{"outputs":%b}' % _element(outputs)
    if len(outputs) == 1:
        _check_rows(outputs)
        return b'{"predictions":%b}' % _element(outputs)
    elements = ({name: values[row, ...] for name, values in outputs.items()} for row in range(_check_rows(outputs)))
    return b'{"predictions":[%b]}' % b",".join(map(_element, elements))


def _check_rows(outputs: dict[str, np.ndarray]) -> int:
    """Return how many rows all outputs have."""
    size = -1
    for name, values in sorted(outputs.items()):
        if not values.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size >= 0 and len(values) != size:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(values)} expecting: {size}")
        size = len(values)
    return size


def _element(outputs: dict[str, np.ndarray]) -> bytes:
    texts = {name: text(values, name.endswith(BYTES)) for name, values in sorted(outputs.items())}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return b"{%b}" % b",".join(json.dumps(name).encode() + b":" + written for name, written in texts.items())


def text(values: np.ndarray, as_base64: bool = False) -> bytes:
    """Return an array's JSON; strings are written as base64 objects or as they are."""
    if not values.size:
        return json.dumps(values.tolist(), separators=(",", ":")).encode()
    tabled = values.dtype.kind in "iu" and values.ndim and (
        values.dtype == np.uint8 or (values.min() >= 0 and values.max() < TABLED))
    if values.ndim > 1 and values.size > (TABLED_PIECE if tabled else PIECE):
        return b"[%b]" % b",".join(text(part, as_base64) for part in values)
    if tabled:
        return _integers(values)
    if values.dtype.kind in "iub":
        return json.dumps(values.tolist(), separators=(",", ":")).encode()
    flat = values.reshape(-1)
    texts = decimals(flat) if values.dtype.kind == "f" else [quoted(value, as_base64) for value in flat]
    for size in reversed(values.shape):
        texts = [f"[{','.join(texts[begin:begin + size])}]" for begin in range(0, len(texts), size)]
    # Strings that are no UTF-8 go out as they are.
    return texts[0].encode(errors="surrogateescape")


def _integers(values: np.ndarray) -> bytes:
    """Return the JSON of integers from 0 to TABLED: their texts at a fixed width, then brackets, then no blanks."""
    *outer, size = values.shape
    lines = values.size // size
    texts = np.full((lines, 4 * size + 2 * values.ndim + 1), BLANK, np.uint8)
    texts[:, :4 * size] = np.take(TABLE, values.reshape(lines, size)).view(np.uint8)
    last = texts[:, 4 * size - 4:4 * size]
    last[last == COMMA] = BLANK
    # Between two lines as many lists end and begin as there are dimensions whose last element was reached.
    every = 1
    for depth, count in enumerate([*reversed(outer), 1], 1):
        between = b"]" * depth + b"," + b"[" * depth
        texts[every - 1::every, 4 * size:4 * size + len(between)] = np.frombuffer(between, np.uint8)
        every *= count
    texts[-1, 4 * size:] = np.frombuffer((b"]" * values.ndim).ljust(2 * values.ndim + 1), np.uint8)
    return b"[" * values.ndim + texts.tobytes().translate(None, b" ")


def decimals(values: np.ndarray) -> list[str]:
    """Return the texts of float32 or float64 [N]: those of six digits that mean the same value, or else all digits.

    Whole numbers end in .0, so that a list shows that it holds no integers; NaN and Infinity stand as such.
    """
    few, every = DIGITS[values.dtype.name]
    numbers = values.tolist()
    texts = (f"%.{few}g " * len(numbers) % tuple(numbers)).split()
    read = np.array(list(map(float, texts))).astype(values.dtype)
    for place in np.flatnonzero(read != values):
        texts[place] = f"{numbers[place]:.{every}g}"
    texts = [each if "." in each or "e" in each else each + ".0" for each in texts]
    for place in np.flatnonzero(~np.isfinite(values)):
        # As json writes them.
        texts[place] = json.dumps(numbers[place])
    return texts


def quoted(value: bytes, as_base64: bool = False) -> str:
    """Return the JSON of a string of bytes; those that are no UTF-8 become surrogates (PEP 383)."""
    if as_base64:
        return f'{{"b64":"{base64.b64encode(value).decode()}"}}'
    return json.dumps(value.decode(errors="surrogateescape"), ensure_ascii=False)
