"""Trace a computation once for all layers that have it in common.

A convolution by Winograd's algorithm or tap by tap consists of hundreds of operations. Traced anew in every layer, they
would be most of the graph of a training step and most of the time before its first step.
"""

import contextlib
import re
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import tensorflow as tf

# The functions of every graph that is being traced, by computation, settings and kinship of the layers.
_functions: weakref.WeakKeyDictionary[Any, dict[Hashable, Callable]] = weakref.WeakKeyDictionary()
# The two first words of a layer's name: a stage of the backbone or a part of a head.
KINSHIP = re.compile(r"[^./]+\.[^./]+")


def call_shared(compute: Callable, tensors: tuple[tf.Tensor, ...], *settings: Hashable) -> Any:
    """Return compute(*tensors, *settings), as a call of a function that similar layers share.

    Layers share a function if they belong to the same graph and if their names begin with the same two words, such as
    "backbone.layer3". A profile then finds the stage, though not the layer. No gradient flows through the call.

    Args:
        compute: a function of tensors and settings without state.
        tensors: its tensors.
        settings: its other arguments.
    """
    if tf.executing_eagerly():
        return compute(*tensors, *settings)
    graph, scope = tf.compat.v1.get_default_graph(), tf.get_current_name_scope()
    kinship = KINSHIP.search(scope)
    functions = _functions.setdefault(graph, {})
    key = compute, settings, scope.startswith("gradient_tape/"), kinship and kinship.group()
    if key not in functions:

        def named(*tensors):
            # Operations of a function do not inherit the scope of its call.
            with tf.name_scope(f"{scope}/") if scope else contextlib.nullcontext():
                return compute(*tensors, *settings)

        named.__name__ = compute.__name__.lstrip("_")
        # Inlined, the operations of every call would have to be optimized again.
        functions[key] = tf.function(named, autograph=False, experimental_attributes={"_noinline": True})
    # Without stop_gradient, TensorFlow would trace the function's own gradient beside it.
    return functions[key](*map(tf.stop_gradient, tensors))


def call_shared_with_gradients(
    compute: Callable, gradients: Callable, tensors: tuple[tf.Tensor, ...], *settings: Hashable
) -> tf.Tensor:
    """Return compute(*tensors, *settings) with the gradients of the tensors, both by `call_shared`.

    Args:
        compute: a function of tensors and settings that returns a tensor.
        gradients: a function of the tensors, the gradient of the result, and the settings; it returns the gradients of
            the tensors.
        tensors: tensors or variables.
        settings: the other arguments of both.
    """
    scope = tf.get_current_name_scope()

    def differentiable(*tensors):
        def differentiate(upstream):
            # TensorFlow names its own gradients this way, and a profile finds the layer by that name.
            with tf.name_scope(f"gradient_tape/{scope}/"):
                return call_shared(gradients, (*tensors, upstream), *settings)

        return call_shared(compute, tensors, *settings), differentiate

    # Variables are read here because a function with a custom gradient must not capture one.
    return tf.custom_gradient(differentiable)(*map(tf.convert_to_tensor, tensors))
