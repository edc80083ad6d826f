"""Batch normalization agrees with NumPy references, in its fast and its portable forms."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.models import norms
from kseg.models.norms import BatchNormalization


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(1, 2, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 1, 1, 4), (1, 4, 3, 4)])
def test_fused_and_portable_training_agree(shape):
    inputs, upstream = tf.constant(random(*shape)), tf.constant(random(*shape, seed=1))
    gamma, beta = tf.constant(random(4, seed=2)), tf.constant(random(4, seed=3))
    results = []
    for train in (norms.fused_training, norms.normalize_training, norms.exact_training):
        with tf.GradientTape() as tape:
            tape.watch((inputs, gamma, beta))
            outputs, mean, variance = train(inputs, gamma, beta, 1e-5)
            loss = tf.reduce_sum(outputs * upstream)
        results.append([outputs, mean, variance, *tape.gradient(loss, (inputs, gamma, beta))])
    for fused, portable, exact in zip(*results):
        np.testing.assert_allclose(fused, portable, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(exact, portable, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("cpu", [True, False])
def test_the_synchronized_gradient_equals_the_local_one_and_names_its_layer(cpu, monkeypatch):
    monkeypatch.setattr(norms, "on_cpu", lambda: cpu)
    inputs, upstream = tf.constant(random(2, 5, 7, 4)), tf.constant(random(2, 5, 7, 4, seed=1))
    gamma, beta = tf.constant(random(4, seed=2)), tf.constant(random(4, seed=3))

    @tf.function
    def gradients(several):
        # Any replica context selects the synchronized form, even that of a single replica.
        context = tf.distribute.get_replica_context() if several else None
        with tf.GradientTape() as tape, tf.name_scope("some.norm"):
            tape.watch((inputs, gamma, beta))
            outputs, *_ = norms.fused_training(inputs, gamma, beta, 1e-5, context)
        return tape.gradient(outputs, (inputs, gamma, beta), upstream)

    for actual, expected in zip(gradients(True), gradients(False)):
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4)
    operations = gradients.get_concrete_function(True).graph.get_operations()
    kernels = [operation.name for operation in operations if operation.type.startswith("FusedBatchNorm")]
    # A GPU's gradient has no kernel of its own but the one that normalizes.
    assert len([name for name in kernels if name.startswith("gradient_tape/some.norm/")]) == 1 + cpu < len(kernels)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_frozen_norm_has_the_same_gradients_on_a_gpu(dtype, tolerance, monkeypatch):
    inputs, upstream = (tf.cast(random(2, 5, 7, 4, seed=seed), dtype) for seed in (0, 1))
    results = []
    for cpu in (True, False):
        monkeypatch.setattr(norms, "on_cpu", lambda cpu=cpu: cpu)
        layer = BatchNormalization(
            name="n", trainable=False, dtype="float32" if dtype == "float32" else f"mixed_{dtype}"
        )
        layer.build(inputs.shape)
        layer.set_weights([random(4, seed=2), random(4, seed=3), random(4, seed=4), np.abs(random(4, seed=5)) + 0.5])
        variables = [layer.gamma.value, layer.beta.value]
        with tf.GradientTape() as tape:
            tape.watch((inputs, *variables))
            outputs = layer(inputs, training=True)
        results.append([outputs, *tape.gradient(outputs, (inputs, *variables), upstream)])
    for on_cpu, on_gpu in zip(*results):
        assert on_cpu.dtype == on_gpu.dtype
        np.testing.assert_allclose(
            *(tf.cast(values, tf.float32) for values in (on_cpu, on_gpu)), rtol=tolerance, atol=tolerance
        )


def test_statistics_of_small_inputs_are_exact():
    inputs = random(2, 32, 32, 8)
    # Float32 sums lose the most digits for values far from zero.
    inputs = (inputs / 10 + 1000).astype(np.float32)
    values = inputs.reshape(-1, 8).astype(np.float64)
    layer = BatchNormalization(momentum=0.0, name="n")
    layer(inputs, training=True)
    np.testing.assert_allclose(layer.moving_variance, values.var(axis=0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, values.mean(axis=0), rtol=1e-7)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_gamma_and_beta_are_not_rounded_to_half_precision(precision):
    layer = BatchNormalization(dtype=precision, name="n")
    layer.build((None, 2, 2, 1))
    # The bfloat16 nearest to 1.003 is 1, so a rounded gamma would give a result near 0.
    layer.gamma.assign([1.003])
    layer.beta.assign([-1.0])
    actual = layer(np.full((1, 2, 2, 1), 1.0, np.float32), training=False)
    assert float(actual[0, 0, 0, 0]) == pytest.approx(1.003 / np.sqrt(1 + 1e-5) - 1, rel=5e-3)


def test_fused_and_portable_inference_agree():
    inputs, mean, gamma, beta = random(3, 5, 7, 4), random(4, seed=1), random(4, seed=2), random(4, seed=3)
    variance = random(4, seed=4) ** 2
    expected = (inputs - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    for infer in (norms.fused_inference, norms.normalize_with):
        actual = infer(tf.constant(inputs), mean, variance, gamma, beta, 1e-5)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 6, 4)])
def test_statistics_match_numpy(shape):
    layer = BatchNormalization(momentum=0.9)
    inputs = random(*shape)
    outputs = layer(inputs, training=True)
    flat = inputs.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(
        outputs.numpy().reshape(-1, 4), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * flat.mean(0), rtol=1e-4, atol=1e-6)
    unbiased = 0.9 + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.moving_variance.numpy(), unbiased, rtol=1e-4)
    # The batch is small enough for the biased variance to fail the check above.
    assert np.abs(unbiased - (0.9 + 0.1 * flat.var(0))).max() > 5e-3
    moving_mean = layer.moving_mean.numpy()
    inference = layer(inputs, training=False).numpy().reshape(-1, 4)
    np.testing.assert_allclose(
        inference, (flat - moving_mean) / np.sqrt(layer.moving_variance.numpy() + 1e-5), rtol=1e-4, atol=1e-4
    )
    assert (layer.moving_mean.numpy() == moving_mean).all()


def test_one_value_per_channel_stays_finite():
    layer = BatchNormalization()
    assert np.isfinite(layer(random(1, 1, 4), training=True)).all()
    assert np.isfinite(layer.moving_variance.numpy()).all()


@pytest.mark.parametrize("training", [False, True])
def test_half_precision_keeps_float32_statistics(training):
    layer = BatchNormalization(dtype="mixed_bfloat16")
    outputs = layer(random(2, 6, 5, 4), training=training)
    assert outputs.dtype == tf.bfloat16
    assert {str(variable.dtype) for variable in layer.variables} == {"float32"}
