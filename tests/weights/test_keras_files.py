"""Weight files of keras.applications give the same results in kseg as in keras.applications."""

import h5py
import keras
import numpy as np
import pytest

from kseg.config.sections import Model
from kseg.errors import WeightsError
from kseg.models.resnet import resnet
from kseg.weights import keras_files, loading
from kseg.weights.foreign_files import read_foreign_checkpoint

# keras.applications only subtracts these means from images; kseg divides images by STD, too.
BGR_MEAN = np.array([103.939, 116.779, 123.68], "float32")
STD = (58.395, 57.12, 57.375)
STAGES = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out")


@pytest.fixture(scope="module")
def application():
    """Return keras.applications' ResNet-50 with random values for all weights."""
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 96, 3))
    random = np.random.default_rng(0)
    for layer in network.layers:
        for variable in layer.weights:
            name = variable.path.rpartition("/")[2]
            if name in ("gamma", "moving_variance"):
                # Large gammas at the ends of the branches would let the sums grow until rounding errors show.
                scale = 0.2 if name == "gamma" and layer.name.endswith("_3_bn") else 1
                variable.assign(scale * random.uniform(0.5, 1.5, variable.shape))
            elif name == "kernel":
                variable.assign(random.normal(0, (1.5 / np.prod(variable.shape[:-1])) ** 0.5, variable.shape))
            else:
                variable.assign(random.normal(0, 0.2, variable.shape))
    # The network expects images that are not divided by their standard deviations.
    first = network.get_layer("conv1_conv")
    first.kernel.assign(first.kernel / 58)
    return network


def write_groups(network, path):
    """Write a file in the layout of the published ones: a group per layer with weight names as attributes."""
    with h5py.File(path, "w") as file:
        layers = network.layers
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights):
                group[name] = np.array(variable)


def write(network, path):
    if path.name.endswith(".weights.h5"):
        network.save_weights(path)
    else:
        write_groups(network, path)
    return path


def test_stages_match_keras_applications(tmp_path, application):
    """Stages 1 to 3 match on an image that each network normalizes its way; stage 4 is dilated only in kseg."""
    path = write(application, tmp_path / "resnet50_notop.h5")
    images = keras.Input((64, 96, 3))
    backbone = keras.Model(images, resnet(images, Model(stem="7x7", stride_on="1x1", output_stride=16)))
    notes = loading.load_backbone(backbone, path, channels="BGR", std=STD)
    assert any("multiplied by data.std" in note for note in notes)
    assert any("reversed from BGR to RGB" in note for note in notes)
    image = np.random.default_rng(1).integers(0, 256, (1, 64, 96, 3)).astype("float32")
    stages = backbone((image - BGR_MEAN[::-1]) / np.array(STD, "float32"), training=False)
    reference = keras.Model(application.input, [application.get_layer(layer).output for layer in STAGES])
    for stage, reference_stage in zip(stages, reference(image[..., ::-1] - BGR_MEAN, training=False)):
        actual, expected = np.array(stage), np.array(reference_stage)
        assert expected.std() > 0.1
        assert np.max(np.abs(actual - expected) / np.maximum(np.abs(expected), 1)) <= 1e-4


def test_names_shapes_and_folding(tmp_path, application):
    checkpoint, numbered = (
        read_foreign_checkpoint(write(application, tmp_path / name)) for name in ("a.h5", "a.weights.h5")
    )
    assert checkpoint.state.keys() == numbered.state.keys()
    assert all(np.array_equal(array, numbered.state[name]) for name, array in checkpoint.state.items())
    # The network has 53 convolutions, followed by norms with four weights.
    assert checkpoint.system == "keras" and len(checkpoint.state) == 53 * 5
    assert checkpoint.state["layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert checkpoint.state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    norm, convolution = (application.get_layer(f"conv4_block6_2_{kind}") for kind in ("bn", "conv"))
    np.testing.assert_allclose(
        checkpoint.state["layer3.5.bn2.running_mean"],
        np.array(norm.moving_mean) - np.array(convolution.bias),
        rtol=1e-6,
    )
    # variance + epsilon is the same with the epsilons of kseg and keras.applications.
    np.testing.assert_allclose(
        checkpoint.state["layer3.5.bn2.running_var"] + np.float64(1e-5),
        np.array(norm.moving_variance, "float64") + norm.epsilon,
        rtol=1e-6,
    )


def test_the_first_kernel_is_unchanged_without_std(tmp_path, application):
    path = write(application, tmp_path / "a.weights.h5")
    images = keras.Input((64, 96, 3))
    backbone = keras.Model(images, resnet(images, Model(stem="7x7", stride_on="1x1")))
    loading.load_backbone(backbone, path)
    np.testing.assert_array_equal(
        backbone.get_layer("backbone.conv1").kernel, application.get_layer("conv1_conv").kernel
    )


def test_the_classifier_is_read_as_fc(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Conv2D(4, 7, name="conv1_conv")(inputs)
    outputs = keras.layers.BatchNormalization(name="conv1_bn")(outputs)
    outputs = keras.layers.Dense(5, name="predictions")(keras.layers.GlobalAveragePooling2D()(outputs))
    state, _ = keras_files.open_applications(write(keras.Model(inputs, outputs), tmp_path / "a.weights.h5"))
    assert state["fc.weight"].shape == (5, 4) and state["fc.bias"].shape == (5,)
    assert len(state) == 7


def test_other_keras_files_are_refused(tmp_path):
    inputs = keras.Input((8, 8, 3))
    network = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="post_conv")(inputs))
    for name in ("a.h5", "a.weights.h5"):
        with pytest.raises(WeightsError, match="a.*h5 is not a weight file of keras.applications.*1 layers.*post_conv"):
            read_foreign_checkpoint(write(network, tmp_path / name))
    path = tmp_path / "a.h5"
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.h5 is damaged"):
            read_foreign_checkpoint(path)
    with pytest.raises(WeightsError, match="none.h5 does not exist"):
        read_foreign_checkpoint(tmp_path / "none.h5")
    norm = keras.Model(inputs, keras.layers.BatchNormalization(center=False, name="conv1_bn")(inputs))
    for name in ("a.h5", "a.weights.h5"):
        with pytest.raises(WeightsError, match="h5 is damaged"):
            read_foreign_checkpoint(write(norm, tmp_path / name))
    with h5py.File(path, "w") as file:
        file["other"] = 3
    with pytest.raises(WeightsError, match="a.h5 is damaged"):
        read_foreign_checkpoint(path)
