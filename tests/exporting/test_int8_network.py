"""An int8 export answers like the float32 one through the same signatures, or is not written."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kseg.config import Config
from kseg.config.sections import Augment, Evaluate, Export, Model
from kseg.datasets import registry
from kseg.errors import ConfigError, UserError
from kseg.exporting import exporter, int8_network, warmup
from kseg.exporting.calibration import Calibration, ChannelStatistics, calibration_images, measure, spaced_indices
from kseg.exporting.int8_network import integer_network, quantize_network
from kseg.exporting.int8_plan import Form, plan_integers
from kseg.exporting.precisions import folded_model
from kseg.inference import prediction
from kseg.inference.prediction import protocol_of
from kseg.models.layers import Convolution
from kseg.system.progress import Progress
from tests.commands.test_export import SIGNATURES, random_model
from tests.helpers.exhaustive import all_of
from tests.helpers.integers import NEEDS_INTEGER_KERNELS
from tests.helpers.small_sets import example, folder

pytestmark = NEEDS_INTEGER_KERNELS
# These test protocols call the network inside loops.
PROTOCOLS = {"fcn": Evaluate(flip=True), "apcnet": Evaluate(window=(32, 40), stride=(20, 24))}
ANY_LOSS = 100.0


def smooth_images(count, seed=0):
    """Return images (48, 64, 3) with edges at several scales."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 6, 8, 3)).astype(np.float32)
    images = tf.image.resize(coarse, (48, 64), "bicubic").numpy().clip(0, 255).astype(np.uint8)
    images[:, 10:30, 20:40] = 255 - images[:, 10:30, 20:40]
    return images


class Case:
    """A model with random weights, a data set that shows what it predicts, and a calibration."""

    def __init__(self, directory, head):
        self.config = Config(
            data=folder(directory / "set", {}),
            augment=Augment(crop=(24, 32)),
            evaluate=PROTOCOLS.get(head, Evaluate()),
            export=Export(precision="int8", device="cpu", largest_loss=ANY_LOSS),
            model=Model(backbone="resnet18", width=16, channels=16, auxiliary_channels=0, head=head),
        )
        self.model = random_model(self.config)
        generator = np.random.default_rng(1)
        for split, count in (("train", 5), ("val", 2)):
            for index, image in enumerate(smooth_images(count, len(split))):
                label = generator.integers(0, 3, image.shape[:2])
                example(directory / "set", split, f"{split}{index:02d}", label, image)
        self.dataset = registry.find_dataset(self.config.data)
        self.calibration = Calibration(
            registry.open_split(self.config.data, "train"), 4, registry.open_split(self.config.data, "val")
        )
        self.main, self.protocol = folded_model(self.model, "cpu"), protocol_of(self.config)
        self.plan = plan_integers(self.main)
        self.statistics = measure(
            self.main,
            self.plan,
            calibration_images(self.calibration.split, 4),
            self.protocol,
            Progress(4, "images", print),
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("int8"), "fcn")


@pytest.mark.parametrize("head", all_of(["deeplabv3plus"], "fcn", "encnet", "apcnet", "pspnet", "deeplabv3"))
def test_logits_are_close_to_float32(case, tmp_path, head):
    """Odd sizes and batches are covered."""
    if head != "fcn":
        case = Case(tmp_path, head)
    network = integer_network(case.main, case.plan, case.statistics)
    for images in (smooth_images(3, 7), smooth_images(1, 8)[:, :41, :57]):
        inputs = case.protocol.normalize(images)
        exact, logits = case.main(inputs, training=False).numpy(), network(inputs)["main"].numpy()
        assert logits.shape == exact.shape
        # The classifier's random weights amplify differences: its logits are small sums of large terms.
        assert np.sqrt(np.mean((logits - exact) ** 2)) < 0.3 * exact.std()
        assert np.corrcoef(logits.ravel(), exact.ravel())[0, 1] > 0.95


