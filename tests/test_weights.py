"""Weights by name: the name and layout tables, and strict loading."""

from collections import OrderedDict

import keras
import numpy as np
import pytest
from shared_files import KEYS, SHARED, read_keys
from torch_writing import FakeTensor, Stored, write_legacy, write_zip

from kseg import weights
from kseg.errors import WeightsError

PARTIAL = SHARED / "data" / "weights" / "resnet18_imagenet_partial.npz"
needs_keys = pytest.mark.skipif(not KEYS.is_dir(), reason=f"no reference key lists in {KEYS}")
needs_partial = pytest.mark.skipif(not PARTIAL.is_file(), reason=f"no file {PARTIAL}")


class Codes(keras.layers.Layer):
    def build(self, input_shape):
        self.codewords = self.add_weight(name="codewords", shape=(3, input_shape[-1]))
        self.scale = self.add_weight(name="scale", shape=(3,))

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.codewords)) * self.scale


def small_model(classes=2):
    """A model of every kind of weight that heads have, with MMSegmentation's names."""
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
        "backbone.conv1.weight": (4, 3, 3, 2), "backbone.bn1.weight": (4,), "backbone.bn1.bias": (4,),
        "backbone.bn1.running_mean": (4,), "backbone.bn1.running_var": (4,),
        "decode_head.depthwise_conv.conv.weight": (4, 1, 2, 3),
        "decode_head.enc_module.encoding.0.codewords": (3, 4), "decode_head.enc_module.encoding.0.scale": (3,),
        "decode_head.se_layer.weight": (classes, 3), "decode_head.se_layer.bias": (classes,)}
    random = np.random.default_rng(seed)
    return {name: random.uniform(0.5, 1.5, shape).astype("float32") for name, shape in shapes.items()}


def torch_result(state, image):
    """What the small model computes, written out as sums over PyTorch's layouts; `image` is (3, 5, 6)."""
    kernel, depthwise = state["backbone.conv1.weight"], state["decode_head.depthwise_conv.conv.weight"]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 2), axis=(1, 2))
    outputs = np.einsum("ihwyx,oiyx->ohw", windows, kernel)
    gamma, beta, mean, variance = (state[f"backbone.bn1.{name}"][:, None, None]
                                   for name in ("weight", "bias", "running_mean", "running_var"))
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


def test_mmseg_names():
    names = weights.mmseg_names(small_model())
    assert names.keys() == small_state().keys()
    assert names["backbone.bn1.running_var"].path == "backbone.bn1/moving_variance"


