"""Convert JSON to tf.train.Examples for classify and regress, and their results to JSON.

The forms, checks and messages match TensorFlow Serving word for word (util/json_tensor.cc).
"""

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.errors import ServingError, invalid
from serving.rest_api import json_tensors
from serving.rest_api.json_reading import Dense
from serving.rest_api.json_values import BASE64, decode_base64, lossy, shown_value, type_name
from serving.rest_api.json_writing import decimal_texts, quote

CONTEXT, EXAMPLES = "context", "examples"
KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
INT64, MAX_FLOAT = np.iinfo(np.int64), float(np.finfo(np.float32).max)


def parse_examples(body: bytes) -> tuple[str, input_pb2.Input]:
    """Return the signature's name (empty: default) and the examples of a request; raises ServingError."""
    document = json_tensors.parse_request(body)
    result = input_pb2.Input()
    example_list = result.example_list
    if CONTEXT in document:
        example_list = result.example_list_with_context
        example_list.context.CopyFrom(_parse_example(document[CONTEXT]))
    if EXAMPLES not in document:
        raise _document_error(document, f"When method is classify, key '{EXAMPLES}' is expected and was not found")
    examples = document[EXAMPLES]
    if not isinstance(examples, (list, Dense)):
        raise _document_error(document, f"Expecting '{EXAMPLES}' value to be an list/array")
    if isinstance(examples, Dense):
        raise _not_an_example(0 if len(examples.shape) == 1 else [])
    if not examples:
        raise _document_error(document, f"'{EXAMPLES}' value is an empty array")
    for example in examples:
        example_list.examples.add().CopyFrom(_parse_example(example))
    return document.get(json_tensors.SIGNATURE, ""), result


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """Return the JSON of a classify response; raises ServingError if it is empty."""
    if not result.classifications:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for row in result.classifications:
        scores = decimal_texts(np.array([entry.score for entry in row.classes], np.float32))
        pairs = (f"[{quote(entry.label.encode())},{score}]" for entry, score in zip(row.classes, scores))
        rows.append(f"[{','.join(pairs)}]")
    return f'{{"results":[{",".join(rows)}]}}'.encode(errors="surrogateescape")


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    """Return the JSON of a regress response; raises ServingError if it is empty."""
    if not result.regressions:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    values = decimal_texts(np.array([regression.value for regression in result.regressions], np.float32))
    return f'{{"results":[{",".join(values)}]}}'.encode()


def _document_error(document: dict, reason: str) -> ServingError:
    return invalid(f"JSON Value: {shown_value(document)} {reason}")


def _not_an_example(value: object) -> ServingError:
    return invalid(f"Example must be JSON object but got JSON {type_name(value)}")


def _parse_example(value: object) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise _not_an_example(value)
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        if isinstance(content, Dense) and len(content.shape) == 1:
            content = [number for piece in content.pieces() for number in piece]
        for element in content if isinstance(content, list) else [content]:
            _append_element(element, name, feature)
    return example


def _append_element(value: object, name: str, feature: feature_pb2.Feature) -> None:
    if value is None or isinstance(value, (list, Dense)) or json_tensors.is_object(value):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    kind = "float_list" if isinstance(value, float) else "int64_list" if isinstance(value, int) else "bytes_list"
    present = feature.WhichOneof("kind") or kind
    if present != kind:
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {KINDS[present]}")
    if kind == "int64_list" and not INT64.min <= value <= INT64.max:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if kind == "float_list" and np.isfinite(value) and abs(value) > MAX_FLOAT:
        raise lossy(value, "float")
    if isinstance(value, dict):
        value = decode_base64(value[BASE64])
    getattr(feature, kind).value.append(value.encode() if isinstance(value, str) else value)
