"""Every head matches values computed by MMSegmentation and SSSegmentation."""

import numpy as np
import pytest
import tensorflow as tf

from kseg.models.layers import resize
from kseg.training import losses
from kseg.weights import loading
from kseg.weights.names import sss_to_mmseg
from tests.helpers.fixture_cases import NAMES, Case
from tests.helpers.shared_files import FIXTURES, needs_fixtures

CASES = [
    "mmseg/apcnet_r18_d16",
    "mmseg/apcnet_r50_d8",
    "mmseg/deeplabv3_r101_d16_mg124_ohem",
    "mmseg/deeplabv3_r50_d8",
    "mmseg/deeplabv3plus_r18_d16",
    "mmseg/deeplabv3plus_r50_d8",
    "mmseg/deeplabv3plus_r50_d8_ac",
    "mmseg/encnet_r18_d16_lateral",
    "mmseg/encnet_r50_d8",
    "mmseg/fcn_r18_d16",
    "mmseg/fcn_r18v1b_d8",
    "mmseg/pspnet_r18_d16",
    "mmseg/pspnet_r50v1d_d8",
    "sss/apcnet_r50_d8",
    "sss/deeplabv3_r50_d8",
    "sss/deeplabv3plus_r18_d16",
    "sss/deeplabv3plus_r50_d8",
    "sss/encnet_r50_d8",
    "sss/fcn_r50_d8",
    "sss/pspnet_r50_d8",
]
SSS_LOSSES = {"loss_cls": "main", "loss_aux": "aux", "loss_se": "se"}
MMSEG_LOSSES = {"decode.loss_ce": "main", "aux.loss_ce": "aux", "decode.loss_se": "se"}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(request.param)


def close(actual, expected, tolerance=1e-4):
    """Return whether all differences are small, relative to the expected values above 1."""
    assert actual.shape == expected.shape
    return np.max(np.abs(actual - expected) / np.maximum(np.abs(expected), 1)) <= tolerance


@needs_fixtures
def test_the_list_of_cases_is_complete():
    assert set(NAMES) == set(CASES)
    assert {str(path.parent.relative_to(FIXTURES)) for path in FIXTURES.glob("*/*/logits.npy")} == set(CASES)


@needs_fixtures
def test_parameter_count(case):
    trained = sum(np.prod(variable.shape) for variable in case.model.trainable_variables)
    assert trained == case.description["params"]


@needs_fixtures
def test_logits(case):
    outputs = case.model(case.array("input"), training=False)
    for name, file in (("main", "logits"), ("aux", "aux_logits"), ("se", "se_logits")):
        assert (name in outputs) == (case.directory / f"{file}.npy").exists()
        if name in outputs:
            assert close(outputs[name].numpy(), case.array(file)), name
    size = case.array("input").shape[1:3]
    full = resize(outputs["main"], size, case.config.align_corners).numpy()
    expected = case.array("logits_full")
    assert close(full[: len(expected)], expected)


@needs_fixtures
def test_stages(case):
    import keras

    last = [
        max(
            (
                layer.name
                for layer in case.model.layers
                if layer.name.startswith(f"backbone.layer{stage}.")
                and layer.name.endswith(".relu")
                and layer.name.count(".") == 3
            ),
            key=lambda name: int(name.split(".")[2]),
        )
        for stage in (1, 2, 3, 4)
    ]
    stages = keras.Model(case.model.input, [case.model.get_layer(name).output for name in last])
    for index, output in enumerate(stages(case.array("input"), training=False)):
        assert close(output.numpy(), case.array(f"backbone_{index}")), last[index]


@needs_fixtures
def test_losses_gradients_and_statistics(case):
    case.load()
    variables = loading.mmseg_names(case.model)
    images, labels = tf.constant(case.array("input")), tf.constant(case.array("label"))
    with tf.GradientTape() as tape:
        terms = losses.loss_terms(case.model(images, training=True), labels, case.loss, case.config.align_corners)
        parts = {name: weight * total / count for name, (weight, total, count) in terms.items()}
        loss = sum(parts.values())
    names = MMSEG_LOSSES if case.system == "mmseg" else SSS_LOSSES
    expected = case.json("losses")
    assert {names[key] for key in expected if key in names} == set(parts)
    for key in names.keys() & expected.keys():
        assert float(parts[names[key]]) == pytest.approx(expected[key], rel=1e-5), key
    assert float(loss) == pytest.approx(expected["total" if case.system == "mmseg" else "loss_total"], rel=1e-5)

    trained = {name: variable for name, variable in variables.items() if variable.trainable}
    gradients = dict(zip(trained, tape.gradient(loss, [variable.value for variable in trained.values()])))
    check_sums(case, "grads", {name: value.numpy() for name, value in gradients.items()})
    running = {name: variable.numpy() for name, variable in variables.items() if not variable.trainable}
    check_sums(case, "bn_after_step", running)
    case.load()


def check_sums(case, file, values):
    """Compare the [norm, sum] of all arrays, by MMSegmentation's names, with the fixture."""
    expected = {
        key: value
        for key, value in case.json(file).items()
        if not key.startswith("_") and not key.endswith("num_batches_tracked")
    }
    if case.system == "sss":
        expected = {sss_to_mmseg(key, case.config.head): value for key, value in expected.items()}
    assert set(expected) == set(values)
    # The relative error of a gradient that is zero up to rounding (a bias before a norm) is meaningless.
    floor = 1e-6 * max(norm for norm, _ in expected.values())
    for name, (norm, total) in expected.items():
        value = values[name].astype(np.float64)
        assert np.linalg.norm(value) == pytest.approx(norm, rel=1e-3, abs=floor), name
        # By the Cauchy-Schwarz inequality, a difference of this norm can change the sum by its norm times sqrt(size).
        assert value.sum() == pytest.approx(total, abs=max(1e-3 * norm, floor) * value.size**0.5), name
