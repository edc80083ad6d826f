"""Backbone weights load strictly from files of other systems."""

import keras
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import loading
from tests.helpers.shared_files import SHARED
from tests.helpers.small_models import small_model, small_state, unchanged, values

PARTIAL = SHARED / "data" / "weights" / "resnet18_imagenet_partial.npz"
needs_partial = pytest.mark.skipif(not PARTIAL.is_file(), reason=f"{PARTIAL} is missing")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_file_changes_only_the_backbone(tmp_path, prefix):
    model, state, path = small_model(), small_state(), tmp_path / "a.npz"
    head = {name: np.array(variable) for name, variable in loading.mmseg_names(model).items() if "head" in name}
    bare = {name.removeprefix("backbone."): array for name, array in state.items() if "backbone" in name}
    np.savez(path, **{prefix + name: array for name, array in bare.items()})
    loading.load_backbone(model, path)
    loaded = loading.mmseg_names(model)
    np.testing.assert_array_equal(loaded["backbone.conv1.weight"], bare["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded["backbone.bn1.running_var"], bare["bn1.running_var"])
    assert all(np.array_equal(loaded[name], array) for name, array in head.items())


@pytest.mark.parametrize("prefix, classifier", [("", "fc"), ("backbone.", "head.fc")])
def test_the_imagenet_classifier_is_skipped_without_being_listed(tmp_path, prefix, classifier):
    model, path = small_model(), tmp_path / "a.npz"
    state = {
        prefix + name.removeprefix("backbone."): array for name, array in small_state().items() if "backbone" in name
    }
    ends = {f"{classifier}.weight": np.zeros((5, 4)), f"{classifier}.bias": np.zeros(5)}
    np.savez(path, **state, **ends)
    assert loading.load_backbone(model, path)[-1:] == [
        f"the ImageNet classifier was skipped: {classifier}.weight, {classifier}.bias"
    ]
    assert f"{classifier}.bias" in loading.load_backbone(model, path, skip=(f"{classifier}.*",))[-1]
    np.savez(path, **state, **ends, neck=np.zeros(2))
    with pytest.raises(WeightsError, match=r"in the file but not in the model:\n    neck \(2,\)\n.* init.skip=neck$"):
        loading.load_backbone(model, path)


def test_skip_matches_exact_names(tmp_path):
    model, path = small_model(), tmp_path / "a.npz"
    state = {name.removeprefix("backbone."): array for name, array in small_state().items() if "backbone" in name}
    kernel = state.pop("conv1.weight")
    np.savez(path, **state)
    before = values(model)
    for skip, message in [
        ((), r"1 weights in the model but not in the file:\n    conv1.weight \(4, 3, 3, 2\)"),
        (("conv1.weight", "conv2.weight"), "init.skip lists 'conv2.weight'"),
        # Patterns use names without the prefix, as in the file.
        (("backbone.conv1.weight",), "init.skip lists 'backbone.conv1.weight'"),
    ]:
        with pytest.raises(WeightsError, match=message):
            loading.load_backbone(model, path, skip)
        assert unchanged(model, before)
    loading.load_backbone(model, path, ("conv*",))
    np.testing.assert_array_equal(loading.mmseg_names(model)["backbone.bn1.bias"], state["bn1.bias"])
    np.savez(path, **state, **{"conv1.weight": kernel[:2]})
    with pytest.raises(WeightsError, match=r"conv1.weight file \(2, 3, 3, 2\), model \(4, 3, 3, 2\)"):
        loading.load_backbone(model, path)
    np.savez(path, **state, **{"conv1.weight": kernel, "backbone.conv1.weight": kernel})
    with pytest.raises(WeightsError, match="both with and without 'backbone.'"):
        loading.load_backbone(model, path)


def bare_resnet18():
    """Return a model with all weights of a ResNet-18 in unconnected layers."""
    inputs, outputs = {}, []

    def conv_bn(conv, bn, channels_in, channels, size):
        images = inputs.setdefault(channels_in, keras.Input((8, 8, channels_in)))
        convolved = keras.layers.Conv2D(channels, size, use_bias=False, name=f"backbone.{conv}")(images)
        outputs.append(keras.layers.BatchNormalization(name=f"backbone.{bn}")(convolved))

    conv_bn("conv1", "bn1", 3, 64, 7)
    channels_in = 64
    for stage, channels in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            conv_bn(f"{name}.conv1", f"{name}.bn1", channels_in, channels, 3)
            conv_bn(f"{name}.conv2", f"{name}.bn2", channels, channels, 3)
            if channels_in != channels:
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", channels_in, channels, 1)
            channels_in = channels
    return keras.Model(list(inputs.values()), outputs)


@needs_partial
def test_published_partial_backbone():
    model = bare_resnet18()
    with pytest.raises(WeightsError, match="lacks 20 of the model's 100 weights\n  20 weights in the model but not"):
        loading.load_backbone(model, PARTIAL)
    loading.load_backbone(model, PARTIAL, ("layer4.0.conv*", "layer4.0.bn*", "layer4.1.*"))
    kernel = np.array(loading.mmseg_names(model)["backbone.conv1.weight"])
    np.testing.assert_array_equal(kernel, np.load(PARTIAL)["conv1.weight"].transpose(2, 3, 1, 0))
