"""The model that a command line names."""

import argparse

import numpy as np
import pytest
import tensorflow as tf

from kseg import cli, models
from kseg.config import Config, Data, Init, checks
from kseg.datasets import registry
from kseg.training import working_directory
from kseg.weights import keras_files, loading
from tests.helpers.small_models import tiny


def named(**values):
    """The values of a parsed command line."""
    return argparse.Namespace(**{
        "config": None, "overrides": [], "workdir": None, "weights": None, "tta": False} | values)


@pytest.fixture
def from_bgr(tmp_path):
    """A run that started from a BGR file: its working directory, and its model."""
    config = checks.check(Config(name="bgr", data=Data(name="camvid"), model=tiny(), init=Init(channels="BGR")))
    dataset = registry.find(config.data)
    working_directory.open_run(tmp_path, config, dataset).close()
    model = models.build(config.model, len(dataset.classes))
    keras_files.save_weights(model, tmp_path / "best.weights.h5")
    return tmp_path, model


def test_own_weights_are_never_turned(from_bgr):
    """init.channels speaks of the file that a run started from; what it has trained is RGB."""
    workdir, model = from_bgr
    for arguments in (named(workdir=workdir), named(workdir=workdir, weights=workdir / "best.weights.h5")):
        loaded, _, _ = cli.load_model(arguments)
        for variable, expected in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(variable, expected)


def test_a_file_of_another_system_is_turned(from_bgr, capsys):
    workdir, model = from_bgr
    np.savez(workdir / "theirs.npz", **{
        name: np.array(target.variable).transpose(np.argsort(target.axes)) if target.axes else np.array(target.variable)
        for name, target in loading.torch_targets(model).items()})
    loaded, _, _ = cli.load_model(named(workdir=workdir, weights=workdir / "theirs.npz"))
    first = "backbone.stem.0"
    np.testing.assert_array_equal(loaded.get_layer(first).kernel, np.array(model.get_layer(first).kernel)[:, :, ::-1])
    assert "note: the input channels of backbone.stem.0.weight were reversed" in capsys.readouterr().out


def test_a_model_is_loaded_for_full_float32(from_bgr):
    tf.config.experimental.enable_tensor_float_32_execution(True)
    cli.load_model(named(workdir=from_bgr[0]))
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
