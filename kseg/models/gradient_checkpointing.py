"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): what a block computes inside is not kept for its
gradient but computed again."""

from collections.abc import Callable

import keras
from keras import ops


class Recomputing(keras.Model):
    """A functional model that in training runs in pieces, of which `blocks` compute their insides twice.

    `blocks` are pairs of an input and an output tensor, one behind the other. All that a block gives to later layers is
    its output. The layers, their order and their weights are those of the functional model. Moving statistics move
    once, and random numbers are the same both times.
    """

    def __init__(self, inputs, outputs, blocks, name):
        super().__init__(inputs, outputs, name=name)
        # A closure, since layers of a model's attributes would be listed as its own.
        self.run_in_pieces = _in_pieces(inputs, outputs, blocks)

    def call(self, inputs, training=None, mask=None):
        return self.run_in_pieces(inputs) if training else super().call(inputs, training=training, mask=mask)


def _in_pieces(inputs, outputs, blocks: list[tuple]) -> Callable:
    before = keras.Model(inputs, blocks[0][0])
    pieces = [_recomputed(keras.Model(first, last)) for first, last in blocks]
    edges = [last for _, last in blocks]
    after = keras.Model(edges, outputs)

    def run(images):
        values, kept = before(images, training=True), []
        for piece in pieces:
            values = piece(values)
            kept.append(values)
        return after(kept, training=True)

    return run


def _recomputed(block: keras.Model) -> Callable:
    """Return the block in training as a function of its input; it moves the block's statistics."""
    @keras.remat
    def run(inputs, *values):
        trained = len(block.trainable_variables)
        outputs, updated = block.stateless_call(values[:trained], values[trained:], inputs, training=True)
        return outputs, *map(ops.stop_gradient, updated)

    def call(inputs):
        # Asked each time: layers may have been frozen since.
        trained, fixed = block.trainable_variables, block.non_trainable_variables
        outputs, *updated = run(inputs, *(ops.convert_to_tensor(variable) for variable in trained + fixed))
        for variable, value in zip(fixed, updated):
            variable.assign(value)
        return outputs

    return call
