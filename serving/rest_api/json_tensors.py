"""Requests of the REST API, JSON to tensors: rows (instances) or columns (inputs), and tf.train.Examples.

The forms, the checks and their words are TensorFlow Serving's (util/json_tensor.cc).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.errors import ServingError, invalid
from serving.rest_api.json_reading import MOST_DIMENSIONS, Dense, read
from serving.rest_api.json_values import BadValue, converted, dense, is_base64, shown

INSTANCES, INPUTS, SIGNATURE = "instances", "inputs", "signature_name"


class Predict(NamedTuple):
    """What a predict request asks: tensors for a signature; `rows` is True where it gave instances."""

    signature_name: str
    inputs: dict[str, np.ndarray]
    rows: bool


def request(body: bytes) -> dict:
    """Return a request's object; raises ServingError where it is none, or its signature_name is no string."""
    document = read(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} Is not object")
    if not isinstance(document.get(SIGNATURE, ""), str):
        raise invalid(f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be a string "
                      "value.")
    return document


def predict(body: bytes, infos_of: Callable[[str], Mapping]) -> Predict:
    """Return what a predict request asks; `infos_of` gives the TensorInfos of a signature's inputs by alias.

    Numbers come as their dtype's arrays, strings as object arrays of bytes. Raises ServingError.
    """
    document = request(body)
    name = document.get(SIGNATURE, "")
    infos = {alias: info.dtype for alias, info in sorted(infos_of(name).items())}
    if not infos:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if INSTANCES in document and INPUTS in document:
        raise invalid(f"JSON Value: {shown(document)} Not formatted correctly expecting only one of '{INPUTS}' or "
                      f"'{INSTANCES}' keys to exist ")
    if INSTANCES in document:
        given = document[INSTANCES]
        if not isinstance(given, (list, Dense)):
            raise invalid(f"JSON Value: {shown(document)} Excepting '{INSTANCES}' to be an list/array")
        if isinstance(given, list) and not given:
            raise invalid(f"JSON Value: {shown(document)} No values in '{INSTANCES}' array")
        return Predict(name, _rows(given, infos), True)
    if INPUTS in document:
        return Predict(name, _columns(document[INPUTS], infos), False)
    raise invalid(f"Missing '{INPUTS}' or '{INSTANCES}' key")


def _columns(given: object, infos: dict[str, int]) -> dict[str, np.ndarray]:
    if isinstance(given, dict) and not is_base64(given):
        for alias in infos:
            if alias not in given:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        return {alias: tensor(given[alias], dtype) for alias, dtype in infos.items()}
    if len(infos) > 1:
        raise invalid("inputs is a plain value/list, but expecting an object as multiple input tensors required as "
                      "per tensorinfo_map")
    (alias, dtype), = infos.items()
    return {alias: tensor(given, dtype)}


def _rows(given: list | Dense, infos: dict[str, int]) -> dict[str, np.ndarray]:
    named = isinstance(given, list) and is_object(given[0])
    if len(infos) > 1 and not (isinstance(given, list) and isinstance(given[0], dict)):
        raise invalid("instances is a plain list, but expecting list of objects as multiple input tensors required as "
                      "per tensorinfo_map")
    first = next(iter(infos))
    if isinstance(given, Dense) or not any(isinstance(each, (list, Dense)) or is_object(each) for each in given):
        return {first: _plain_rows(given, infos[first])}
    parts: dict[str, list[np.ndarray]] = {alias: [] for alias in infos}
    for place, element in enumerate(given):
        if named and not is_object(element):
            raise invalid(f"Expecting object but got list at item {place} of input list")
        if not named and is_object(element):
            raise invalid(f"Expecting value/list but got object at item {place} of input list")
        for alias, value in element.items() if named else ((first, element),):
            if alias not in infos:
                error = invalid(f"JSON object: does not have named input: {alias}")
                raise _in_element(place, error, f" key: {alias}")
            try:
                parts[alias].append(_alike(tensor(value, infos[alias]), parts[alias]))
            except ServingError as error:
                raise _in_element(place, error, f" key: {alias}" if named else "") from None
        if named and set(element) != set(infos):
            raise invalid(f"Failed to process element: {place} of 'instances' list. JSON object: {shown(element)} keys "
                          f"must be equal to: {','.join(sorted(infos))}")
    return {alias: np.stack(arrays) for alias, arrays in parts.items()}


