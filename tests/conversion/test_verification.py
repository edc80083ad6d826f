"""Verification compares all results of an original system, reports differences and refuses damaged files."""

import json

import keras
import numpy as np
import pytest

from kseg import convert, models
from kseg.config.sections import Loss
from kseg.conversion import gradients, original_configs, verification
from kseg.errors import ConfigError, DataError, WeightsError
from kseg.training import losses
from kseg.weights import loading
from tests.helpers.original_files import mmseg_encnet, randomize, state_of, write_checkpoint
from tests.helpers.running import run_here
from tests.helpers.shared_files import FIXTURES, assert_agreement, needs_fixtures

FIRST = "backbone.layer1.1.relu"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return a directory with the files that an original system writes."""
    directory = tmp_path_factory.mktemp("original")
    cfg = mmseg_encnet()
    for head in ("decode_head", "auxiliary_head"):
        cfg[head]["dropout_ratio"] = 0.0
    values = original_configs.translate(cfg)
    model = models.build(values.model, values.classes)
    randomize(model)
    generator = np.random.default_rng(1)
    images = generator.standard_normal((2, 33, 47, 3)).astype(np.float32)
    labels = generator.integers(0, 3, (2, 33, 47))
    labels[:, :5] = 255
    write_checkpoint(directory / "model.pth", state_of(model))
    outputs = model(images)
    stage = keras.Model(model.input, model.get_layer(FIRST).output)(images)
    full = models.layers.resize(outputs["main"], (33, 47))
    for name, array in {
        "input": images,
        "label": labels,
        "logits": outputs["main"],
        "aux_logits": outputs["aux"],
        "se_logits": outputs["se"],
        "backbone_0": stage,
        "logits_full": full[:1],
    }.items():
        np.save(directory / f"{name}.npy", np.asarray(array))
    # This training step uses none of the code under test.
    trained = model(images, training=True)
    terms = losses.loss_terms(trained, labels, values.loss)
    parts = {name: float(weight * total / count) for name, (weight, total, count) in terms.items()}
    (directory / "losses.json").write_text(
        json.dumps(
            {
                "decode.loss_ce": parts["main"],
                "aux.loss_ce": parts["aux"],
                "decode.loss_se": parts["se"],
                "decode.acc_seg": 12.3,
                "total": sum(parts.values()),
                "_note": "none",
            }
        )
    )
    running = {
        name: variable.numpy() for name, variable in loading.mmseg_names(model).items() if not variable.trainable
    }
    (directory / "bn_after_step.json").write_text(
        json.dumps({name: [float(np.linalg.norm(array)), float(array.sum())] for name, array in running.items()})
    )
    (directory / "config.json").write_text(json.dumps({"cfg": cfg}))
    return directory


@pytest.fixture
def copy(original, tmp_path):
    for path in original.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change(path, amount, position=0):
    array = np.load(path)
    array.ravel()[position] += amount
    np.save(path, array)


def names_of(report):
    return [row.name for row in report.rows]


def test_equal_results(original):
    report = verification.verify(original)
    assert report.ok
    assert names_of(report) == [
        "backbone_0",
        "aux_logits",
        "se_logits",
        "logits",
        "logits_full",
        "decode.loss_ce",
        "aux.loss_ce",
        "decode.loss_se",
        "total",
        "bn_after_step",
    ]
    assert max(row.relative for row in report.rows) < 1e-5
    assert [note for note in report.notes if note.startswith("backbone_")] == [
        f"backbone_{stage}: not compared, backbone_{stage}.npy is missing" for stage in (1, 2, 3)
    ]
    assert report.table().endswith(f"{original}: 10 of 10 comparisons within their limits")


@pytest.mark.parametrize(
    "actual, expected, ok",
    [
        (1.5e-4, 0.0, False),
        (5e-5, 0.0, True),
        (-1.5e-4, 0.0, False),
        (0.5, np.nan, False),
        (np.nan, 0.5, False),
        # Above 1 the difference is relative.
        (200.015, 200.0, True),
        (200.03, 200.0, False),
    ],
)
def test_the_limit_of_an_array(actual, expected, ok):
    row = verification.compare_arrays(
        "logits", np.array([[0.0, actual]], np.float32), np.array([[0.0, expected]], np.float32)
    )
    assert row.ok == ok and row.shape == (1, 2)


def test_half_precision_references_are_compared_within_their_rounding():
    actual = np.random.default_rng(0).uniform(-50, 50, (4, 100)).astype(np.float32)
    assert verification.compare_arrays("backbone_0", actual, actual.astype(np.float16)).ok
    assert not verification.compare_arrays("backbone_0", actual * 1.002, actual.astype(np.float16)).ok


def test_all_differences_are_found_and_the_first_is_marked(copy, capsys):
    change(copy / "se_logits.npy", 1.0)
    change(copy / "logits.npy", np.nan)
    loss_terms = json.loads((copy / "losses.json").read_text())
    loss_terms["aux.loss_ce"] *= 1 + 3e-5
    loss_terms["decode.loss_ce"] *= 1 + 3e-6
    (copy / "losses.json").write_text(json.dumps(loss_terms))
    sums = json.loads((copy / "bn_after_step.json").read_text())
    worst = "decode_head.enc_module.encoding.1.running_var"
    sums[worst][0] *= 1.01
    (copy / "bn_after_step.json").write_text(json.dumps(sums))
    assert convert.main(["--verify", str(copy)]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["se_logits"].endswith("DIFFERS, here first")
    assert lines["logits"].endswith("DIFFERS") and lines["aux.loss_ce"].endswith("DIFFERS")
    assert lines["bn_after_step"].endswith(f"DIFFERS  (worst: {worst})")
    for name in ("backbone_0", "aux_logits", "logits_full", "decode.loss_ce", "decode.loss_se", "total"):
        assert lines[name].endswith("ok"), name
    assert lines[f"{copy}:"].endswith("6 of 10 comparisons within their limits")


def test_a_different_shape():
    row = verification.compare_arrays("se_logits", np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
    assert not row.ok and "2x3" in row.detail


def test_a_reference_may_have_only_the_first_images_of_a_batch():
    actual = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert verification.compare_arrays("logits_full", actual, actual[:1]).ok


def test_a_kseg_config_replaces_the_original_one(copy):
    values = original_configs.translate(json.loads((copy / "config.json").read_text())["cfg"])
    with pytest.raises(ConfigError, match="contains a config.json; omit --config"):
        verification.verify(copy, values)
    (copy / "config.json").unlink()
    assert verification.verify(copy, values).ok
    with pytest.raises(DataError, match="has no config.json.*--config"):
        verification.verify(copy)


def test_weights_of_another_model(copy):
    values = original_configs.translate(mmseg_encnet(width=6))
    (copy / "config.json").unlink()
    with pytest.raises(WeightsError, match="model.pth"):
        verification.verify(copy, values)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("model.pth", None, "model.pth"),
        ("input.npy", None, "input.npy does not exist"),
        ("logits.npy", b"not numpy", "logits.npy is damaged"),
        ("aux_logits.npy", b"", "aux_logits.npy is damaged"),
        ("config.json", b"{", "config.json is damaged"),
        ("config.json", b"[1]", "config.json does not contain a JSON object"),
        ("config.json", b"{}", 'config.json has no "cfg"'),
        (
            "config.json",
            b'{"cfg": {"decode_head": {"type": "SegformerHead"}}}',
            "config.json: unknown decode_head.type",
        ),
        ("label.npy", None, "label.npy does not exist"),
        ("losses.json", b'{"loss_edge": 1.0}', "loss_edge = 1.0"),
        ("losses.json", b'{"total": "much"}', "total = 'much'"),
        ("bn_after_step.json", b'{"a.b": [1.0, 2.0]}', "different names: a.b, auxiliary_head.convs.0"),
        ("bn_after_step.json", b'{"a.b": 1.0}', "a.b is 1.0"),
    ],
)
def test_malformed_directories(copy, name, content, message):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError, WeightsError), match=message):
        verification.verify(copy)


def test_arrays_of_wrong_shapes(copy):
    np.save(copy / "label.npy", np.zeros((2, 32, 47), int))
    with pytest.raises(DataError, match=r"label.npy has shape \(2, 32, 47\).*\(2, 33, 47\)"):
        verification.verify(copy)
    np.save(copy / "input.npy", np.zeros((33, 47, 3), np.float32))
    with pytest.raises(DataError, match=r"input.npy has shape \(33, 47, 3\)"):
        verification.verify(copy)


def test_an_output_that_the_configuration_lacks(copy):
    description = json.loads((copy / "config.json").read_text())
    description["cfg"]["decode_head"]["use_se_loss"] = False
    (copy / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="decode_head.se_layer"):
        verification.verify(copy)
    values = original_configs.translate(description["cfg"])
    write_checkpoint(copy / "model.pth", state_of(models.build(values.model, values.classes)))
    with pytest.raises(DataError, match="se_logits.npy exists"):
        verification.verify(copy)


def test_missing_files_are_noted(copy):
    (copy / "losses.json").unlink()
    report = verification.verify(copy)
    assert {"losses: not compared, losses.json is missing", "grads: not compared, grads.json is missing"} <= set(
        report.notes
    )
    # The statistics are still compared.
    assert report.rows[-1].name == "bn_after_step" and report.rows[-1].ok


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("label", np.full((2, 33, 47), 3), r"label.npy has the values 3; labels are 0 to 2"),
        ("label", np.full((2, 33, 47), -100), "label.npy has the values -100"),
        ("label", np.zeros((2, 33, 46), int), r"label.npy has shape \(2, 33, 46\)"),
        ("aux_logits", np.float32(1), "aux_logits.npy does not contain an array"),
        ("aux_logits", np.zeros((0, 5, 6, 3)), "aux_logits.npy does not contain an array"),
    ],
)
def test_invalid_arrays(copy, name, array, message):
    np.save(copy / f"{name}.npy", array)
    with pytest.raises(DataError, match=message):
        verification.verify(copy)


def test_the_step_leaves_the_model_unchanged_and_has_the_gradients_of_tensorflow():
    import tensorflow as tf

    values = original_configs.translate(mmseg_encnet(dropout_ratio=0.0) | {"auxiliary_head": None})
    model = models.build(values.model, values.classes)
    randomize(model)
    before = [variable.numpy() for variable in model.variables]
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (2, 32, 32)).astype(np.int32)
    step = gradients.train_step(model, images, labels, Loss(), False)
    for variable, array in zip(model.variables, before):
        np.testing.assert_array_equal(variable.numpy(), array)
    with tf.GradientTape() as tape:
        terms = losses.loss_terms(model(images, training=True), labels, Loss())
        total = sum(weight * part / count for weight, part, count in terms.values())
    assert step.terms["total"] == pytest.approx(float(total), rel=1e-6)
    trained = {name: variable for name, variable in loading.mmseg_names(model).items() if variable.trainable}
    assert step.gradients.keys() == trained.keys()
    expected = tape.gradient(total, [variable.value for variable in trained.values()])
    for name, gradient in zip(trained, expected):
        scale = float(tf.norm(gradient)) + 1e-4
        np.testing.assert_allclose(step.gradients[name], gradient, atol=1e-3 * scale, err_msg=name)
    for name, variable in loading.mmseg_names(model).items():
        if not variable.trainable:
            np.testing.assert_allclose(step.statistics[name], variable.numpy(), rtol=1e-5, atol=1e-7)


@needs_fixtures
def test_the_command_on_reference_results(capsys):
    assert_agreement(run_here(convert.main, ["--verify", FIXTURES / "mmseg/encnet_r18_d16_lateral"], capsys))