def test_an_export_has_the_signatures_and_its_facts(case, tmp_path, monkeypatch):
    monkeypatch.setattr(warmup, "write_warmup", lambda *arguments: None)
    lines = []
    path = exporter.export(
        case.model, case.config, case.dataset, tmp_path / "int8", report=lines.append, calibration=case.calibration
    )
    assert (path / "signatures.txt").read_text() == SIGNATURES
    facts = json.loads((path / "assets" / "int8.json").read_text())
    assert facts["calibration"] == {"split": "train", "images": 4}
    assert "backbone.layer1.0.conv1" in facts["int8_layers"] and "decode_head.conv_seg" in facts["float32_layers"]
    assert "x86-64" in facts["runs_on"]
    scores = [100 * facts["mIoU"][key] for key in ("float32", "int8")]
    assert f"mIoU {scores[0]:.2f} -> {scores[1]:.2f} ({scores[1] - scores[0]:+.2f})" in lines
    assert "calibrating on 4 of 5 images of folder train" in lines
    signatures, image = tf.saved_model.load(str(path)).signatures, smooth_images(1, 9)
    ids = signatures["predict_tensor"](image=tf.constant(image))["class_map"].numpy()[0]
    exact_ids = prediction.predictor(case.model, case.protocol)(image[0])
    assert (ids == exact_ids).mean() > 0.9 and len(np.unique(exact_ids)) > 1
    # The answer is that of the network whose loss was measured.
    predict = exporter.load_saved_model(path, 1)
    assert facts["mIoU"]["int8"] == pytest.approx(
        exporter.exported_accuracy(predict, case.dataset, case.calibration.test_split)["mIoU"], abs=1e-12
    )


def test_refusals_write_nothing(case, tmp_path, monkeypatch):
    out = tmp_path / "served"

    def export(calibration=case.calibration, **changes):
        config = replace(case.config, export=replace(case.config.export, **changes))
        exporter.export(case.model, config, case.dataset, out, report=print, calibration=calibration)

    with pytest.raises(ConfigError, match="int8 needs a calibration"):
        export(calibration=None)
    with pytest.raises(ConfigError, match="no other precision"):
        export(precision="float32")
    # The measured loss decides, also if it is nan.
    monkeypatch.setattr(int8_network, "measure", lambda *arguments: None)
    monkeypatch.setattr(int8_network, "integer_network", lambda *arguments: "int8")
    for after in (0.694, float("nan")):
        monkeypatch.setattr(int8_network, "mean_iou", lambda network, *arguments: after if network == "int8" else 0.7)
        with pytest.raises(UserError, match="int8 costs .* of mIoU on folder val, and export.largest_loss is 0.5"):
            export(largest_loss=0.5)
    assert not out.exists()
    monkeypatch.setattr(int8_network, "mean_iou", lambda network, *arguments: 0.6951 if network == "int8" else 0.7)
    config = replace(case.config, export=replace(case.config.export, largest_loss=0.5))
    assert quantize_network(case.model, config, case.dataset, case.calibration, print).facts["mIoU"]["int8"] == 0.6951


def test_measured_ranges_and_means(case):
    """The statistics are those of the float32 layers on the chosen images."""
    assert spaced_indices(5, 2).tolist() == [0, 2] and spaced_indices(3, 9).tolist() == [0, 1, 2]
    images = smooth_images(5, len("train"))[spaced_indices(5, 4)]
    # The test protocol also shows the network the mirrored images.
    images = np.concatenate([images, images[:, :, ::-1]])
    assert {step.inputs[0] for step in case.plan.convolutions} | set(case.plan.scaled) == set(case.statistics)
    name = next(step.output for step in case.plan.steps if step.form is Form.SHIFTED)
    probe = keras.Model(case.main.input, case.main.get_layer(name).output)
    values = probe(case.protocol.normalize(images)).numpy()
    values, statistics = values.reshape(-1, values.shape[-1]), case.statistics[name]
    for measured, expected in zip(statistics, (values.min(0), values.max(0), values.mean(0)), strict=True):
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-4)


def test_a_shortcut_of_both_signs_is_exact(tmp_path):
    """By hand: ReLU(a x - b x) of integers that codes represent exactly; the shortcut is negative everywhere."""
    images = keras.Input((None, None, 1))
    rectified = layers.Activation("relu", name="codes")(images)
    branch, shortcut = (Convolution(1, 1, name=name)(rectified) for name in ("branch", "shortcut"))
    total = layers.Add(name="add")([branch, shortcut])
    model = keras.Model(images, layers.Activation("relu", name="total")(total))
    model.get_layer("branch").set_weights([np.full((1, 1, 1, 1), 3.0), np.array([10.0])])
    model.get_layer("shortcut").set_weights([np.full((1, 1, 1, 1), -1.0), np.array([-20.0])])

    def statistics(smallest, largest):
        return ChannelStatistics(*(np.array([value], np.float32) for value in (smallest, largest, 0)))

    plan = plan_integers(model)
    network = integer_network(
        model, plan, {"codes": statistics(0, 255), "shortcut": statistics(-275, -20), "total": statistics(0, 510)}
    )
    values = np.array([0, 1, 10, 100, 200, 255], np.float32).reshape(1, 2, 3, 1)
    np.testing.assert_allclose(network(values)["main"], np.maximum(2 * values - 10, 0), atol=1)
