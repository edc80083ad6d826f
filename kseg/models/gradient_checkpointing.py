"""Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174): recompute activations instead of storing them."""

from collections.abc import Callable

import keras
from keras import ops


class Recomputing(keras.Model):
    """A functional model whose training recomputes the activations inside its blocks for the gradient.

    Layers, their order and their weights equal those of the functional model. Moving statistics are updated once per
    step, and both computations draw the same random numbers.

    Args:
        inputs: The model's input tensor.
        outputs: The model's output tensors.
        blocks: (input, output) tensors of consecutive blocks, where each block starts at the output of the previous
            one. Later layers may use only a block's output.
        name: The model's name.
    """

    def __init__(
        self,
        inputs: keras.KerasTensor,
        outputs: dict[str, keras.KerasTensor],
        blocks: list[tuple[keras.KerasTensor, keras.KerasTensor]],
        name: str,
    ):
        super().__init__(inputs, outputs, name=name)
        # A closure hides the pieces: Keras would list layers in a model's attributes a second time.
        self.run_in_pieces = _piecewise(inputs, outputs, blocks)

    def call(self, inputs, training=None, mask=None):
        return self.run_in_pieces(inputs) if training else super().call(inputs, training=training, mask=mask)


def _piecewise(inputs, outputs, blocks: list[tuple]) -> Callable:
    """Return the function of images that runs the model in training mode, block by block."""
    before_blocks = keras.Model(inputs, blocks[0][0])
    recomputed_blocks = [_recomputed(keras.Model(first, last)) for first, last in blocks]
    after_blocks = keras.Model([last for _, last in blocks], outputs)

    def run(images):
        values, block_outputs = before_blocks(images, training=True), []
        for block in recomputed_blocks:
            values = block(values)
            block_outputs.append(values)
        return after_blocks(block_outputs, training=True)

    return run


def _recomputed(block: keras.Model) -> Callable:
    """Return the function that runs a block in training mode and updates its moving statistics."""

    @keras.remat
    def run(inputs, *values):
        count = len(block.trainable_variables)
        outputs, updated = block.stateless_call(values[:count], values[count:], inputs, training=True)
        return outputs, *map(ops.stop_gradient, updated)

    def call(inputs):
        # The variables are listed in every call because layers may have been frozen in the meantime.
        trainable, fixed = block.trainable_variables, block.non_trainable_variables
        outputs, *updated = run(inputs, *(ops.convert_to_tensor(variable) for variable in trainable + fixed))
        for variable, value in zip(fixed, updated):
            variable.assign(value)
        return outputs

    return call
