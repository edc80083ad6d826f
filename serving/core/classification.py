"""Classify, Regress and MultiInference on a servable: tf.train.Examples in, classes, scores or values out.

The checks and the texts of their errors are those of TensorFlow Serving (classifier.cc, regressor.cc,
multi_inference.cc, util.cc).
"""

from collections.abc import Callable
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis import classification_pb2, inference_pb2, input_pb2, regression_pb2

from serving.core.prediction import signature_name
from serving.core.servable import Servable
from serving.errors import ServingError, invalid

INPUTS, OUTPUTS, CLASSES, SCORES = "inputs", "outputs", "classes", "scores"
WITH_CONTEXT = "example_list_with_context"


def classify_response(
    model: Servable, request: classification_pb2.ClassificationRequest, deadline: float | None
) -> classification_pb2.ClassificationResult:
    """Return the classes of every example; `deadline` is a value of time.monotonic().

    Raises ServingError.
    """
    name = _known_signature(model, signature_name(request.model_spec), "No signature was found with the name: ")
    outputs = _classification_outputs(model.signatures[name])
    count, values = _run(model, name, request.input, outputs, deadline)
    return _classification_result(count, values)


def regress_response(
    model: Servable, request: regression_pb2.RegressionRequest, deadline: float | None
) -> regression_pb2.RegressionResult:
    """Return the value of every example; `deadline` is a value of time.monotonic().

    Raises ServingError.
    """
    name = _known_signature(model, signature_name(request.model_spec), "No signature was found with the name: ")
    outputs = _regression_outputs(model.signatures[name])
    count, values = _run(model, name, request.input, outputs, deadline)
    return _regression_result(count, values)


def multi_inference_response(
    model: Servable, request: inference_pb2.MultiInferenceRequest, deadline: float | None
) -> list[inference_pb2.InferenceResult]:
    """Return the result of every task, without its model_spec.

    `deadline` is a value of time.monotonic(). Raises ServingError.
    """
    chosen = {}
    for task in request.tasks:
        name, outputs = _checked_task(model, task, request.tasks[0].model_spec.name)
        if name in chosen:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        chosen[name] = (METHODS[task.method_name], outputs)
    if len({model.signatures[name].inputs[INPUTS].name for name in chosen}) > 1:
        raise invalid("Input tensor must be the same for all Signatures.")
    results = []
    for name, (method, outputs) in chosen.items():
        count, values = _run(model, name, request.input, outputs, deadline)
        results.append(inference_pb2.InferenceResult(**{method.field: method.result(count, values)}))
    return results


def _checked_task(model: Servable, task: inference_pb2.InferenceTask, model_name: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a task's signature and the aliases of its outputs."""
    if not task.model_spec.name:
        raise invalid("Found ModelSpec with an empty model name.")
    if task.model_spec.name != model_name:
        raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    name = _known_signature(model, signature_name(task.model_spec), "Requested signature not found in model graph: ")
    if task.method_name not in METHODS:
        raise ServingError(grpc.StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
    return name, METHODS[task.method_name].outputs(model.signatures[name])


def _known_signature(model: Servable, name: str, error_prefix: str) -> str:
    if name not in model.signatures:
        raise invalid(error_prefix + name)
    return name


def _classification_outputs(signature: SignatureDef) -> tuple[str, ...]:
    """Return which of `classes` and `scores` a signature outputs."""
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    present = tuple(name for name in (CLASSES, SCORES) if name in signature.outputs)
    if not present:
        raise invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return present


def _regression_outputs(signature: SignatureDef) -> tuple[str, ...]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if OUTPUTS not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return (OUTPUTS,)


def _run(
    model: Servable, name: str, source: input_pb2.Input, outputs: tuple[str, ...], deadline: float | None
) -> tuple[int, dict[str, np.ndarray]]:
    """Run a signature on serialized examples and return their number and the outputs."""
    kind = source.WhichOneof("kind")
    examples = getattr(source, kind).examples if kind else ()
    if not examples:
        raise invalid("Input is empty.")
    # Concatenated serialized messages parse as one message with the fields of both.
    context = source.example_list_with_context.context.SerializeToString() if kind == WITH_CONTEXT else b""
    strings = np.array([context + example.SerializeToString() for example in examples], object)
    return len(strings), model.run(name, {INPUTS: strings}, outputs, deadline)


def _classification_result(count: int, values: dict[str, np.ndarray]) -> classification_pb2.ClassificationResult:
    for name, dtype, type_name in ((CLASSES, object, "DT_STRING"), (SCORES, np.float32, "DT_FLOAT")):
        if name not in values:
            continue
        if values[name].ndim != 2:
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(values[name])}")
        if values[name].dtype != dtype:
            raise invalid(f"Expected {name} Tensor of {type_name}. Got: {_dtype(values[name])}")
        if len(values[name]) != count:
            raise invalid(f"Expected {name} output batch size of {count}. Got: {len(values[name])}")
    if len({array.shape[1] for array in values.values()}) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{values[CLASSES].shape[1]} vs. {values[SCORES].shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(count):
        classes = result.classifications.add().classes
        for column in range(next(iter(values.values())).shape[1]):
            entry = classes.add()
            if CLASSES in values:
                entry.label = values[CLASSES][row, column]
            if SCORES in values:
                entry.score = values[SCORES][row, column]
    return result


def _regression_result(count: int, values: dict[str, np.ndarray]) -> regression_pb2.RegressionResult:
    array = values[OUTPUTS]
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise invalid(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != count:
        raise invalid(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(array)}")
    return regression_pb2.RegressionResult(
        regressions=[regression_pb2.Regression(value=value) for value in array.reshape(-1)]
    )


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _dtype(array: np.ndarray) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(array.dtype).as_datatype_enum)


class InferenceMethod(NamedTuple):
    """A method of MultiInference.

    Attributes:
        outputs: Returns the aliases of a signature's outputs to compute.
        result: Returns the result message of (number of examples, output arrays).
        field: The field of InferenceResult that holds the result message.
    """

    outputs: Callable[[SignatureDef], tuple[str, ...]]
    result: Callable[[int, dict[str, np.ndarray]], Message]
    field: str


METHODS = {
    tf.saved_model.CLASSIFY_METHOD_NAME: InferenceMethod(
        _classification_outputs, _classification_result, "classification_result"
    ),
    tf.saved_model.REGRESS_METHOD_NAME: InferenceMethod(_regression_outputs, _regression_result, "regression_result"),
}
