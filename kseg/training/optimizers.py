"""Optimizers as PyTorch defines them, with a learning rate and a decay for each weight."""

import contextlib
import difflib
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kseg.config import Train
from kseg.errors import ConfigError
from kseg.models.layers import on_tensorflow
from kseg.training.schedule import schedule

# Names of the variables, in any layer, that train.decay_all spares.
BIASES_AND_NORMS = ("bias", "gamma", "beta")


class Optimizer(keras.optimizers.Optimizer):
    """What both optimizers share: factors of the learning rate, weights without decay, updates that are left out.

    `rates` gives what the learning rate is multiplied by for variables of those paths, 1 for others; with 0 a variable
    and its state stay as they are. Variables whose paths `undecayed` holds do not decay. With `skip_nonfinite`, numbers
    whose gradient is nan or infinite stay as they are, and so does their state.
    """

    def __init__(self, learning_rate, weight_decay, rates, undecayed, skip_nonfinite, name):
        # Decay is not handed to the parent, which knows one way of it for all variables.
        super().__init__(learning_rate=learning_rate, name=name)
        self.decay = weight_decay
        self.rates, self.undecayed = dict(rates or {}), frozenset(undecayed)
        self.skip_nonfinite = skip_nonfinite
        # TensorFlow's kernels do the same in one pass over memory instead of five, but leave no number out.
        self.fused = on_tensorflow() and not skip_nonfinite

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.factors = [self.rates.get(variable.path, 1.0) for variable in variables]
        self.decays = [0.0 if variable.path in self.undecayed else self.decay for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        factor = self.factors[index]
        if factor:
            rate = learning_rate if factor == 1 else learning_rate * factor
            with after(gradient):
                self.move(index, ops.cast(gradient, variable.dtype), variable, ops.cast(rate, variable.dtype))

    def get_config(self):
        # The parent's other settings (clipping, averaging) are none of ours.
        settings = super().get_config()
        return {"learning_rate": settings["learning_rate"], "name": settings["name"], "weight_decay": self.decay,
                "rates": self.rates, "undecayed": sorted(self.undecayed), "skip_nonfinite": self.skip_nonfinite}


@keras.saving.register_keras_serializable("kseg")
class MomentumSGD(Optimizer):
    """Momentum SGD in which weight decay is an L2 term and the learning rate stays outside the velocity.

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - rate * v.  Keras' own SGD folds the rate into v
    and decouples the decay, which is another method as soon as the rate changes. `rates`, `undecayed` and
    `skip_nonfinite` are those of `Optimizer`.
    """

    def __init__(self, learning_rate, momentum=0.9, weight_decay=0.0, rates=None, undecayed=(), skip_nonfinite=False,
                 name="momentum_sgd"):
        super().__init__(learning_rate, weight_decay, rates, undecayed, skip_nonfinite, name)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def move(self, index, gradient, variable, rate):
        velocity = self.velocities[index]
        if self.decays[index]:
            gradient = gradient + self.decays[index] * variable
        if self.fused:
            fused_momentum(variable, velocity.value, gradient, rate, self.momentum)
            return
        updated = self.momentum * velocity + gradient
        moved = rate * updated
        if self.skip_nonfinite:
            finite = ops.isfinite(gradient)
            updated, moved = ops.where(finite, updated, velocity), ops.where(finite, moved, 0.0)
        self.assign(velocity, updated)
        self.assign_sub(variable, moved)

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}


