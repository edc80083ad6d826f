"""Comparing our numbers with an original's: what is compared, what is called different, and what is refused."""

import json
import os
import subprocess
import sys

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
from tests.helpers.running import ON_JAX, ROOT
from tests.helpers.shared_files import FIXTURES, needs_fixtures

FIRST = "backbone.layer1.1.relu"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A directory as an original system would have written it, and the configuration in it."""
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
    for name, array in {"input": images, "label": labels, "logits": outputs["main"], "aux_logits": outputs["aux"],
                        "se_logits": outputs["se"], "backbone_0": stage, "logits_full": full[:1]}.items():
        np.save(directory / f"{name}.npy", np.asarray(array))
    # Keras' own training step, with no part of the code that is tested.
    trained = model(images, training=True)
    terms = losses.loss_terms(trained, labels, values.loss)
    parts = {name: float(weight * total / count) for name, (weight, total, count) in terms.items()}
    (directory / "losses.json").write_text(json.dumps(
        {"decode.loss_ce": parts["main"], "aux.loss_ce": parts["aux"], "decode.loss_se": parts["se"],
         "decode.acc_seg": 12.3, "total": sum(parts.values()), "_note": "none"}))
    running = {name: variable.numpy() for name, variable in loading.mmseg_names(model).items()
               if not variable.trainable}
    (directory / "bn_after_step.json").write_text(json.dumps(
        {name: [float(np.linalg.norm(array)), float(array.sum())] for name, array in running.items()}))
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
    return [row.what for row in report.rows]


def test_equal_numbers(original):
    report = verification.verify(original)
    assert report.ok
    assert names_of(report) == ["backbone_0", "aux_logits", "se_logits", "logits", "logits_full", "decode.loss_ce",
                                "aux.loss_ce", "decode.loss_se", "total", "bn_after_step"]
    assert max(row.relative for row in report.rows) < 1e-5
    assert [note for note in report.notes if note.startswith("backbone_")] == [
        f"backbone_{stage}: not compared, there is no backbone_{stage}.npy" for stage in (1, 2, 3)]
    assert report.table().endswith(f"{original}: 10 of 10 comparisons within their limits")


@pytest.mark.parametrize("found, truth, ok", [
    (1.5e-4, 0.0, False), (5e-5, 0.0, True), (-1.5e-4, 0.0, False), (0.5, np.nan, False), (np.nan, 0.5, False),
    # Relative where the truth is above 1.
    (200.015, 200.0, True), (200.03, 200.0, False)])
def test_the_limit_of_an_array(found, truth, ok):
    row = verification.compare_arrays("logits", np.array(
        [[0.0, found]], np.float32), np.array([[0.0, truth]], np.float32))
    assert row.ok == ok and row.shape == (1, 2)


def test_half_precision_truths_are_compared_within_their_rounding():
    found = np.random.default_rng(0).uniform(-50, 50, (4, 100)).astype(np.float32)
    assert verification.compare_arrays("backbone_0", found, found.astype(np.float16)).ok
    assert not verification.compare_arrays("backbone_0", found * 1.002, found.astype(np.float16)).ok


def test_each_difference_is_found_and_the_first_is_marked(copy, capsys):
    change(copy / "se_logits.npy", 1.0)
    change(copy / "logits.npy", np.nan)
    losses_found = json.loads((copy / "losses.json").read_text())
    losses_found["aux.loss_ce"] *= 1 + 3e-5
    losses_found["decode.loss_ce"] *= 1 + 3e-6
    (copy / "losses.json").write_text(json.dumps(losses_found))
    sums = json.loads((copy / "bn_after_step.json").read_text())
    worst = "decode_head.enc_module.encoding.1.running_var"
    sums[worst][0] *= 1.01
    (copy / "bn_after_step.json").write_text(json.dumps(sums))
    assert convert.main(["--verify", str(copy)]) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["se_logits"].endswith("DIFFERS, here first")
    assert lines["logits"].endswith("DIFFERS") and lines["aux.loss_ce"].endswith("DIFFERS")
    assert lines["bn_after_step"].endswith(f"DIFFERS  (worst: {worst})")
    for what in ("backbone_0", "aux_logits", "logits_full", "decode.loss_ce", "decode.loss_se", "total"):
        assert lines[what].endswith("ok"), what
    assert lines[f"{copy}:"].endswith("6 of 10 comparisons within their limits")


def test_another_shape():
    row = verification.compare_arrays("se_logits", np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
    assert not row.ok and row.where == "the shape is 2x3 here"


def test_the_first_pictures_of_a_batch_may_be_all_of_the_truth():
    found = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert verification.compare_arrays("logits_full", found, found[:1]).ok


def test_a_config_of_ours_in_place_of_the_original_s(copy):
    values = original_configs.translate(json.loads((copy / "config.json").read_text())["cfg"])
    with pytest.raises(ConfigError, match="has its own config.json; leave --config away"):
        verification.verify(copy, values)
    (copy / "config.json").unlink()
    assert verification.verify(copy, values).ok
    with pytest.raises(DataError, match="has no config.json of the original; name a config of ours"):
        verification.verify(copy)


def test_weights_of_another_model(copy):
    values = original_configs.translate(mmseg_encnet(width=6))
    (copy / "config.json").unlink()
    with pytest.raises(WeightsError, match="model.pth"):
        verification.verify(copy, values)


@pytest.mark.parametrize("name, content, message", [
    ("model.pth", None, "model.pth"),
    ("input.npy", None, "input.npy does not exist; model.pth, input.npy and logits.npy have to be there"),
    ("logits.npy", b"not numpy", "logits.npy is damaged or no .npy file"),
    ("aux_logits.npy", b"", "aux_logits.npy is damaged or no .npy file"),
    ("config.json", b"{", "config.json is damaged or no JSON file"),
    ("config.json", b"[1]", "config.json holds no JSON object"),
    ("config.json", b"{}", 'config.json has no "cfg"'),
    ("config.json", b'{"cfg": {"decode_head": {"type": "SegformerHead"}}}', "config.json: unknown decode_head.type"),
    ("label.npy", None, "label.npy does not exist"),
    ("losses.json", b'{"loss_edge": 1.0}', "loss_edge = 1.0 is no loss of this model; it has"),
    ("losses.json", b'{"total": "much"}', "total = 'much' is no loss"),
    ("bn_after_step.json", b'{"a.b": [1.0, 2.0]}', "do not have the same names: a.b, auxiliary_head.convs.0"),
    ("bn_after_step.json", b'{"a.b": 1.0}', "a.b is 1.0, not \\[norm, sum\\]"),
])
def test_malformed_directories(copy, name, content, message):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises((ConfigError, DataError, WeightsError), match=message):
        verification.verify(copy)


def test_arrays_of_wrong_shapes(copy):
    np.save(copy / "label.npy", np.zeros((2, 32, 47), int))
    with pytest.raises(DataError, match=r"label.npy has shape \(2, 32, 47\), and the pictures \(2, 33, 47\)"):
        verification.verify(copy)
    np.save(copy / "input.npy", np.zeros((33, 47, 3), np.float32))
    with pytest.raises(DataError, match=r"input.npy has shape \(33, 47, 3\)"):
        verification.verify(copy)


def test_an_output_that_the_configuration_does_not_have(copy):
    description = json.loads((copy / "config.json").read_text())
    description["cfg"]["decode_head"]["use_se_loss"] = False
    (copy / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="decode_head.se_layer"):
        verification.verify(copy)
    values = original_configs.translate(description["cfg"])
    write_checkpoint(copy / "model.pth", state_of(models.build(values.model, values.classes)))
    with pytest.raises(DataError, match="se_logits.npy is there, but the configuration has no such output"):
        verification.verify(copy)


def test_what_is_absent_is_said(copy):
    (copy / "losses.json").unlink()
    report = verification.verify(copy)
    assert {"losses: not compared, there is no losses.json", "grads: not compared, there is no grads.json"} <= set(
        report.notes)
    # The statistics are compared all the same.
    assert report.rows[-1].what == "bn_after_step" and report.rows[-1].ok


@pytest.mark.parametrize("name, array, message", [
    ("label", np.full((2, 33, 47), 3), r"label.npy has the values 3; labels are 0 to 2, and 255 is ignored"),
    ("label", np.full((2, 33, 47), -100), "label.npy has the values -100"),
    ("label", np.zeros((2, 33, 46), int), r"label.npy has shape \(2, 33, 46\)"),
    ("aux_logits", np.float32(1), "aux_logits.npy holds no array of numbers"),
    ("aux_logits", np.zeros((0, 5, 6, 3)), "aux_logits.npy holds no array of numbers")])
def test_arrays_that_cannot_be(copy, name, array, message):
    np.save(copy / f"{name}.npy", array)
    with pytest.raises(DataError, match=message):
        verification.verify(copy)


def test_the_step_leaves_the_model_as_it_is_and_its_gradients_are_tensorflow_s():
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
    truth = tape.gradient(total, [variable.value for variable in trained.values()])
    for name, gradient in zip(trained, truth):
        scale = float(tf.norm(gradient)) + 1e-4
        np.testing.assert_allclose(step.gradients[name], gradient, atol=1e-3 * scale, err_msg=name)
    for name, variable in loading.mmseg_names(model).items():
        if not variable.trainable:
            np.testing.assert_allclose(step.statistics[name], variable.numpy(), rtol=1e-5, atol=1e-7)


@needs_fixtures
@pytest.mark.parametrize("backend, name", [
    ({"KERAS_BACKEND": "tensorflow"}, "mmseg/encnet_r18_d16_lateral"), (ON_JAX, "sss/deeplabv3plus_r18_d16")],
    ids=["tensorflow", "jax"])
def test_the_command_on_the_originals_own_numbers(backend, name):
    if backend == ON_JAX:
        pytest.importorskip("jax", reason="JAX is not installed")
    result = subprocess.run([sys.executable, "-m", "kseg.convert", "--verify", FIXTURES / name], cwd=ROOT, text=True,
                            capture_output=True, env=os.environ | backend)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    verdicts = {row[0]: "ok" in row for row in rows}
    for what in ("backbone_0", "backbone_3", "aux_logits", "logits", "logits_full", "grads", "bn_after_step"):
        assert verdicts[what]
