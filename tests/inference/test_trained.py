"""Load the model that command-line arguments refer to."""

import argparse

import numpy as np
import pytest
import tensorflow as tf

from kseg import cli, models
from kseg.config import Config, checks
from kseg.config.sections import Data, Init
from kseg.datasets import registry
from kseg.training import working_directory
from kseg.weights import keras_files, loading
from tests.helpers.small_models import tiny


def parsed_arguments(**values):
    return argparse.Namespace(
        **{"config": None, "overrides": [], "workdir": None, "weights": None, "tta": False} | values
    )


@pytest.fixture
def from_bgr(tmp_path):
    """Return the working directory and the model of a run that was initialized from a BGR file."""
    config = checks.check_config(Config(name="bgr", data=Data(name="camvid"), model=tiny(), init=Init(channels="BGR")))
    dataset = registry.find_dataset(config.data)
    working_directory.open_workdir(tmp_path, config, dataset).close()
    model = models.build(config.model, len(dataset.classes))
    keras_files.save_weights(model, tmp_path / "best.weights.h5")
    return tmp_path, model


def test_channels_of_trained_weights_are_never_reversed(from_bgr):
    """init.channels describes the file that initialized the run; the trained weights are RGB."""
    workdir, model = from_bgr
    for weights in (None, workdir / "best.weights.h5"):
        loaded, _, _ = cli.load_model(parsed_arguments(workdir=workdir, weights=weights))
        for variable, expected in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(variable, expected)


def test_channels_of_foreign_weights_are_reversed(from_bgr, capsys):
    workdir, model = from_bgr
    np.savez(
        workdir / "foreign.npz",
        **{
            name: np.array(target.variable).transpose(np.argsort(target.axes))
            if target.axes
            else np.array(target.variable)
            for name, target in loading.torch_targets(model).items()
        },
    )
    loaded, _, _ = cli.load_model(parsed_arguments(workdir=workdir, weights=workdir / "foreign.npz"))
    first = "backbone.stem.0"
    np.testing.assert_array_equal(loaded.get_layer(first).kernel, np.array(model.get_layer(first).kernel)[:, :, ::-1])
    assert "backbone.stem.0.weight" in capsys.readouterr().out


def test_loading_a_model_disables_tensor_float_32(from_bgr):
    tf.config.experimental.enable_tensor_float_32_execution(True)
    cli.load_model(parsed_arguments(workdir=from_bgr[0]))
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