@keras.saving.register_keras_serializable("kseg")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), as PyTorch has it.

    m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g^2;  w = w - rate * weight_decay * w - rate * M / (sqrt(V) +
    epsilon), where M = m / (1 - b1^t) and V = v / (1 - b2^t) at the step t, counted from 1. Steps that are left out
    count. `rates`, `undecayed` and `skip_nonfinite` are those of `Optimizer`.
    """

    def __init__(self, learning_rate, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0, rates=None, undecayed=(),
                 skip_nonfinite=False, name="adamw"):
        super().__init__(learning_rate, weight_decay, rates, undecayed, skip_nonfinite, name)
        self.betas, self.epsilon = tuple(betas), epsilon
        # As moments are multiplied by them: a correction by any other digits would be off by 1e-8 / (1 - beta).
        self.rounded = tuple(float(np.float32(beta)) for beta in betas)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.means, self.squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def move(self, index, gradient, variable, rate):
        mean, square = self.means[index], self.squares[index]
        (first, second), step = self.rounded, ops.cast(self.iterations + 1, variable.dtype)
        scale = ops.sqrt(remainder(second, step))
        if self.fused:
            if self.decays[index]:
                self.assign_sub(variable, (rate * self.decays[index]) * variable)
            fused_adam(variable, mean.value, square.value, gradient, rate * scale / remainder(first, step),
                       self.rounded, self.epsilon * scale)
            return
        new_mean = first * mean + (1 - first) * gradient
        new_square = second * square + (1 - second) * ops.square(gradient)
        moved = (rate / remainder(first, step)) * new_mean / (ops.sqrt(new_square) / scale + self.epsilon)
        if self.decays[index]:
            moved = moved + (rate * self.decays[index]) * variable
        if self.skip_nonfinite:
            finite = ops.isfinite(gradient)
            new_mean, new_square = ops.where(finite, new_mean, mean), ops.where(finite, new_square, square)
            moved = ops.where(finite, moved, 0.0)
        self.assign(mean, new_mean)
        self.assign(square, new_square)
        self.assign_sub(variable, moved)

    def get_config(self):
        return super().get_config() | {"betas": list(self.betas), "epsilon": self.epsilon}


def after(gradient) -> contextlib.AbstractContextManager:
    """Return a context in which TensorFlow computes nothing before there is a gradient.

    What needs the weights alone, such as their decay, would be computed for all of them as a step begins, and be in
    memory until the gradients come.
    """
    if not on_tensorflow():
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([gradient])


def fused_momentum(variable, velocity, gradient, rate, momentum):
    """Do MomentumSGD's update by TensorFlow's kernel."""
    import tensorflow as tf

    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=velocity.handle, lr=rate, grad=gradient, momentum=momentum)


def fused_adam(variable, mean, square, gradient, rate, betas, epsilon):
    """Do AdamW's update but for its decay by TensorFlow's kernel; `rate` and `epsilon` hold the corrections."""
    import tensorflow as tf

    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle, m=mean.handle, v=square.handle, beta1_power=0.0, beta2_power=0.0, lr=rate, beta1=betas[0],
        beta2=betas[1], epsilon=epsilon, grad=gradient)


def remainder(beta, step):
    """Return 1 - beta^step; written so that no digits are lost where beta^step is near 1."""
    return -ops.expm1(step * math.log(beta)) if beta else ops.ones_like(step)


def build(train: Train, model: keras.Model) -> keras.optimizers.Optimizer:
    """Return the optimizer of a training config, with its variables, for the trainable ones of a model.

    Call it under the strategy's scope, after `freeze`. train.backbone_rate multiplies the learning rate of layers named
    "backbone.*"; with train.decay_all off, biases and the gammas and betas of norms do not decay.
    """
    rates, undecayed = {}, []
    for layer in model.layers:
        for variable in layer.trainable_variables:
            if layer.name.startswith("backbone.") and train.backbone_rate != 1:
                rates[variable.path] = train.backbone_rate
            if not train.decay_all and variable.name in BIASES_AND_NORMS:
                undecayed.append(variable.path)
    skip_nonfinite = train.precision == "mixed_float16"
    if train.optimizer == "adamw":
        optimizer = AdamW(schedule(train), train.betas, train.epsilon, train.weight_decay, rates, undecayed,
                          skip_nonfinite)
    else:
        optimizer = MomentumSGD(schedule(train), train.momentum, train.weight_decay, rates, undecayed, skip_nonfinite)
    optimizer.build(model.trainable_variables)
    return optimizer


def freeze(model: keras.Model, names: Sequence[str]) -> None:
    """Make the weights of layers untrainable; a norm among them normalises with its moving statistics and keeps them.

    `names` are those of layers that have weights, or beginnings that end in "*". Raises ConfigError for one that fits
    no such layer, and where nothing is left to train.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    for name in names:
        found = [layer for own, layer in layers.items()
                 if own == name or name.endswith("*") and own.startswith(name[:-1])]
        if not found:
            near = difflib.get_close_matches(name.rstrip("*"), layers, n=3, cutoff=0.5)
            raise ConfigError(f"train.freeze lists {name!r}, but no layer with weights has that name."
                              + (f" Did you mean {' or '.join(near)}?" if near else "")
                              + ' A beginning of names ends in "*", such as "backbone.stem.*".')
        for layer in found:
            layer.trainable = False
    if not model.trainable_variables:
        raise ConfigError(f"train.freeze={','.join(names)} leaves no weight to train")
