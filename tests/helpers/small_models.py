"""Tiny model settings, and a small model with every kind of weight and a NumPy reference of its result."""

import contextlib

import keras
import numpy as np
import pytest

from kseg.config.sections import Model
from kseg.models.resnet import BACKBONES
from tests.helpers.exhaustive import ALL

# The tests for which the depth of the backbone does not matter. Building and tracing its layers takes most of the time
# of a small model. `make test-all` keeps the depth.
SHALLOW = (
    "tests/commands/test_benchmark.py",
    "tests/commands/test_export.py",
    "tests/commands/test_train",
    "tests/datasets/",
    "tests/evaluation/",
    "tests/exporting/",
    "tests/inference/test_large_images.py",
    "tests/inference/test_segmenter.py",
    "tests/input_pipeline/",
    "tests/models/test_gradient_checkpointing.py",
    "tests/models/test_models_contract.py",
    "tests/pipeline/",
    "tests/profiling/test_step_time.py",
    "tests/serving/",
    "tests/training/",
    "tests/test_docstring_examples.py",
    "tests/test_end_to_end.py",
    "tests/test_extreme_sizes.py",
    "tests/test_first_model.py",
    "tests/test_gpu_kernels.py",
    "tests/test_run.py",
)
# Depth matters for these, although their directory is listed above.
DEEP = ("tests/training/test_precision.py",)
SHORTEST = (1, 1, 1, 1), False


@contextlib.contextmanager
def shallow_resnet18():
    """Give resnet18 one block in each stage instead of two, here and in forked processes."""
    with pytest.MonkeyPatch.context() as patch:
        if not ALL:
            patch.setitem(BACKBONES, "resnet18", SHORTEST)
        yield


def is_shallow():
    return BACKBONES["resnet18"] == SHORTEST


def make_shallow():
    """Give resnet18 one block in each stage for the rest of this process."""
    BACKBONES["resnet18"] = SHORTEST


def tiny(**settings):
    return Model(**{"backbone": "resnet18", "width": 4, "channels": 8, "auxiliary_channels": 4} | settings)


@contextlib.contextmanager
def without_values():
    """Let variables have names and shapes but no values: models of any size are built in a fraction of the time."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras would initialize them when another scope ends.
    keras.utils.clear_session(free_memory=False)


def randomize_statistics(model):
    """Replace the constant initial values of gammas and moving variances by random ones."""
    generator = np.random.default_rng(5)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))


class Codes(keras.layers.Layer):
    def build(self, input_shape):
        self.codewords = self.add_weight(name="codewords", shape=(3, input_shape[-1]))
        self.scale = self.add_weight(name="scale", shape=(3,))

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.codewords)) * self.scale


def small_model(classes=2):
    """Return a model with every kind of weight that heads have, named as in MMSegmentation."""
    images = keras.Input((5, 6, 3))
    outputs = keras.layers.Conv2D(4, (3, 2), use_bias=False, name="backbone.conv1")(images)
    outputs = keras.layers.BatchNormalization(epsilon=1e-5, name="backbone.bn1")(outputs)
    outputs = keras.layers.DepthwiseConv2D((2, 3), use_bias=False, name="decode_head.depthwise_conv.conv")(outputs)
    outputs = keras.layers.Dropout(0.1, name="decode_head.dropout")(outputs)
    outputs = keras.layers.GlobalAveragePooling2D(name="decode_head.pool")(outputs)
    outputs = Codes(name="decode_head.enc_module.encoding.0")(outputs)
    outputs = keras.layers.Dense(classes, name="decode_head.se_layer")(outputs)
    return keras.Model(images, outputs)


def small_state(seed=0, classes=2):
    shapes = {
        "backbone.conv1.weight": (4, 3, 3, 2),
        "backbone.bn1.weight": (4,),
        "backbone.bn1.bias": (4,),
        "backbone.bn1.running_mean": (4,),
        "backbone.bn1.running_var": (4,),
        "decode_head.depthwise_conv.conv.weight": (4, 1, 2, 3),
        "decode_head.enc_module.encoding.0.codewords": (3, 4),
        "decode_head.enc_module.encoding.0.scale": (3,),
        "decode_head.se_layer.weight": (classes, 3),
        "decode_head.se_layer.bias": (classes,),
    }
    random = np.random.default_rng(seed)
    return {name: random.uniform(0.5, 1.5, shape).astype("float32") for name, shape in shapes.items()}


def torch_result(state, image):
    """Return the small model's result for an image (3, 5, 6), as sums over arrays in PyTorch's layout."""
    kernel, depthwise = state["backbone.conv1.weight"], state["decode_head.depthwise_conv.conv.weight"]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 2), axis=(1, 2))
    outputs = np.einsum("ihwyx,oiyx->ohw", windows, kernel)
    gamma, beta, mean, variance = (
        state[f"backbone.bn1.{name}"][:, None, None] for name in ("weight", "bias", "running_mean", "running_var")
    )
    outputs = (outputs - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    windows = np.lib.stride_tricks.sliding_window_view(outputs, (2, 3), axis=(1, 2))
    outputs = np.einsum("chwyx,cyx->chw", windows, depthwise[:, 0]).mean((1, 2))
    encoding = "decode_head.enc_module.encoding.0."
    outputs = state[encoding + "codewords"] @ outputs * state[encoding + "scale"]
    return state["decode_head.se_layer.weight"] @ outputs + state["decode_head.se_layer.bias"]


def values(model):
    return [np.array(variable) for variable in model.weights]


def unchanged(model, before):
    return all(np.array_equal(old, new) for old, new in zip(before, values(model), strict=True))
