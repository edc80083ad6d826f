"""Convert JSON request bodies to tensors, given by rows ("instances") or by columns ("inputs").

The forms, checks and messages match TensorFlow Serving word for word (util/json_tensor.cc).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.errors import ServingError, invalid
from serving.rest_api.json_reading import MAX_DIMENSIONS, Dense, parse_document
from serving.rest_api.json_values import BadValue, convert_value, dense_array, is_base64, shown_value

INSTANCES, INPUTS, SIGNATURE = "instances", "inputs", "signature_name"


class PredictBody(NamedTuple):
    """A parsed predict request; `rows` is True if it gave "instances" instead of "inputs"."""

    signature_name: str
    inputs: dict[str, np.ndarray]
    rows: bool


def parse_request(body: bytes) -> dict:
    """Return the JSON object of a request; raises ServingError for other JSON and a bad signature_name."""
    document = parse_document(body)
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown_value(document)} Is not object")
    if not isinstance(document.get(SIGNATURE, ""), str):
        raise invalid(
            f"JSON Value: {shown_value(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return document


def parse_predict(body: bytes, find_inputs: Callable[[str], Mapping]) -> PredictBody:
    """Parse the body of a predict request.

    Args:
        body: JSON in UTF-8.
        find_inputs: Returns the TensorInfos of a signature's inputs by alias. The name is empty for the default
            signature.

    Returns:
        The inputs as arrays of their dtypes; strings are object arrays of bytes.

    Raises:
        ServingError: INVALID_ARGUMENT or UNIMPLEMENTED, or an error of `find_inputs`.
    """
    document = parse_request(body)
    name = document.get(SIGNATURE, "")
    dtypes = {alias: info.dtype for alias, info in sorted(find_inputs(name).items())}
    if not dtypes:
        raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    if INSTANCES in document and INPUTS in document:
        raise invalid(
            f"JSON Value: {shown_value(document)} Not formatted correctly expecting only one of '{INPUTS}' "
            f"or '{INSTANCES}' keys to exist "
        )
    if INSTANCES in document:
        instances = document[INSTANCES]
        if not isinstance(instances, (list, Dense)):
            raise invalid(f"JSON Value: {shown_value(document)} Excepting '{INSTANCES}' to be an list/array")
        if isinstance(instances, list) and not instances:
            raise invalid(f"JSON Value: {shown_value(document)} No values in '{INSTANCES}' array")
        return PredictBody(name, _parse_rows(instances, dtypes), True)
    if INPUTS in document:
        return PredictBody(name, _parse_columns(document[INPUTS], dtypes), False)
    raise invalid(f"Missing '{INPUTS}' or '{INSTANCES}' key")


def _parse_columns(inputs: object, dtypes: dict[str, int]) -> dict[str, np.ndarray]:
    if isinstance(inputs, dict) and not is_base64(inputs):
        for alias in dtypes:
            if alias not in inputs:
                raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        return {alias: parse_tensor(inputs[alias], dtype) for alias, dtype in dtypes.items()}
    if len(dtypes) > 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
            "per tensorinfo_map"
        )
    ((alias, dtype),) = dtypes.items()
    return {alias: parse_tensor(inputs, dtype)}


def _parse_rows(instances: list | Dense, dtypes: dict[str, int]) -> dict[str, np.ndarray]:
    named = isinstance(instances, list) and is_object(instances[0])
    if len(dtypes) > 1 and not (isinstance(instances, list) and isinstance(instances[0], dict)):
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    first = next(iter(dtypes))
    if isinstance(instances, Dense) or not any(isinstance(row, (list, Dense)) or is_object(row) for row in instances):
        return {first: _parse_plain_rows(instances, dtypes[first])}
    rows: dict[str, list[np.ndarray]] = {alias: [] for alias in dtypes}
    for index, instance in enumerate(instances):
        if named and not is_object(instance):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        if not named and is_object(instance):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        for alias, value in instance.items() if named else ((first, instance),):
            if alias not in dtypes:
                error = invalid(f"JSON object: does not have named input: {alias}")
                raise _instance_error(index, error, f" key: {alias}")
            try:
                rows[alias].append(_check_shape(parse_tensor(value, dtypes[alias]), rows[alias]))
            except ServingError as error:
                raise _instance_error(index, error, f" key: {alias}" if named else "") from None
        if named and set(instance) != set(dtypes):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{shown_value(instance)} keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return {alias: np.stack(arrays) for alias, arrays in rows.items()}


def _parse_plain_rows(instances: list | Dense, dtype: int) -> np.ndarray:
    """Convert rows that are numbers, or other values without arrays and objects, all at once."""
    shape = instances.shape if isinstance(instances, Dense) else (len(instances),)
    try:
        return dense_array(instances, dtype) if isinstance(instances, Dense) else convert_value(instances, dtype)
    except BadValue as bad:
        raise _instance_error(bad.index // max(math.prod(shape[1:]), 1), bad.error, "") from None


def _instance_error(index: int, error: ServingError, key: str) -> ServingError:
    return invalid(
        f"Failed to process element: {index}{key} of 'instances' list. Error: {error.code.name}: {error.message}"
    )


def _check_shape(row: np.ndarray, previous_rows: list[np.ndarray]) -> np.ndarray:
    """Return the row if it has the size and shape of the previous rows; raises ServingError otherwise."""
    if previous_rows and row.size != previous_rows[0].size:
        raise invalid(f"Expecting tensor size: {previous_rows[0].size} but got: {row.size}")
    if previous_rows and row.shape != previous_rows[0].shape:
        raise invalid(f"Expecting shape {_shape_text(previous_rows[0].shape)} but got: {_shape_text(row.shape)}")
    return row


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def is_object(value: object) -> bool:
    """Return whether a value is an object that does not represent bytes."""
    return isinstance(value, dict) and not is_base64(value)


def parse_tensor(value: object, dtype: int) -> np.ndarray:
    """Return a JSON value as a tensor of a types_pb2 dtype; raises ServingError."""
    try:
        if isinstance(value, Dense):
            return dense_array(value, dtype)
        shape = _first_shape(value)
        if len(shape) > MAX_DIMENSIONS:
            raise invalid(f"Tensors have at most {MAX_DIMENSIONS} dimensions, got {len(shape)}")
        pieces: list[np.ndarray] = []
        _append_values(value, 0, shape, dtype, pieces)
    except BadValue as bad:
        raise bad.error from None
    return (np.concatenate(pieces) if pieces else np.empty(0, tf.as_dtype(dtype).as_numpy_dtype)).reshape(shape)


def _first_shape(value: object) -> tuple[int, ...]:
    """Return the shape that the first element at each level of nested lists implies."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return (*shape, *(value.shape if isinstance(value, Dense) else ()))


