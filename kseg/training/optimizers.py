"""Optimizers with PyTorch's definitions, a learning rate multiplier and a weight decay for each variable."""

import contextlib
import difflib
import math
from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np
from keras import KerasTensor, ops
from keras.optimizers.schedules import LearningRateSchedule

from kseg.config.sections import Train
from kseg.errors import ConfigError
from kseg.models.layers import on_tensorflow
from kseg.training.schedule import PolynomialWithWarmup, schedule

# Bytes of gradients that replicas exchange at once. The gradients of the last layers are exchanged while those of the
# first ones are computed; smaller packs would cost more messages than they overlap.
GRADIENT_PACK = 32 * 2**20

# Names of the variables, in any layer, that are exempt from decay with train.decay_all=false.
BIASES_AND_NORMS = ("bias", "gamma", "beta")


class Optimizer(keras.optimizers.Optimizer):
    """Share the settings of both optimizers: multipliers, decay exemptions and skipped updates.

    Args:
        learning_rate: a number, or a schedule that is called with the step, counted from 0. The rates of a
            PolynomialWithWarmup with a multiplier end at the same floor as those without one.
        weight_decay: the decay of all variables whose path is not in `undecayed`.
        rate_multipliers: multipliers of the learning rate by variable path; 1 for other variables. A multiplier of 0
            freezes a variable and its optimizer state.
        undecayed: paths of variables that do not decay.
        skip_nonfinite: whether elements with a non-finite gradient, and their optimizer state, stay as they are.
        name: the name of the optimizer.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule,
        weight_decay: float,
        rate_multipliers: Mapping[str, float] | None,
        undecayed: Collection[str],
        skip_nonfinite: bool,
        name: str,
    ):
        # The parent gets no decay, since it decays all variables alike.
        super().__init__(learning_rate=learning_rate, name=name)
        self.decay = weight_decay
        self.rate_multipliers, self.undecayed = dict(rate_multipliers or {}), frozenset(undecayed)
        self.skip_nonfinite = skip_nonfinite
        # TensorFlow's kernels need one pass over memory instead of five, but cannot skip single elements.
        self.fused = on_tensorflow() and not skip_nonfinite
        self.step_values = {}

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.factors = [self.rate_multipliers.get(variable.path, 1.0) for variable in variables]
        self.decays = [0.0 if variable.path in self.undecayed else self.decay for variable in variables]

    def apply(self, grads, trainable_variables=None):
        # Variables with the same multiplier share what is computed from the step alone. Computed for each of them, it
        # would be half of the optimizer's part of the graph.
        self.step_values = {}
        return super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        factor = self.factors[index]
        if factor:
            if factor not in self.step_values:
                scaled = learning_rate if factor == 1 else self.scaled_rate(learning_rate, factor)
                self.step_values[factor] = self.values_of_step(ops.cast(scaled, variable.dtype))
            with after_gradient(gradient):
                self.update_variable(index, ops.cast(gradient, variable.dtype), variable, self.step_values[factor])

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # Keras exchanges all gradients in one pack, which waits for the whole backward pass.
        gradients, variables = zip(*grads_and_vars, strict=True)
        return list(zip(sum_in_packs(gradients, GRADIENT_PACK), variables, strict=True))

    def scaled_rate(self, learning_rate: KerasTensor, factor: float) -> KerasTensor:
        """Return the learning rate of this step under a multiplier."""
        if isinstance(self._learning_rate, PolynomialWithWarmup):
            return self._learning_rate.scaled(self.iterations, factor)
        return learning_rate * factor

    def get_config(self):
        # The parent's other settings, such as clipping, are not supported.
        settings = super().get_config()
        return {
            "learning_rate": settings["learning_rate"],
            "name": settings["name"],
            "weight_decay": self.decay,
            "rate_multipliers": self.rate_multipliers,
            "undecayed": sorted(self.undecayed),
            "skip_nonfinite": self.skip_nonfinite,
        }


@keras.saving.register_keras_serializable("kseg")
class MomentumSGD(Optimizer):
    """Apply momentum SGD with L2 weight decay and the learning rate outside of the velocity.

        g = gradient + weight_decay * w
        v = momentum * v + g
        w = w - learning_rate * v

    Keras' own SGD folds the learning rate into v and decouples the decay, which is a different method once the learning
    rate changes. The other arguments are those of `Optimizer`.

    Source: torch.optim.SGD with dampening 0.
    """

    def __init__(
        self,
        learning_rate,
        momentum=0.9,
        weight_decay=0.0,
        rate_multipliers=None,
        undecayed=(),
        skip_nonfinite=False,
        name="momentum_sgd",
    ):
        super().__init__(learning_rate, weight_decay, rate_multipliers, undecayed, skip_nonfinite, name)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def values_of_step(self, learning_rate):
        return learning_rate, ops.convert_to_tensor(self.momentum, learning_rate.dtype)

    def update_variable(self, index, gradient, variable, step_values):
        velocity, (learning_rate, momentum) = self.velocities[index], step_values
        if self.decays[index]:
            gradient = gradient + self.decays[index] * variable
        if self.fused:
            fused_momentum(variable, velocity.value, gradient, learning_rate, momentum)
            return
        new_velocity = momentum * velocity + gradient
        change = learning_rate * new_velocity
        if self.skip_nonfinite:
            finite = ops.isfinite(gradient)
            new_velocity, change = ops.where(finite, new_velocity, velocity), ops.where(finite, change, 0.0)
        self.assign(velocity, new_velocity)
        self.assign_sub(variable, change)

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}


@keras.saving.register_keras_serializable("kseg")
class AdamW(Optimizer):
    """Apply Adam with decoupled weight decay.

        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g^2
        w = w - learning_rate * (weight_decay * w + M / (sqrt(V) + epsilon))

    with (b1, b2) = betas, M = m / (1 - b1^t) and V = v / (1 - b2^t) at the step t, counted from 1. Skipped steps count
    as well. The other arguments are those of `Optimizer`.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, with the learning rate on the decay as in
    torch.optim.AdamW.
    """

    def __init__(
        self,
        learning_rate,
        betas=(0.9, 0.999),
        epsilon=1e-8,
        weight_decay=0.0,
        rate_multipliers=None,
        undecayed=(),
        skip_nonfinite=False,
        name="adamw",
    ):
        super().__init__(learning_rate, weight_decay, rate_multipliers, undecayed, skip_nonfinite, name)
        self.betas, self.epsilon = tuple(betas), epsilon
        # The moments are float32, and a correction from unrounded betas would be off by 1e-8 / (1 - beta).
        self.rounded = tuple(float(np.float32(beta)) for beta in betas)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.means, self.squares = self.add_optimizer_variables(variables, ["mean", "square"])

    def values_of_step(self, learning_rate):
        (beta1, beta2), step = self.rounded, ops.cast(self.iterations + 1, learning_rate.dtype)
        correction, scale = bias_correction(beta1, step), ops.sqrt(bias_correction(beta2, step))
        # The kernel gets the corrections in its learning rate and epsilon, and powers of 0 instead of its own.
        kernel = (
            (
                learning_rate * scale / correction,
                *map(ops.convert_to_tensor, (*self.rounded, 0.0)),
                self.epsilon * scale,
            )
            if self.fused
            else ()
        )
        return learning_rate / correction, learning_rate * self.decay, scale, kernel

    def update_variable(self, index, gradient, variable, step_values):
        mean, square, (beta1, beta2) = self.means[index], self.squares[index], self.rounded
        rate, decay, scale, kernel = step_values
        if self.fused:
            if self.decays[index]:
                self.assign_sub(variable, decay * variable)
            fused_adam(variable, mean.value, square.value, gradient, *kernel)
            return
        new_mean = beta1 * mean + (1 - beta1) * gradient
        new_square = beta2 * square + (1 - beta2) * ops.square(gradient)
        change = rate * new_mean / (ops.sqrt(new_square) / scale + self.epsilon)
        if self.decays[index]:
            change = change + decay * variable
        if self.skip_nonfinite:
            finite = ops.isfinite(gradient)
            new_mean, new_square = ops.where(finite, new_mean, mean), ops.where(finite, new_square, square)
            change = ops.where(finite, change, 0.0)
        self.assign(mean, new_mean)
        self.assign(square, new_square)
        self.assign_sub(variable, change)

    def get_config(self):
        return super().get_config() | {"betas": list(self.betas), "epsilon": self.epsilon}


def sum_in_packs(gradients: Sequence[KerasTensor], size: int) -> Sequence[KerasTensor]:
    """Return the sums of gradients over all replicas, exchanged in packs.

    Args:
        gradients: The gradients of a replica, in the order of the layers; TensorFlow packs the last ones first.
        size: Size of a pack in bytes.
    """
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return gradients
    options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=size)
    return context.all_reduce("sum", list(gradients), options)


def after_gradient(gradient: KerasTensor) -> contextlib.AbstractContextManager:
    """Return a context in which TensorFlow computes nothing before the gradient exists.

    Operations that need only the weights, such as their decay, would otherwise run for all variables when a step begins
    and occupy memory until the gradients arrive.
    """
    if not on_tensorflow():
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies([gradient])


def fused_momentum(variable, velocity, gradient, learning_rate, momentum):
    """Apply the update of MomentumSGD with TensorFlow's kernel."""
    import tensorflow as tf

    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle, accum=velocity.handle, lr=learning_rate, grad=gradient, momentum=momentum
    )