def _plain_rows(given: list | Dense, dtype: int) -> np.ndarray:
    """Return rows of numbers, or of what is no array nor object, at once."""
    shape = given.shape if isinstance(given, Dense) else (len(given),)
    try:
        return dense(given, dtype) if isinstance(given, Dense) else converted(given, dtype)
    except BadValue as bad:
        raise _in_element(bad.index // max(math.prod(shape[1:]), 1), bad.error, "") from None


def _in_element(place: int, error: ServingError, key: str) -> ServingError:
    return invalid(f"Failed to process element: {place}{key} of 'instances' list. Error: {error.code.name}: "
                   f"{error.message}")


def _alike(array_: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Return the array if it has the others' size and shape; raises ServingError."""
    if others and array_.size != others[0].size:
        raise invalid(f"Expecting tensor size: {others[0].size} but got: {array_.size}")
    if others and array_.shape != others[0].shape:
        raise invalid(f"Expecting shape {_text(others[0].shape)} but got: {_text(array_.shape)}")
    return array_


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def is_object(value: object) -> bool:
    """Return whether a value is an object that does not stand for bytes."""
    return isinstance(value, dict) and not is_base64(value)


def tensor(value: object, dtype: int) -> np.ndarray:
    """Return the tensor that a JSON value is, of a dtype of types_pb2; raises ServingError."""
    try:
        if isinstance(value, Dense):
            return dense(value, dtype)
        shape = _shape(value)
        if len(shape) > MOST_DIMENSIONS:
            raise invalid(f"Tensors of {len(shape)} dimensions are not taken, at most {MOST_DIMENSIONS}")
        pieces: list[np.ndarray] = []
        _fill(value, 0, shape, dtype, pieces)
    except BadValue as bad:
        raise bad.error from None
    return (np.concatenate(pieces) if pieces else np.empty(0, tf.as_dtype(dtype).as_numpy_dtype)).reshape(shape)


def _shape(value: object) -> tuple[int, ...]:
    """Return the shape that the first elements of nested lists say."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return (*shape, *(value.shape if isinstance(value, Dense) else ()))


def _fill(value: object, level: int, shape: tuple[int, ...], dtype: int, pieces: list[np.ndarray]) -> None:
    """Append the values of nested lists, flat, and check that they have the shape."""
    if not isinstance(value, (list, Dense)):
        if level != len(shape):
            raise invalid(f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected "
                          f"at level: {len(shape)}")
        pieces.append(converted([value], dtype))
        return
    sizes = value.shape if isinstance(value, Dense) else (len(value),)
    for depth, size in enumerate(sizes, level):
        if depth >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {depth} expected < {len(shape)}")
        if size != shape[depth]:
            raise invalid(f"Encountered list at unexpected size: {size} at level: {depth} expected size: "
                          f"{shape[depth]}")
    if isinstance(value, Dense):
        if level + len(sizes) != len(shape):
            raise invalid(f"JSON Value: {shown(value)} found at incorrect level: {level + len(sizes) + 1} in the JSON "
                          f"DOM. Expected at level: {len(shape)}")
        pieces.append(dense(value, dtype).reshape(-1))
    elif level == len(shape) - 1 and not any(isinstance(element, (list, Dense)) for element in value):
        pieces.append(converted(value, dtype))
    else:
        for element in value:
            _fill(element, level + 1, shape, dtype, pieces)
