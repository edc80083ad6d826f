"""Write REST responses: tensors as JSON, predictions by rows and outputs by columns.

The forms match TensorFlow Serving (util/json_tensor.cc), without its line breaks. A table of the texts of small
integers writes a class map of 512 x 1024 in milliseconds.
"""

import base64
import json

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from serving.errors import invalid

# Strings of outputs with this suffix are written as base64, since JSON cannot hold arbitrary bytes.
BYTES = "_bytes"
# Significant digits that usually identify a float, and digits that always do.
DIGITS = {"float32": (6, 9), "float64": (6, 17)}
TYPES = ("object", "bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", *DIGITS)
# The table holds the texts of the integers from 0 to TABLE_SIZE - 1, padded to four characters.
TABLE_SIZE = 1000
TABLE = np.frombuffer("".join(f"{number},".ljust(4) for number in range(TABLE_SIZE)).encode(), np.uint32)
# Number of values written while holding the GIL, a few milliseconds.
PIECE, TABLE_PIECE = 1 << 12, 1 << 20
BLANK, COMMA = b" ,"


def predict_json(outputs: dict[str, np.ndarray], rows: bool) -> bytes:
    """Return the JSON of a predict response.

    Args:
        outputs: Arrays by name; strings are object arrays of bytes. A single output is written without its name.
        rows: Write "predictions" by rows, the response to "instances", instead of "outputs" by columns.

    Raises:
        ServingError: INVALID_ARGUMENT for outputs without rows or with different numbers of rows, and for dtypes
            without a JSON form.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    for values in outputs.values():
        if values.dtype.name not in TYPES:
            dtype = types_pb2.DataType.Name(tf.as_dtype(values.dtype).as_datatype_enum).removeprefix("DT_").lower()
            raise invalid(f"Failed to write JSON value for tensor type: {dtype}")
    if not rows:
        return b'{"outputs":%b}' % _outputs_json(outputs)
    if len(outputs) == 1:
        _count_rows(outputs)
        return b'{"predictions":%b}' % _outputs_json(outputs)
    predictions = ({name: values[row, ...] for name, values in outputs.items()} for row in range(_count_rows(outputs)))
    return b'{"predictions":[%b]}' % b",".join(map(_outputs_json, predictions))


def _count_rows(outputs: dict[str, np.ndarray]) -> int:
    """Return the common number of rows of all outputs; raises ServingError if there is none."""
    size = -1
    for name, values in sorted(outputs.items()):
        if not values.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size >= 0 and len(values) != size:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(values)} expecting: {size}")
        size = len(values)
    return size


def _outputs_json(outputs: dict[str, np.ndarray]) -> bytes:
    texts = {name: array_json(values, name.endswith(BYTES)) for name, values in sorted(outputs.items())}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return b"{%b}" % b",".join(json.dumps(name).encode() + b":" + text for name, text in texts.items())


def array_json(values: np.ndarray, as_base64: bool = False) -> bytes:
    """Return an array's JSON; strings are written as base64 objects or as text."""
    if not values.size:
        return json.dumps(values.tolist(), separators=(",", ":")).encode()
    in_table = (
        values.dtype.kind in "iu"
        and values.ndim
        and (values.dtype == np.uint8 or (values.min() >= 0 and values.max() < TABLE_SIZE))
    )
    if values.ndim > 1 and values.size > (TABLE_PIECE if in_table else PIECE):
        return b"[%b]" % b",".join(array_json(part, as_base64) for part in values)
    if in_table:
        return _small_integers_json(values)
    if values.dtype.kind in "iub":
        return json.dumps(values.tolist(), separators=(",", ":")).encode()
    flat = values.reshape(-1)
    texts = decimal_texts(flat) if values.dtype.kind == "f" else [quote(value, as_base64) for value in flat]
    for size in reversed(values.shape):
        texts = [f"[{','.join(texts[begin : begin + size])}]" for begin in range(0, len(texts), size)]
    # Strings that are not UTF-8 are written as their bytes.
    return texts[0].encode(errors="surrogateescape")


def _small_integers_json(values: np.ndarray) -> bytes:
    """Return the JSON of integers below TABLE_SIZE.

    Each row is written with texts of fixed width and the brackets to the next row. Then all blanks are removed.
    """
    *outer, size = values.shape
    rows = values.size // size
    texts = np.full((rows, 4 * size + 2 * values.ndim + 1), BLANK, np.uint8)
    texts[:, : 4 * size] = np.take(TABLE, values.reshape(rows, size)).view(np.uint8)
    last = texts[:, 4 * size - 4 : 4 * size]
    last[last == COMMA] = BLANK
    # Between two rows, one list closes and one opens for each dimension that has reached its last element.
    every = 1
    for depth, count in enumerate([*reversed(outer), 1], 1):
        between = b"]" * depth + b"," + b"[" * depth
        texts[every - 1 :: every, 4 * size : 4 * size + len(between)] = np.frombuffer(between, np.uint8)
        every *= count
    texts[-1, 4 * size :] = np.frombuffer((b"]" * values.ndim).ljust(2 * values.ndim + 1), np.uint8)
    return b"[" * values.ndim + texts.tobytes().translate(None, b" ")


def decimal_texts(values: np.ndarray) -> list[str]:
    """Return the JSON texts of float32 or float64 values [N].

    A text has six digits where they identify the value, and otherwise all digits. Whole numbers end in .0, so that they
    do not look like integers. NaN and infinities are written as the json module writes them.
    """
    few, all_digits = DIGITS[values.dtype.name]
    numbers = values.tolist()
    texts = (f"%.{few}g " * len(numbers) % tuple(numbers)).split()
    parsed = np.array(list(map(float, texts))).astype(values.dtype)
    for index in np.flatnonzero(parsed != values):
        texts[index] = f"{numbers[index]:.{all_digits}g}"
    texts = [text if "." in text or "e" in text else text + ".0" for text in texts]
    for index in np.flatnonzero(~np.isfinite(values)):
        texts[index] = json.dumps(numbers[index])
    return texts


def quote(value: bytes, as_base64: bool = False) -> str:
    """Return the JSON of a string of bytes; bytes that are not UTF-8 become surrogates (PEP 383)."""
    if as_base64:
        return f'{{"b64":"{base64.b64encode(value).decode()}"}}'
    return json.dumps(value.decode(errors="surrogateescape"), ensure_ascii=False)
