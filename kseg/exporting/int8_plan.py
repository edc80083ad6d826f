"""Choose the parts of a functional model that compute with 8-bit integers.

A convolution takes part if its input cannot be negative and a ReLU follows it, at once or after a residual sum. Between
convolutions, paddings, maxima and concatenations keep the codes as they are. All other layers compute in float32: the
first convolution, whose images have both signs, the classifier, sigmoids, pooling to a grid and EncNet's encoding.
"""

import enum
from typing import NamedTuple

import keras
from keras import layers

from kseg.models.heads.apcnet import RegionMixture
from kseg.models.layers import AdaptiveAveragePooling, ChannelDropout, ResizeLike

# These layers return their input in an exported model.
ALIASES = (layers.Identity, ChannelDropout)
NONNEGATIVE_ACTIVATIONS = (keras.activations.relu, keras.activations.sigmoid, keras.activations.softmax)
# The outputs of these layers are not negative if no input is.
KEEPING_SIGN = (
    layers.Add,
    layers.Multiply,
    layers.Concatenate,
    layers.ZeroPadding2D,
    layers.MaxPooling2D,
    layers.AveragePooling2D,
    layers.Reshape,
    AdaptiveAveragePooling,
    ResizeLike,
    RegionMixture,
)
# These layers move values without changing them, so they can move codes.
MOVING = (layers.ZeroPadding2D, layers.MaxPooling2D, layers.Concatenate)


class Form(enum.Enum):
    """Name how a step computes."""

    FLOAT = "the layer itself, in float32"
    MOVED = "a layer of MOVING, on codes"
    RECTIFIED = "convolution and ReLU, on codes"
    SHIFTED = "convolution that only a RECTIFIED_SUM uses, on codes, shifted by a constant that makes it positive"
    RECTIFIED_SUM = "convolution, sum with the second input and ReLU, on codes"


class Step(NamedTuple):
    """Describe one step of the computation; tensors are called like the layers that produce them."""

    form: Form
    layer: layers.Layer
    inputs: tuple[str, ...]
    output: str


class Plan(NamedTuple):
    """Describe the computation of a model.

    `source` and `target` are the images and the logits. `scaled` are the tensors that become codes by rounding, whose
    ranges are needed; those in `uniform` have the same scale in all channels.
    """

    steps: tuple[Step, ...]
    source: str
    target: str
    scaled: tuple[str, ...]
    uniform: frozenset[str]

    @property
    def convolutions(self) -> tuple[Step, ...]:
        """The steps that compute a convolution on codes."""
        return tuple(step for step in self.steps if step.form not in (Form.FLOAT, Form.MOVED))


class _Node(NamedTuple):
    layer: layers.Layer
    inputs: tuple[str, ...]
    output: str


