"""Stochastic gradient descent as PyTorch defines it."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("kseg")
class MomentumSGD(keras.optimizers.Optimizer):
    """Momentum SGD in which weight decay is an L2 term and the learning rate stays outside the velocity.

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - rate * v.  Keras' own SGD folds the rate into v
    and decouples the decay, which is another method as soon as the rate changes. All variables decay alike.

    With `skip_nonfinite`, weights whose gradient is nan or infinite stay as they are, and so does their velocity.
    """

    def __init__(self, learning_rate, momentum=0.9, weight_decay=0.0, skip_nonfinite=False, name="momentum_sgd"):
        # Not handed to the parent, whose weight_decay is the decoupled one.
        super().__init__(learning_rate=learning_rate, name=name)
        self.momentum = momentum
        self.l2 = weight_decay
        self.skip_nonfinite = skip_nonfinite

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.velocities[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, variable.dtype) + self.l2 * variable
        updated = self.momentum * velocity + gradient
        moved = ops.cast(learning_rate, variable.dtype) * updated
        if self.skip_nonfinite:
            finite = ops.isfinite(gradient)
            updated, moved = ops.where(finite, updated, velocity), ops.where(finite, moved, 0.0)
        self.assign(velocity, updated)
        self.assign_sub(variable, moved)

    def get_config(self):
        # The parent's other settings (clipping, averaging) are none of ours.
        settings = super().get_config()
        return {"learning_rate": settings["learning_rate"], "name": settings["name"],
                "momentum": self.momentum, "weight_decay": self.l2, "skip_nonfinite": self.skip_nonfinite}
