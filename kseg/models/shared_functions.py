"""Trace a computation once for all layers that have it in common.

A convolution by Winograd's algorithm consists of hundreds of operations. Traced anew in every layer, they would be most
of the graph of a training step and most of the time before its first step.
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