class _Graph:
    """The layers of a functional model in order, without ALIASES."""

    def __init__(self, model: keras.Model):
        names, aliases, nodes = {}, {}, []
        for layer in model.layers:
            names[id(layer.output)] = layer.name
            if isinstance(layer, layers.InputLayer):
                self.source = layer.name
                continue
            inputs = tuple(names[id(tensor)] for tensor in keras.tree.flatten(layer.input))
            inputs = tuple(aliases.get(name, name) for name in inputs)
            if isinstance(layer, ALIASES):
                aliases[layer.name] = inputs[0]
            else:
                nodes.append(_Node(layer, inputs, layer.name))
        last = names[id(model.output)]
        self.target = aliases.get(last, last)
        self.nodes = {node.output: node for node in nodes}
        self.users: dict[str, list[_Node]] = {self.target: []}
        self.ancestors: dict[str, set[str]] = {self.source: set()}
        self.nonnegative: set[str] = set()
        for node in nodes:
            for name in node.inputs:
                self.users.setdefault(name, []).append(node)
            self.ancestors[node.output] = set(node.inputs).union(*(self.ancestors[name] for name in node.inputs))
            if self._keeps_nonnegative(node):
                self.nonnegative.add(node.output)

    def _keeps_nonnegative(self, node: _Node) -> bool:
        if isinstance(node.layer, layers.Activation):
            return node.layer.activation in NONNEGATIVE_ACTIVATIONS
        # A resize uses only the size of its second input.
        values = node.inputs[:1] if isinstance(node.layer, ResizeLike) else node.inputs
        return isinstance(node.layer, KEEPING_SIGN) and self.nonnegative.issuperset(values)

    def has_one_user(self, name: str) -> bool:
        """Return whether exactly one layer uses a tensor, which is not the result."""
        return name != self.target and len(self.users.get(name, ())) == 1

    def is_convolution(self, name: str) -> bool:
        """Return whether a tensor is the output of a convolution that integers can compute, used once."""
        node = self.nodes.get(name)
        if node is None or not isinstance(node.layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            return False
        layer = node.layer
        is_plain = layer.depth_multiplier == 1 if is_depthwise(layer) else layer.groups == 1
        # The size is only known after pooling to a small grid, where a convolution costs nothing.
        is_large = None in layer.input.shape[1:3]
        return (
            is_plain
            and is_large
            and layer.activation is keras.activations.linear
            and node.inputs[0] in self.nonnegative
            and self.has_one_user(name)
        )

    def is_overwritable(self, name: str, convolution: _Node, total: _Node) -> bool:
        """Return whether the codes of a summand are unused once the convolution that adds to them starts."""
        others = {user.output for user in self.users[name] if user is not total}
        return (
            name in self.nonnegative
            and name != self.target
            and others <= self.ancestors[convolution.output]
            and convolution.output not in others
            and self._is_uniform(name)
        )

    def _is_uniform(self, name: str) -> bool:
        """Return whether the codes of a tensor can have one scale, which concatenated codes cannot."""
        node = self.nodes[name]
        while isinstance(node.layer, MOVING):
            if isinstance(node.layer, layers.Concatenate):
                return False
            node = self.nodes[node.inputs[0]]
        return True


def is_depthwise(layer: layers.Layer) -> bool:
    """Return whether a layer is a depthwise convolution."""
    return isinstance(layer, layers.DepthwiseConv2D)


def plan_integers(model: keras.Model) -> Plan:
    """Plan the computation of a functional model.

    Args:
        model: A model from images to logits with folded batch norms, whose images may have any size.

    Returns:
        The plan. It has no convolution on codes if the model has no suitable one.

    Example:
        >>> from kseg import models
        >>> from kseg.config.sections import Model
        >>> from kseg.exporting.precisions import folded_model
        >>> tiny = Model(backbone="resnet18", width=4, head="fcn", channels=8, auxiliary_channels=0)
        >>> plan = plan_integers(folded_model(models.build(tiny, classes=2), "cpu"))
        >>> plan.steps[0].form.name, plan.convolutions[0].layer.name, plan.target
        ('FLOAT', 'backbone.stem.3', 'decode_head.conv_seg')
    """
    graph = _Graph(model)
    fused, inner = _fused_steps(graph)
    steps = [fused.get(name) or Step(Form.FLOAT, *node) for name, node in graph.nodes.items() if name not in inner]
    needed: set[str] = set()
    for index in reversed(range(len(steps))):
        step = steps[index]
        if isinstance(step.layer, MOVING) and step.output in needed and graph.nonnegative.issuperset(step.inputs):
            step = steps[index] = step._replace(form=Form.MOVED)
        if step.form is not Form.FLOAT:
            needed.update(step.inputs)
    forms = {step.output: step.form for step in steps}
    scaled = tuple(
        name for name, form in forms.items() if form is not Form.MOVED and (form is not Form.FLOAT or name in needed)
    )
    uniform = {name for name in scaled if forms[name] is not Form.RECTIFIED}
    for step in reversed(steps):
        if step.form is Form.RECTIFIED_SUM:
            uniform.add(step.inputs[1])
        if step.form is Form.MOVED and step.output in uniform:
            uniform.update(step.inputs)
    return Plan(tuple(steps), graph.source, graph.target, scaled, frozenset(uniform))


def _fused_steps(graph: _Graph) -> tuple[dict[str, Step], set[str]]:
    """Return the steps of the convolutions on codes by their outputs, and the tensors inside them."""
    fused, inner = {}, set()
    for name, node in graph.nodes.items():
        is_relu = isinstance(node.layer, layers.Activation) and node.layer.activation is keras.activations.relu
        before = graph.nodes.get(node.inputs[0]) if is_relu else None
        if before is None or not graph.has_one_user(before.output):
            continue
        if graph.is_convolution(before.output):
            fused[name] = Step(Form.RECTIFIED, before.layer, before.inputs, name)
            inner.add(before.output)
        elif isinstance(before.layer, layers.Add) and len(before.inputs) == 2:
            step = _residual_step(graph, before, name)
            if step is None:
                continue
            fused[name] = step
            inner.update((step.layer.name, before.output))
            if graph.is_convolution(step.inputs[1]):
                shortcut = graph.nodes[step.inputs[1]]
                fused[shortcut.output] = Step(Form.SHIFTED, *shortcut)
    return fused, inner


def _residual_step(graph: _Graph, total: _Node, output: str) -> Step | None:
    """Return the step that computes a residual sum with one of its two convolutions, or None."""
    for name, summand in (total.inputs, total.inputs[::-1]):
        if not graph.is_convolution(name) or is_depthwise(graph.nodes[name].layer):
            continue
        convolution = graph.nodes[name]
        is_shortcut = graph.is_convolution(summand) and not is_depthwise(graph.nodes[summand].layer)
        if is_shortcut or graph.is_overwritable(summand, convolution, total):
            return Step(Form.RECTIFIED_SUM, convolution.layer, (convolution.inputs[0], summand), output)
    return None
