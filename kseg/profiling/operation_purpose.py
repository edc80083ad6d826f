"""Determine the purpose of an operation of the compiled training step from its name and type in the graph.

Keras puts the name of the layer into the names of its operations, the gradient tape prepends gradient_tape/ to the name
of what it differentiates, and an optimizer works in a scope with its own name.
"""

import re
from typing import NamedTuple

from kseg.profiling.traces import Operation

FORWARD, BACKWARD, UPDATE = "forward pass", "backward pass", "optimizer update"
EXCHANGE, UNNAMED = "all-reduce between replicas", "of unknown origin"
LOSS, OPTIMIZER, SUMS = "loss", "optimizer", "sums of gradients"
STEM = "backbone.stem"
LAYER = re.compile(r"(?:^|/)((?:backbone|decode_head|auxiliary_head)\.[\w.]*)")
# The rest of the backbone is the stem.
STAGE = re.compile(r"backbone\.(layer[0-9]+)")
# Keras appends a number to the names of repeated calls.
CALL_NUMBER = re.compile(r"_[0-9]+$")
# Types that wait for other replicas.
EXCHANGES = re.compile(r"Collective|Nccl|AllReduce|AllGather")
# Types that belong to the update although they are outside of all layers and of the optimizer's scope: accumulating
# gradients, dividing them by the loss scale, averaging the weights.
UPDATES = re.compile(r"Assign\w*|ResourceApply\w*|ReadVariableOp|RealDiv")
# Types that bundle the gradients of all replicas for the all-reduce, in the optimizer's scope.
BUNDLES = re.compile(r"AddN|Concat\w*|Split\w*")
# Types whose multiply-adds are counted; oneDNN and the graph optimizer prepend their own prefixes.
MULTIPLYING = re.compile(r"_*(Mkl)?(Native)?_*(Fused)?(Depthwise\w*|Conv[23]D\w*|\w*MatMul\w*|Einsum)")


class Purpose(NamedTuple):
    """Tell what an operation is for.

    `multiplies` marks convolutions and matrix products, whose multiply-adds are counted.
    """

    phase: str
    part: str
    multiplies: bool = False


def operation_purpose(operation: Operation, optimizer: str) -> Purpose:
    """Return the purpose of an operation.

    Operations outside of all layers belong to the loss, except for sums of gradients, which the tape does not name.

    Args:
        operation: an operation of the training step.
        optimizer: the name of the optimizer.
    """
    layer = layer_of(operation.name)
    if EXCHANGES.search(operation.type):
        return Purpose(EXCHANGE, model_part(layer) if layer else OPTIMIZER)
    if f"/{optimizer}/" in f"/{operation.name}":
        return Purpose(EXCHANGE if BUNDLES.fullmatch(operation.type) else UPDATE, OPTIMIZER)
    backward, multiplies = "gradient_tape" in operation.name, bool(MULTIPLYING.fullmatch(operation.type))
    if layer:
        return Purpose(BACKWARD if backward else FORWARD, model_part(layer), multiplies)
    # The loss contains no convolution or matrix product, so one outside of all layers is of unknown origin.
    if not operation.type or multiplies:
        return Purpose(UNNAMED, UNNAMED, multiplies)
    if operation.type == "AddN":
        return Purpose(BACKWARD, SUMS)
    if not backward and UPDATES.fullmatch(operation.type):
        return Purpose(UPDATE, OPTIMIZER)
    return Purpose(BACKWARD if backward else FORWARD, LOSS)


def layer_of(name: str) -> str:
    """Return the name of the layer to which an operation belongs, or "" if it belongs to none."""
    match = LAYER.search(name)
    return CALL_NUMBER.sub("", match[1]) if match else ""


def model_part(layer: str) -> str:
    """Return the part of the model to which a layer belongs."""
    stage = STAGE.match(layer)
    if stage:
        return f"backbone.{stage[1]}"
    return STEM if layer.startswith("backbone") else layer.split(".")[0]