def fused_adam(variable, mean, square, gradient, learning_rate, beta1, beta2, power, epsilon):
    """Apply the update of AdamW without its decay with TensorFlow's kernel.

    `learning_rate` and `epsilon` must include the bias corrections, and `power` must be 0.
    """
    import tensorflow as tf

    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=mean.handle,
        v=square.handle,
        beta1_power=power,
        beta2_power=power,
        lr=learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        grad=gradient,
    )


def bias_correction(beta: float, step: KerasTensor) -> KerasTensor:
    """Return 1 - beta^step without losing digits where beta^step is near 1."""
    return -ops.expm1(step * math.log(beta)) if beta else ops.ones_like(step)


def build_optimizer(train: Train, model: keras.Model) -> keras.optimizers.Optimizer:
    """Build the optimizer of a training config and its state.

    Call it under the scope of the strategy and after `freeze_layers`.

    Args:
        train: the section `train` of a config. `backbone_rate` multiplies the learning rate of layers named
            "backbone.*", but not its floor `end_learning_rate`; with `decay_all` off, biases and the gammas and betas
            of norms do not decay.
        model: the model; the optimizer gets state for its trainable variables.

    Returns:
        The optimizer. Its learning rate is `schedule(train)`.

    Example:
        >>> from kseg import models
        >>> from kseg.config.sections import Model, Train
        >>> tiny = Model(backbone="resnet18", width=4, head="fcn", channels=8, auxiliary_channels=0)
        >>> optimizer = build_optimizer(Train(steps=10, learning_rate=0.01), models.build(tiny, classes=2))
        >>> f"{float(optimizer.learning_rate):.3f}"
        '0.010'
    """
    multipliers, undecayed = {}, []
    for layer in model.layers:
        for variable in layer.trainable_variables:
            if layer.name.startswith("backbone.") and train.backbone_rate != 1:
                multipliers[variable.path] = train.backbone_rate
            if not train.decay_all and variable.name in BIASES_AND_NORMS:
                undecayed.append(variable.path)
    skip_nonfinite = train.precision == "mixed_float16"
    if train.optimizer == "adamw":
        optimizer = AdamW(
            schedule(train), train.betas, train.epsilon, train.weight_decay, multipliers, undecayed, skip_nonfinite
        )
    else:
        optimizer = MomentumSGD(
            schedule(train), train.momentum, train.weight_decay, multipliers, undecayed, skip_nonfinite
        )
    optimizer.build(model.trainable_variables)
    return optimizer


def freeze_layers(model: keras.Model, names: Sequence[str]) -> None:
    """Make the weights of layers untrainable.

    A frozen norm normalizes with its moving statistics and does not update them.

    Args:
        model: the model to change.
        names: names of layers that have weights, or prefixes of such names that end in "*".

    Raises:
        ConfigError: A name matches no layer with weights, or no trainable weight remains.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    for name in names:
        matches = [
            layer
            for layer_name, layer in layers.items()
            if layer_name == name or name.endswith("*") and layer_name.startswith(name[:-1])
        ]
        if not matches:
            similar = difflib.get_close_matches(name.rstrip("*"), layers, n=3, cutoff=0.5)
            raise ConfigError(
                f"train.freeze lists {name!r}, but no layer with weights has that name."
                + (f" Did you mean {' or '.join(similar)}?" if similar else "")
                + ' A prefix must end in "*", such as "backbone.stem.*".'
            )
        for layer in matches:
            layer.trainable = False
    if not model.trainable_variables:
        raise ConfigError(f"train.freeze={','.join(names)} leaves no weight to train")
