"""The optimizers against PyTorch's formulas and results; learning rates and decay by layer; frozen layers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from kseg import models
from kseg.config.sections import Train
from kseg.errors import ConfigError
from kseg.training import optimizers
from kseg.training.optimizers import AdamW, MomentumSGD
from kseg.training.schedule import schedule
from tests.helpers.shared_files import FIXTURES, needs_fixtures
from tests.helpers.small_models import tiny, unchanged, values


def halving(step):
    return 0.1 * 0.5 ** (step / 10)


def test_fifty_steps_of_sgd_against_the_formula():
    generator = np.random.default_rng(0)
    start = [generator.normal(size=(3, 4)), generator.normal(size=5)]
    targets = [generator.normal(size=(3, 4)), generator.normal(size=5)]
    momentum, decay = 0.9, 0.02

    weights = [value.copy() for value in start]
    velocities = [np.zeros_like(value) for value in start]
    for step in range(50):
        for index in (0, 1):
            gradient = np.sin(weights[index] - targets[index]) + decay * weights[index]
            velocities[index] = momentum * velocities[index] + gradient
            weights[index] = weights[index] - halving(step) * velocities[index]

    variables = [keras.Variable(value, dtype="float32") for value in start]
    optimizer = MomentumSGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), momentum, decay)
    optimizer.build(variables)

    @tf.function
    def update():
        optimizer.apply(
            [tf.sin(variable - target.astype(np.float32)) for variable, target in zip(variables, targets)], variables
        )

    for _ in range(50):
        update()
    for index in (0, 1):
        np.testing.assert_allclose(variables[index].numpy(), weights[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(optimizer.velocities[index].numpy(), velocities[index], rtol=1e-4, atol=1e-5)


@needs_fixtures
def test_sgd_follows_the_trajectory_of_pytorch():
    case = json.loads((FIXTURES / "mmseg" / "schedule.json").read_text())["sgd_trajectory"]
    weight, target, factor = (keras.Variable(case[name], dtype="float32") for name in ("w0", "target", "k"))
    steps = len(case["w_after_each_step"])
    optimizer = MomentumSGD(
        schedule(Train(steps=steps, learning_rate=case["lr"])), case["momentum"], case["weight_decay"]
    )
    for expected in case["w_after_each_step"]:
        optimizer.apply([2 * factor * (weight - target)], [weight])
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, expected",
    [
        # The velocities are 1 and 1.9; the second step is 0.1 * 1.9.
        (MomentumSGD, [-1, -1.19]),
        # Keras' velocity contains the learning rate of the first step: 0.9 * 1 + 0.1 * 1.
        (keras.optimizers.SGD, [-1, -2]),
    ],
)
def test_lower_learning_rate_applies_to_old_gradients(make, expected):
    weight = keras.Variable(0.0)
    optimizer = make(keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.1]), momentum=0.9)
    weights = []
    for _ in range(2):
        optimizer.apply([tf.constant(1.0)], [weight])
        weights.append(float(weight.numpy()))
    assert weights == pytest.approx(expected)


def test_weight_decay_is_part_of_the_velocity():
    weight = keras.Variable(2.0)
    optimizer = MomentumSGD(0.5, momentum=0.0, weight_decay=0.1)
    optimizer.apply([tf.constant(0.0)], [weight])
    assert float(weight.numpy()) == pytest.approx(2 - 0.5 * 0.1 * 2)
    assert float(optimizer.velocities[0].numpy()) == pytest.approx(0.2)


def test_state_is_named_after_its_variables_and_iterations_are_counted():
    variables = [keras.Variable(np.zeros(2), name="first"), keras.Variable(np.zeros(3), name="second")]
    optimizer = MomentumSGD(0.1)
    optimizer.build(variables)
    names = [variable.path for variable in optimizer.variables]
    assert len(set(names)) == len(names)
    assert [any(name in path and "velocity" in path for path in names) for name in ("first", "second")] == [True, True]
    assert int(optimizer.iterations.numpy()) == 0
    for _ in range(3):
        optimizer.apply([tf.ones(2), tf.ones(3)], variables)
    assert int(optimizer.iterations.numpy()) == 3


def test_serialization_keeps_the_settings_of_sgd():
    optimizer = MomentumSGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), 0.8, 0.3)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    results = []
    for candidate in (optimizer, copy):
        weight = keras.Variable(1.0)
        for _ in range(3):
            candidate.apply([tf.constant(0.5)], [weight])
        results.append(float(weight.numpy()))
    assert results[0] == results[1] != 1.0


# TRAJECTORY holds the weights after steps 1 and 10, computed by torch 2.13 in float64. Every parameter has its own
# group: lr=0.01 for the backbone and 0.1 for the head, halved after step 5; weight_decay=0 for biases and 0.05 for
# kernels. The optimizers are torch.optim.SGD(momentum=0.9) and torch.optim.AdamW(betas=(0.9, 0.98), eps=1e-3), the loss
# is the sum of sin(w - target)^2, and the targets are -0.3, -0.1, 0.1 ...
START = {
    "backbone.k": [0.5, -1.0, 2.0],
    "backbone.bias": [0.1, -0.2],
    "head.k": [1.5, -0.25, 0.75],
    "head.bias": [0.3, -0.6],
}
TRAJECTORY = {
    "sgd": [
        {
            "backbone.k": [0.489754264, -0.989761524, 2.005118579],
            "backbone.bias": [0.092826439, -0.198013307],
            "head.k": [1.536752044, -0.219197979, 0.649894181],
            "head.bias": [0.206796091, -0.515852902],
        },
        {
            "backbone.k": [0.225267938, -0.718520751, 2.152735096],
            "backbone.bias": [-0.077528479, -0.152256713],
            "head.k": [3.011944012, -0.054594987, -0.135185204],
            "head.bias": [-0.516973219, 0.073159165],
        },
    ],
    "adamw": [
        {
            "backbone.k": [0.489759994, -0.989510258, 2.008983683],
            "backbone.bias": [0.090013921, -0.190050083],
            "head.k": [1.592274531, -0.149087245, 0.646353674],
            "head.bias": [0.200107177, -0.500118698],
        },
        {
            "backbone.k": [0.423335927, -0.921411293, 2.067513238],
            "backbone.bias": [0.025429133, -0.128527453],
            "head.k": [2.182933158, -0.123615151, 0.053433601],
            "head.bias": [-0.367740319, 0.014934236],
        },
    ],
}


# Keras' operations compute the update with skip_nonfinite, TensorFlow's kernels without.
@pytest.mark.parametrize(
    "skip_nonfinite, jit_compile",
    [(True, False), (False, False), (False, True)],
    ids=["operations", "kernels", "kernels by XLA"],
)
@pytest.mark.parametrize("name", TRAJECTORY)
def test_multipliers_and_decay_exemptions_as_in_pytorch(name, skip_nonfinite, jit_compile):
    weights = {key: keras.Variable(value, dtype="float32", name=key) for key, value in START.items()}
    settings = {
        "weight_decay": 0.05,
        "skip_nonfinite": skip_nonfinite,
        "rate_multipliers": {weight.path: 0.1 for key, weight in weights.items() if key.startswith("backbone")},
        "undecayed": [weight.path for key, weight in weights.items() if key.endswith("bias")],
    }
    learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.1, 0.05])
    optimizer = (
        MomentumSGD(learning_rate, 0.9, **settings)
        if name == "sgd"
        else AdamW(learning_rate, (0.9, 0.98), 1e-3, **settings)
    )
    optimizer.build(list(weights.values()))

    @tf.function(jit_compile=jit_compile)
    def update():
        distances = [weight - (0.2 * np.arange(weight.shape[0], dtype=np.float32) - 0.3) for weight in weights.values()]
        optimizer.apply([2 * tf.sin(distance) * tf.cos(distance) for distance in distances], list(weights.values()))

    states = []
    for _ in range(10):
        update()
        states.append({key: weight.numpy() for key, weight in weights.items()})
    for expected, state in zip(TRAJECTORY[name], (states[0], states[9]), strict=True):
        for key, value in expected.items():
            np.testing.assert_allclose(state[key], value, rtol=1e-5, atol=2e-6, err_msg=key)


def test_first_steps_of_adamw_lose_no_digits():
    # 1 - 0.9999^t subtracts nearly equal numbers. The exact step is learning_rate * sign(gradient).
    weight = keras.Variable(0.0)
    optimizer = AdamW(0.5, (0.9, 0.9999), 1e-12)
    for step in range(1, 4):
        optimizer.apply([tf.constant(1e-3)], [weight])
        assert float(weight.numpy()) == pytest.approx(-0.5 * step, rel=1e-6)


@pytest.mark.parametrize("make", [MomentumSGD, AdamW])
@pytest.mark.parametrize("skip_nonfinite", [True, False])
def test_multiplier_of_zero_freezes_weight_and_state(make, skip_nonfinite):
    frozen, trained = keras.Variable([1.0, -2.0], name="frozen"), keras.Variable([1.0, -2.0], name="trained")
    optimizer = make(0.1, weight_decay=0.5, rate_multipliers={frozen.path: 0.0}, skip_nonfinite=skip_nonfinite)
    for _ in range(3):
        optimizer.apply([tf.constant([1.0, float("inf")]), tf.constant([1.0, 1.0])], [frozen, trained])
    assert frozen.numpy().tolist() == [1.0, -2.0] and trained.numpy()[0] < 1
    state = [variable for variable in optimizer.variables if "frozen" in variable.path]
    assert state and not any(variable.numpy().any() for variable in state)


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("make", [MomentumSGD, AdamW])
def test_no_product_of_a_weights_size_is_computed_before_its_gradient(make, skip_nonfinite):
    variable = keras.Variable(np.ones(7), dtype="float32")
    optimizer = make(0.1, weight_decay=0.1, skip_nonfinite=skip_nonfinite)
    optimizer.build([variable])
    update = tf.function(lambda gradient: optimizer.apply([gradient], [variable]), [tf.TensorSpec(7)])
    traced = update.get_concrete_function()
    gradient = traced.inputs[0].op

    def depends_on_gradient(operation):
        predecessors = [tensor.op for tensor in operation.inputs] + operation.control_inputs
        return operation is gradient or any(map(depends_on_gradient, predecessors))

    products = [
        operation
        for operation in traced.graph.get_operations()
        if operation.type == "Mul" and operation.outputs[0].shape == 7
    ]
    assert products and all(map(depends_on_gradient, products))


@pytest.mark.parametrize("make", [MomentumSGD, AdamW])
def test_elements_with_nonfinite_gradients_stay(make):
    weight, other = (keras.Variable([1.0, 2.0, 3.0], name=name) for name in ("weight", "other"))
    optimizer = make(0.1, weight_decay=0.5, skip_nonfinite=True)
    optimizer.apply([tf.constant([1.0, 1.0, 1.0])] * 2, [weight, other])
    before = weight.numpy()
    optimizer.apply([tf.constant([float("nan"), 1.0, float("-inf")]), tf.ones(3)], [weight, other])
    assert (weight.numpy() == before).tolist() == [True, False, True]
    assert weight.numpy()[1] == other.numpy()[1]
    state = {variable.path.rpartition("/")[2]: variable.numpy() for variable in optimizer.variables}
    assert all(np.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_backbone_rate_and_decay_exemptions_of_the_config(optimizer):
    network = models.build(tiny(head="encnet"), 3)
    train = Train(
        optimizer=optimizer,
        decay_all=False,
        backbone_rate=0.25,
        weight_decay=0.5,
        learning_rate=0.125,
        power=0.0,
        steps=2,
    )
    variables = network.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    # With zero gradients only decay remains; the first step of both optimizers multiplies by 1 - rate * decay.
    optimizers.build_optimizer(train, network).apply([tf.zeros(variable.shape) for variable in variables], variables)
    exempt = 0
    for variable in variables:
        layer, name = variable.path.split("/")
        is_exempt = name in ("bias", "gamma", "beta")
        factor = 0.25 if layer.startswith("backbone.") else 1.0
        expected = 1 - 0.125 * 0.5 * factor * (not is_exempt)
        assert (variable.numpy() == expected).all(), variable.path
        exempt += is_exempt
    assert 0 < exempt < len(variables)


def test_all_variables_have_the_same_rate_and_decay_by_default():
    network = models.build(tiny(head="fcn"), 3)
    optimizer = optimizers.build_optimizer(Train(), network)
    assert isinstance(optimizer, MomentumSGD)
    assert set(optimizer.decays) == {5e-4} and set(optimizer.factors) == {1.0}


def test_serialization_keeps_the_settings_of_adamw():
    optimizer = AdamW(0.1, (0.8, 0.9), 0.01, 0.3, {"one": 0.5}, ["two"])
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    results = []
    for candidate in (optimizer, copy):
        weights = [keras.Variable(1.0, name=name) for name in ("one", "two")]
        for _ in range(3):
            candidate.apply([tf.constant(0.5)] * 2, weights)
        results.append([float(weight.numpy()) for weight in weights])
    assert results[0] == results[1] and results[0][0] != results[0][1]


def test_frozen_layers_keep_weights_and_statistics():
    # A gamma of 0 would leave the layers before it without a gradient.
    network = models.build(tiny(head="fcn", initial_weights="uniform"), 3, precision="mixed_bfloat16")
    optimizers.freeze_layers(network, ("backbone.stem.*", "backbone.layer1.0.bn1"))
    optimizer = optimizers.build_optimizer(Train(weight_decay=0.1), network)
    frozen = [
        layer
        for layer in network.layers
        if layer.weights and (layer.name.startswith("backbone.stem.") or layer.name == "backbone.layer1.0.bn1")
    ]
    assert len(frozen) == 7
    before, images = values(network), np.random.default_rng(0).normal(3, 2, (2, 32, 32, 3)).astype(np.float32)
    kept = {variable.path for layer in frozen for variable in layer.weights}

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_sum(value**2) for value in network(images, training=True).values()])
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)

    step()
    for variable, old in zip(network.weights, before, strict=True):
        assert np.array_equal(variable.numpy(), old) == (variable.path in kept), variable.path
    # The stem is completely frozen, so its outputs in training and in inference are equal.
    stem = keras.Model(network.input, network.get_layer("backbone.maxpool").output)
    assert np.array_equal(stem(images, training=True), stem(images))


def test_freezing_unknown_or_all_layers_is_an_error():
    network = models.build(tiny(head="fcn"), 3)
    before = values(network)
    with pytest.raises(ConfigError, match=r"train.freeze lists 'backbone.layer1.0.cov1'.*backbone.layer1.0.conv1"):
        optimizers.freeze_layers(network, ("backbone.stem.0", "backbone.layer1.0.cov1"))
    with pytest.raises(ConfigError, match=r"train.freeze lists 'neck.\*'"):
        optimizers.freeze_layers(network, ("neck.*",))
    # A pooling layer has no weights.
    with pytest.raises(ConfigError, match="backbone.maxpool"):
        optimizers.freeze_layers(network, ("backbone.maxpool",))
    assert unchanged(network, before)
    with pytest.raises(ConfigError, match=r"train.freeze=\*"):
        optimizers.freeze_layers(network, ("*",))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_final_rate_of_the_backbone_is_that_of_all_layers(optimizer):
    network = models.build(tiny(head="fcn"), 3)
    train = Train(
        optimizer=optimizer, backbone_rate=0.1, weight_decay=0.5, learning_rate=0.1, end_learning_rate=0.025, steps=3
    )
    variables = network.trainable_variables
    for step, backbone, other in ((0, 0.01, 0.1), (2, 0.025, 0.025)):
        built = optimizers.build_optimizer(train, network)
        built.iterations.assign(step)
        for variable in variables:
            variable.assign(np.ones(variable.shape))
        # With zero gradients only decay remains.
        built.apply([tf.zeros(variable.shape) for variable in variables], variables)
        for variable in variables:
            rate = backbone if variable.path.startswith("backbone.") else other
            np.testing.assert_allclose(variable.numpy(), 1 - rate * 0.5, rtol=1e-6, err_msg=variable.path)
