"""What an operation of the compiled training step is for, told from its name and type in the graph.

Keras names operations after the layer, the gradient's tape puts gradient_tape/ before the name of what it
differentiates, and an optimizer works in a scope of its own name.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from kseg.profiling.traces import Operation

FORWARD, BACKWARD, UPDATE = "forward pass", "backward pass", "optimiser update"
EXCHANGE, UNNAMED = "all-reduce between replicas", "of unknown origin"
LOSS, OPTIMISER, SUMS = "loss", "optimiser", "sums of gradients"
STEM = "backbone.stem"
LAYER = re.compile(r"(?:^|/)((?:backbone|decode_head|auxiliary_head)\.[\w.]*)")
# Parts of the backbone by the word after its name; what is left is the stem, however it is written.
STAGE = re.compile(r"backbone\.(layer[0-9]+)")
# Keras numbers the calls of a layer.
CALL_NUMBER = re.compile(r"_[0-9]+$")
# oneDNN's and the graph optimiser's own forms of an operation.
OWN_FORMS = re.compile(r"^_*(Mkl)?(Native)?_*(Fused(?!BatchNorm))?")
EXCHANGES = re.compile(r"Collective|Nccl|AllReduce|AllGather")
# Outside of all layers, and of an optimizer's scope: gradients that are added up and divided by the scale of the loss,
# averages of the weights.
MOVES = re.compile(r"Assign\w*|ResourceApply\w*|ReadVariableOp|RealDiv")
# In an optimizer's scope: gradients of all replicas are sent and summed in bundles.
BUNDLES = re.compile(r"AddN|Concat\w*|Split\w*")
NORM = "batch normalisation"
CONVOLUTION = "convolution, forward"
BY_INPUT, BY_KERNEL = "convolution, gradient by input", "convolution, gradient by kernel"
DEPTHWISE, PRODUCT = "depthwise convolution", "matrix product"
# Kinds of operations whose multiply-adds are counted.
MULTIPLYING = (CONVOLUTION, BY_INPUT, BY_KERNEL, DEPTHWISE, PRODUCT)
# Kind -> what its types match, the first that does.
KINDS = {
    DEPTHWISE: r"Depthwise\w*",
    BY_INPUT: r"Conv\w*BackpropInput\w*",
    BY_KERNEL: r"Conv\w*BackpropFilter\w*",
    CONVOLUTION: r"Conv[23]D\w*",
    NORM: r"FusedBatchNorm\w*",
    PRODUCT: r"\w*MatMul\w*|Einsum",
    "resize": r"Resize\w*",
    "pooling": r"(Max|Avg)Pool\w*",
    "softmax, cross-entropy": r"\w*Softmax\w*",
    "sum or maximum over axes": r"Sum|Mean|Max|Min|Prod|Arg(Max|Min)|\w*Segment\w*|Bincount\w*|DenseBincount",
    "copy or rearrangement": r"(Batch|Conjugate)?Transpose|Concat\w*|\w*Slice\w*|Slice|\w*Pad\w*|Pack|Unpack|Split\w*|"
                             r"Identity\w*|Copy\w*|Cast|Reshape|Tile|\w*Gather\w*|\w*Scatter\w*|[Mm]em(cpy|set)\w*|"
                             r"\w*Batch(To)?Space\w*|SpaceToBatch\w*|BatchToSpace\w*|Fill|\w*Like|BroadcastTo|ToTf|"
                             r"Reverse\w*|Const|Bitcast|DeepCopy|Recv|Send|HostRecv|HostSend|Layout\w*",
    "arithmetic on each number": r"Relu\w*|Add\w*|BiasAdd\w*|Sub|Mul|MulNoNan|Div\w*|RealDiv|Rsqrt\w*|Sqrt\w*|"
                                 r"Square\w*|Exp|Log\w*|Sigmoid\w*|Select\w*|Greater\w*|Less\w*|Equal|NotEqual|Max\w*|Min\w*|Neg|"
                                 r"Reciprocal\w*|Pow|Abs|Sign|Floor\w*|Elu\w*|Tanh\w*|IsFinite|Inv\w*|Xdivy|All|Any",
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
OTHER = "other"


class Purpose(NamedTuple):
    """What an operation is for: the phase of the step, the kind of operation and the part of the model."""

    phase: str
    kind: str
    part: str


def purpose(operation: Operation, optimizer: str, norms: Iterable[str] = ()) -> Purpose:
    """Return what an operation is for, in a model whose batch normalisation layers are called `norms`.

    `optimizer` is the name of the optimizer. What stands outside of all layers belongs to the loss, but for sums of
    gradients, which the tape names after none.
    """
    # A copy that the device makes on its own has no type.
    kind, layer = kind_of(operation.type or operation.name), layer_of(operation.name)
    if EXCHANGES.search(operation.type):
        return Purpose(EXCHANGE, EXCHANGE, part_of(layer) if layer else OPTIMISER)
    if f"/{optimizer}/" in f"/{operation.name}":
        return Purpose(EXCHANGE, kind, OPTIMISER) if BUNDLES.fullmatch(operation.type) \
            else Purpose(UPDATE, UPDATE, OPTIMISER)
    backward = "gradient_tape" in operation.name
    if layer:
        return Purpose(BACKWARD if backward else FORWARD, NORM if layer in norms else kind, part_of(layer))
    if not operation.type:
        return Purpose(UNNAMED, UNNAMED, UNNAMED)
    if operation.type == "AddN":
        return Purpose(BACKWARD, kind, SUMS)
    if not backward and MOVES.fullmatch(operation.type):
        return Purpose(UPDATE, UPDATE, OPTIMISER)
    if kind in MULTIPLYING:
        # The loss multiplies nothing of the kind: a layer's own gradient that does not say whose it is.
        return Purpose(UNNAMED, kind, UNNAMED)
    return Purpose(BACKWARD if backward else FORWARD, kind, LOSS)


def kind_of(kind: str) -> str:
    """Return the kind of operations to which a type belongs."""
    plain = OWN_FORMS.sub("", kind)
    return next((name for name, pattern in PATTERNS.items() if pattern.fullmatch(plain)), OTHER)


def layer_of(name: str) -> str:
    """Return the name of the layer in which an operation stands, "" for none."""
    match = LAYER.search(name)
    return CALL_NUMBER.sub("", match[1]) if match else ""


def part_of(layer: str) -> str:
    """Return the part of the model to which a layer belongs."""
    stage = STAGE.match(layer)
    if stage:
        return f"backbone.{stage[1]}"
    return STEM if layer.startswith("backbone") else layer.split(".")[0]