def _append_values(value: object, level: int, shape: tuple[int, ...], dtype: int, pieces: list[np.ndarray]) -> None:
    """Append the flattened values of nested lists, and check that the lists have the shape."""
    if not isinstance(value, (list, Dense)):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown_value(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        pieces.append(convert_value([value], dtype))
        return
    sizes = value.shape if isinstance(value, Dense) else (len(value),)
    for depth, size in enumerate(sizes, level):
        if depth >= len(shape):
            raise invalid(f"Encountered list at unexpected level: {depth} expected < {len(shape)}")
        if size != shape[depth]:
            raise invalid(
                f"Encountered list at unexpected size: {size} at level: {depth} expected size: {shape[depth]}"
            )
    if isinstance(value, Dense):
        if level + len(sizes) != len(shape):
            raise invalid(
                f"JSON Value: {shown_value(value)} found at incorrect level: {level + len(sizes) + 1} in the "
                f"JSON DOM. Expected at level: {len(shape)}"
            )
        pieces.append(dense_array(value, dtype).reshape(-1))
    elif level == len(shape) - 1 and not any(isinstance(element, (list, Dense)) for element in value):
        pieces.append(convert_value(value, dtype))
    else:
        for element in value:
            _append_values(element, level + 1, shape, dtype, pieces)