def test_mmseg_names_of_an_unknown_weight():
    images = keras.Input((4,))
    model = keras.Model(images, keras.layers.PReLU(name="odd")(images))
    with pytest.raises(WeightsError, match="odd/alpha: unknown weight 'alpha'.*Choices: beta, bias"):
        weights.mmseg_names(model)


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_loaded_checkpoint_computes_what_pytorch_layouts_mean(tmp_path, suffix):
    state, model, path = small_state(), small_model(), tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **state, **{"backbone.bn1.num_batches_tracked": np.array(7)})
    else:
        tensors = OrderedDict()
        for name, array in state.items():
            strides = tuple(stride // 4 for stride in array.strides)
            tensors[name] = FakeTensor(Stored(array.ravel(), key=name), 0, array.shape, strides)
        write_legacy(path, {"meta": {"epoch": 1}, "state_dict": tensors})
    weights.load_checkpoint(model, path, "encnet")
    image = np.random.default_rng(1).normal(size=(3, 5, 6)).astype("float32")
    outputs = model(image.transpose(1, 2, 0)[None], training=False)
    np.testing.assert_allclose(np.array(outputs)[0], torch_result(state, image), rtol=1e-4)


def test_half_precision_checkpoints_become_float32(tmp_path):
    state = small_state()
    np.savez(tmp_path / "a.npz", **{name: array.astype("float16") for name, array in state.items()})
    model = small_model()
    weights.load_checkpoint(model, tmp_path / "a.npz", "encnet")
    loaded = np.array(weights.mmseg_names(model)["backbone.bn1.bias"])
    np.testing.assert_array_equal(loaded, state["backbone.bn1.bias"].astype("float16").astype("float32"), strict=True)


def test_checkpoints_that_do_not_fit_leave_the_model_alone(tmp_path):
    model, state = small_model(), small_state()
    before, path = values(model), tmp_path / "a.npz"

    def message(changed):
        np.savez(path, **changed)
        with pytest.raises(WeightsError) as caught:
            weights.load_checkpoint(model, path, "encnet")
        assert unchanged(model, before) and str(path) in str(caught.value)
        return str(caught.value)

    assert "2 missing in the file: backbone.bn1.bias, backbone.bn1.weight" in message(
        {name: array for name, array in state.items() if name not in ("backbone.bn1.bias", "backbone.bn1.weight")})
    extra = {f"decode_head.fc.{index}": np.zeros(1) for index in range(7)}
    text = message(state | extra)
    assert "7 unknown to the model: decode_head.fc.0, " in text and "decode_head.fc.4, ..." in text
    assert "decode_head.fc.5" not in text and "missing" not in text
    text = message(state | {"decode_head.se_layer.weight": np.zeros((3, 2), "float32")})
    assert "1 of another shape: decode_head.se_layer.weight (file (3, 2), model (2, 3))" in text
    # The axes count by name, not by what would happen to fit.
    keras_layout = {"backbone.conv1.weight": state["backbone.conv1.weight"].transpose(2, 3, 1, 0)}
    assert "backbone.conv1.weight (file (3, 2, 3, 4), model (4, 3, 3, 2))" in message(state | keras_layout)


def test_read_state_unwraps_and_refuses(tmp_path):
    tensor = FakeTensor(Stored(np.ones(2, "float32")), 0, (2,), (1,))
    bare = {"a.weight": tensor}
    for wrapped in (bare, {"model": bare, "cur_iter": 3}, {"meta": 1, "state_dict": bare}):
        state = weights.read_state(write_zip(tmp_path / "a.pth", wrapped))
        assert list(state) == ["a.weight"] and state["a.weight"].tolist() == [1, 1]
    for wrong in ({"state_dict": {"a": 3}}, {"model": [tensor]}, {}, tensor, {"state_dict": {3: tensor}}):
        with pytest.raises(WeightsError, match="a.pth holds"):
            weights.read_state(write_zip(tmp_path / "a.pth", wrong))
    with pytest.raises(WeightsError, match="choices: .npz, .pth, .pt"):
        weights.read_state(tmp_path / "a.ckpt")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(WeightsError, match="a.npz does not exist"):
        weights.read_state(path)
    np.savez(path, **small_state())
    data = path.read_bytes()
    for content in (b"", data[:100], data[:-40], b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.npz is damaged"):
            weights.read_state(path)
    np.savez(path, a=np.array([print], dtype=object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        weights.read_state(path)


@needs_keys
@pytest.mark.parametrize("head, absent", [("encnet", ""), ("fcn", "decode_head.conv_cat.")])
def test_sss_names_are_mmseg_names_of_equal_shape(head, absent):
    sss, mmseg = (read_keys(KEYS / f"keys_{system}_{head}.txt") for system in ("sss", "mmseg"))
    renamed = {weights.sss_to_mmseg(name, head): shape for name, shape in sss.items()}
    expected = {name: shape for name, shape in mmseg.items() if not absent or not name.startswith(absent)}
    assert renamed.keys() == expected.keys() and len(renamed) == len(sss)
    for name, shape in renamed.items():
        # The auxiliary heads differ in width alone.
        assert shape == expected[name] or name.startswith("auxiliary_head.") and len(shape) == len(expected[name]), name


def test_sss_names_that_are_unknown():
    with pytest.raises(WeightsError, match="'ocr'.*Choices: encnet, fcn"):
        weights.sss_to_mmseg("decoder.1.weight", "ocr")
    for name in ("decoder.10.weight", "decode_head.conv_seg.weight", "bottleneck.2.weight"):
        with pytest.raises(WeightsError, match=f"'{name}'.*decoder.1"):
            weights.sss_to_mmseg(name, "encnet")


def test_sss_checkpoint_loads(tmp_path):
    names = {"backbone_net.conv1": "backbone.conv1", "decoder.0": "decode_head.convs.0.conv",
             "decoder.7": "decode_head.conv_seg", "auxiliary_decoder.4": "auxiliary_head.conv_seg"}
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, [keras.layers.Conv2D(2, 1, name=name)(images) for name in names.values()])
    random = np.random.default_rng(0)
    state = {f"{name}.{weight}": random.normal(size=(2, 3, 1, 1) if weight == "weight" else 2).astype("float32")
             for name in names for weight in ("weight", "bias")}
    np.savez(tmp_path / "a.npz", **state)
    weights.load_checkpoint(model, tmp_path / "a.npz", "fcn")
    for ours, theirs in zip(names.values(), names):
        kernel = np.array(model.get_layer(ours).kernel)
        np.testing.assert_array_equal(kernel[0, 0].T, state[f"{theirs}.weight"][:, :, 0, 0])
    with pytest.raises(WeightsError, match="a.npz: unknown weight of an SSSegmentation encnet model 'decoder.0"):
        weights.load_checkpoint(model, tmp_path / "a.npz", "encnet")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbone_alone(tmp_path, prefix):
    model, state, path = small_model(), small_state(), tmp_path / "a.npz"
    head = {name: np.array(variable) for name, variable in weights.mmseg_names(model).items() if "head" in name}
    bare = {name.removeprefix("backbone."): array for name, array in state.items() if "backbone" in name}
    np.savez(path, **{prefix + name: array for name, array in bare.items()})
    weights.load_backbone(model, path)
    loaded = weights.mmseg_names(model)
    np.testing.assert_array_equal(loaded["backbone.conv1.weight"], bare["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(loaded["backbone.bn1.running_var"], bare["bn1.running_var"])
    assert all(np.array_equal(loaded[name], array) for name, array in head.items())


def test_backbone_lists_are_exact(tmp_path):
    model, path = small_model(), tmp_path / "a.npz"
    state = {name.removeprefix("backbone."): array for name, array in small_state().items() if "backbone" in name}
    kernel = state.pop("conv1.weight")
    np.savez(path, **state, **{"fc.weight": np.zeros((5, 4)), "fc.bias": np.zeros(5)})
    before = values(model)
    for missing, unused, message in [
            ((), ("fc.*",), "1 missing in the file: conv1.weight"),
            (("conv1.weight",), (), "2 unknown to the model: fc.bias, fc.weight"),
            (("conv1.weight",), ("fc.weight",), "1 unknown to the model: fc.bias"),
            (("conv1.weight", "conv2.weight"), ("fc.*",), "missing lists 'conv2.weight'"),
            (("*",), ("fc.*",), r"missing lists '\*', but both file and model have bn1.bias"),
            (("conv1.weight",), ("fc.*", "bn1.weight"), "unused lists 'bn1.weight', but both"),
            (("conv1.weight",), ("fc.*", "f"), "unused lists 'f', which is not among the 2"),
            (("backbone.conv1.weight",), ("fc.*",), "missing lists 'backbone.conv1.weight'")]:
        with pytest.raises(WeightsError, match=message):
            weights.load_backbone(model, path, missing, unused)
        assert unchanged(model, before)
    weights.load_backbone(model, path, ("conv*",), ("fc.weight", "fc.bias"))
    np.testing.assert_array_equal(weights.mmseg_names(model)["backbone.bn1.bias"], state["bn1.bias"])
    np.savez(path, **state, **{"conv1.weight": kernel[:2]})
    with pytest.raises(WeightsError, match=r"conv1.weight \(file \(2, 3, 3, 2\), model \(4, 3, 3, 2\)\)"):
        weights.load_backbone(model, path)
    np.savez(path, **state, **{"conv1.weight": kernel, "backbone.conv1.weight": kernel})
    with pytest.raises(WeightsError, match="both with and without 'backbone.'"):
        weights.load_backbone(model, path)


def bare_resnet18():
    """All weights of a ResNet-18 as unconnected layers."""
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
    missing = ("layer4.0.conv*", "layer4.0.bn*", "layer4.1.*")
    with pytest.raises(WeightsError, match="20 missing in the file: layer4.0.bn1.bias"):
        weights.load_backbone(model, PARTIAL, unused=("fc.*",))
    with pytest.raises(WeightsError, match="but both file and model have layer4.0.downsample.0.weight"):
        weights.load_backbone(model, PARTIAL, missing=("layer4.*",), unused=("fc.*",))
    weights.load_backbone(model, PARTIAL, missing, ("fc.weight", "fc.bias"))
    kernel = np.array(weights.mmseg_names(model)["backbone.conv1.weight"])
    np.testing.assert_array_equal(kernel, np.load(PARTIAL)["conv1.weight"].transpose(2, 3, 1, 0))


def test_keras_weights_round_trip(tmp_path):
    written, model, path = small_model(), small_model(), tmp_path / "a.weights.h5"
    for index, variable in enumerate(written.weights):
        variable.assign(np.full(variable.shape, index + 1))
    written.save_weights(path)
    weights.load_keras(model, path)
    assert unchanged(model, values(written))


def test_keras_weights_that_do_not_fit(tmp_path):
    path, model = tmp_path / "a.weights.h5", small_model()
    before = values(model)
    with pytest.raises(WeightsError, match="a.weights.h5 does not exist"):
        weights.load_keras(model, path)
    with pytest.raises(WeightsError, match="has to end in .weights.h5"):
        weights.load_keras(model, tmp_path / "a.h5")
    small_model(classes=3).save_weights(path)
    with pytest.raises(WeightsError, match=r"decode_head.se_layer \(file .*\(3, 3\).*model .*\(3, 2\)"):
        weights.load_keras(model, path)
    data = path.read_bytes()
    for content in (data[:len(data) // 2], data[:10], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.weights.h5 is damaged"):
            weights.load_keras(model, path)
    # Keras itself takes this file without a word.
    bigger = keras.Model(model.input, keras.layers.Dense(2, name="more")(model.output))
    bigger.save_weights(path)
    with pytest.raises(WeightsError, match="1 unknown to the model: more"):
        weights.load_keras(small_model(), path)
    assert unchanged(model, before)
