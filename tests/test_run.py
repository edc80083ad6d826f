"""A run from Python: it trains, resumes, evaluates, predicts and exports as the commands do."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kseg
from kseg.errors import ConfigError, WorkdirError
from kseg.inference import trained_model

CHANGES = {
    "model.width": 4,
    "model.channels": 8,
    "model.auxiliary_channels": 4,
    "model.output_stride": 16,
    "augment.crop": (64, 64),
    "train.global_batch": 2,
    "train.steps": 2,
    "train.validate_every": 2,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes_directory):
    """Return a run after its two steps, with the lines that it reported."""
    lines = []
    made = kseg.Run(
        "encnet_shapes",
        tmp_path_factory.mktemp("runs") / "a run",
        **CHANGES,
        **{"data.directory": str(shapes_directory)},
    )
    assert made.train(lines.append)["step"] == 2
    assert any("step 2/2" in line for line in lines)
    return made


def test_a_run_is_a_config_and_a_directory(run):
    stored = trained_model.read_config(run.workdir)
    assert run.config == stored and run.config.augment.crop == (64, 64)
    assert kseg.Run(workdir=run.workdir).config == stored
    assert kseg.Run(stored, run.workdir, **{"evaluate.flip": True}).config.evaluate.flip
    name = "encnet_cityscapes:r101-d8-512x1024-40k"
    assert str(kseg.Run(name).workdir) == f"runs/{name.replace(':', '-')}"
    assert repr(run) == f"Run('encnet_shapes', {str(run.workdir)!r})"


def test_a_finished_run_is_resumed_at_its_end(run):
    lines = []
    again = kseg.Run(workdir=run.workdir)
    assert again.train(lines.append)["step"] == 2
    assert not any("step 1/2" in line for line in lines)


def test_an_evaluation_is_that_of_the_files(run):
    scores = run.evaluate(report=lambda line: None)
    stored = json.loads((run.workdir / "val" / "metrics.json").read_text())
    assert scores["mIoU"] == stored["mIoU"] and scores["images"] == 16
    page = scores._repr_html_()
    assert f"{100 * scores['mIoU']:.2f}" in page and page.count("<tr>") == 1 + len(scores["classes"])


def test_predictions_are_those_of_a_segmenter(run, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = kseg.load(run.workdir)(image)
    one = run.predict(image)
    np.testing.assert_array_equal(one.ids, expected)
    for other in run.predict([tmp_path / "a.png", Image.fromarray(image)]):
        np.testing.assert_array_equal(other.ids, expected)
    fractions = one.fractions()
    assert sum(fractions.values()) == pytest.approx(1) and list(fractions.values()) == sorted(
        fractions.values(), reverse=True
    )
    assert fractions[one.classes[int(expected[0, 0])]] == (expected == expected[0, 0]).mean()
    assert one.overlay().shape == image.shape and not np.array_equal(one.overlay(), image)
    page = one._repr_html_()
    assert "data:image/png;base64," in page and all(name in page for name in fractions)


def test_an_export_answers_the_same(run, tmp_path):
    version = run.export(tmp_path / "served")
    assert version == tmp_path / "served" / "1"
    image = np.random.default_rng(1).integers(0, 256, (1, 33, 48, 3), np.uint8)
    ids = tf.saved_model.load(version).signatures["predict_tensor"](image=tf.constant(image))["class_map"].numpy()
    assert (ids[0] == run.predict(image[0]).ids).mean() > 0.999


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean train.steps"):
        kseg.Run("encnet_shapes", tmp_path, **{"train.stepz": 1})
    with pytest.raises(ConfigError, match=re.escape("train.steps")):
        kseg.Run("encnet_shapes", tmp_path, **{"train.steps": 0})
    with pytest.raises(ConfigError, match="name a config"):
        kseg.Run()
    with pytest.raises(WorkdirError, match="is not a working directory"):
        kseg.Run(workdir=tmp_path)
    with pytest.raises(WorkdirError):
        kseg.Run("encnet_shapes", tmp_path).predict(tmp_path / "a.png")
    with pytest.raises(AttributeError, match="no_such_name"):
        kseg.no_such_name
