"""Similar layers share a traced function, and it lives no longer than their graph."""

import gc

import tensorflow as tf

from kseg.models import shared_functions
from kseg.models.shared_functions import call_shared


def calls_of(*names):
    """Return the functions that layers with these names call, and what they compute for 3.0."""

    def layers(values):
        for name in names:
            with tf.name_scope(name):
                values = call_shared(double_and_add, (values,), 1.0)
        return values

    traced = tf.function(layers, [tf.TensorSpec(())]).get_concrete_function()
    called = [
        operation.get_attr("f").name
        for operation in traced.graph.get_operations()
        if operation.type == "PartitionedCall"
    ]
    return called, float(traced(tf.constant(3.0)))


def double_and_add(values, offset):
    return 2 * values + offset


def test_layers_of_a_stage_share_a_function():
    called, value = calls_of("backbone.layer3.0.conv2", "backbone.layer3.1.conv2", "backbone.layer4.0.conv2")
    assert called[0] == called[1] != called[2] and value == 31


def test_functions_are_freed_with_their_graph():
    gc.collect()
    before = len(shared_functions._functions)
    calls_of("backbone.layer3.0.conv2")
    gc.collect()
    assert len(shared_functions._functions) == before
