"""Weights load strictly by name, and are transposed from PyTorch's layouts."""

from collections import OrderedDict

import keras
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import loading
from tests.helpers.small_models import small_model, small_state, torch_result, unchanged, values
from tests.helpers.torch_writing import FakeTensor, Stored, write_legacy


def test_mmseg_names():
    names = loading.mmseg_names(small_model())
    assert names.keys() == small_state().keys()
    assert names["backbone.bn1.running_var"].path == "backbone.bn1/moving_variance"


def test_mmseg_names_of_an_unknown_weight():
    images = keras.Input((4,))
    model = keras.Model(images, keras.layers.PReLU(name="odd")(images))
    with pytest.raises(WeightsError, match="odd/alpha: unknown weight 'alpha'.*Choices: beta, bias"):
        loading.mmseg_names(model)


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_a_loaded_checkpoint_gives_pytorchs_result(tmp_path, suffix):
    state, model, path = small_state(), small_model(), tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, **state, **{"backbone.bn1.num_batches_tracked": np.array(7)})
    else:
        tensors = OrderedDict()
        for name, array in state.items():
            strides = tuple(stride // 4 for stride in array.strides)
            tensors[name] = FakeTensor(Stored(array.ravel(), key=name), 0, array.shape, strides)
        write_legacy(path, {"meta": {"epoch": 1}, "state_dict": tensors})
    loading.load_checkpoint(model, path, "encnet")
    image = np.random.default_rng(1).normal(size=(3, 5, 6)).astype("float32")
    outputs = model(image.transpose(1, 2, 0)[None], training=False)
    np.testing.assert_allclose(np.array(outputs)[0], torch_result(state, image), rtol=1e-4)


def test_checkpoints_that_do_not_fit_leave_the_model_unchanged(tmp_path):
    model, state = small_model(), small_state()
    before, path = values(model), tmp_path / "a.npz"

    def message(changed):
        np.savez(path, **changed)
        with pytest.raises(WeightsError) as caught:
            loading.load_checkpoint(model, path, "encnet")
        assert unchanged(model, before) and str(path) in str(caught.value).splitlines()[0]
        return str(caught.value)

    text = message({name: array for name, array in state.items() if "backbone.bn1" not in name})
    assert "lacks 4 of the model's 10 weights" in text and "4 weights in the model but not in the file:" in text
    extra = {f"decode_head.enc_module.fc.{index}": np.zeros(index + 1) for index in range(99)}
    text = message(state | extra)
    # The error lists all weights with their shapes.
    assert all(f"    {name} ({index + 1},)\n" in text + "\n" for index, name in enumerate(extra))
    assert "99 weights in the file but not in the model:" in text and "with different shapes" not in text
    text = message(state | {"decode_head.enc_module.encoding.0.scale": np.zeros(9, "float32")})
    assert "1 weights with different shapes:\n    decode_head.enc_module.encoding.0.scale file (9,), model (3,)" in text
    # Shapes are compared in PyTorch's layout, so an array in Keras' layout is refused.
    keras_layout = {"backbone.conv1.weight": state["backbone.conv1.weight"].transpose(2, 3, 1, 0)}
    assert "backbone.conv1.weight file (3, 2, 3, 4), model (4, 3, 3, 2)" in message(state | keras_layout)
    text = message(
        state | {"decode_head.se_layer.bias": np.array([np.inf, 1]), "backbone.bn1.weight": np.array([1, 1, np.nan, 1])}
    )
    assert "non-finite values in 2 weights: backbone.bn1.weight, decode_head.se_layer.bias" in text


def write_state(state, path):
    """Write a state in PyTorch's layout as .npz, or as the .weights.h5 file of a model with these weights."""
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        classes = len(state["decode_head.se_layer.bias"])
        np.savez(path.with_suffix(".npz"), **state)
        model = small_model(classes)
        loading.load_checkpoint(model, path.with_suffix(".npz"), "encnet")
        model.save_weights(path)
    return path


@pytest.mark.parametrize("name", ["a.npz", "a.weights.h5"])
def test_skip_applies_to_both_sides_and_to_other_shapes(tmp_path, name):
    path, model, state = tmp_path / name, small_model(), small_state(classes=5)
    before = {name: np.array(variable) for name, variable in loading.mmseg_names(model).items()}
    write_state(state, path)
    for skip, message in [
        ((), "has 5 classes"),
        (("decode_head.se_layer.weight",), "se_layer.bias"),
        (("decode_head.se_layer.*", "backbone.conv2.weight"), "init.skip lists 'backbone.conv2.weight'"),
        (("decode_head.se_layer.*", "backbone.conv"), "init.skip lists 'backbone.conv'"),
    ]:
        with pytest.raises(WeightsError, match=message):
            loading.load_checkpoint(model, path, "encnet", skip)
        assert all(np.array_equal(before[name], variable) for name, variable in loading.mmseg_names(model).items())
    # Weights that would fit may be skipped, too.
    notes = loading.load_checkpoint(model, path, "encnet", ("decode_head.se_layer.*", "backbone.bn1.bias"))
    after = loading.mmseg_names(model)
    for name in ("decode_head.se_layer.weight", "decode_head.se_layer.bias", "backbone.bn1.bias"):
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(after["backbone.bn1.weight"], state["backbone.bn1.weight"])
    assert notes == [
        "7 of the model's 10 weights were loaded",
        "init.skip skipped 3: backbone.bn1.bias, decode_head.se_layer.bias, decode_head.se_layer.weight",
    ]


def test_skip_of_weights_on_one_side(tmp_path):
    model, state = small_model(), small_state()
    state["decode_head.new"] = state.pop("backbone.bn1.bias")
    np.savez(tmp_path / "a.npz", **state)
    for skip in ((), ("decode_head.new",), ("backbone.bn1.bias",)):
        with pytest.raises(WeightsError, match="backbone.bn1.bias|decode_head.new"):
            loading.load_checkpoint(model, tmp_path / "a.npz", "encnet", skip)
    loading.load_checkpoint(model, tmp_path / "a.npz", "encnet", ("decode_head.new", "backbone.bn1.b*"))
    np.testing.assert_array_equal(
        loading.mmseg_names(model)["backbone.bn1.running_var"], state["backbone.bn1.running_var"]
    )


@pytest.mark.parametrize("name", ["a.npz", "a.weights.h5"])
def test_bgr_checkpoints_give_the_same_result_for_rgb_images(tmp_path, name):
    state, model, path = small_state(), small_model(), tmp_path / name
    write_state(state, path)
    loading.load_checkpoint(model, path, "encnet", channels="BGR")
    rgb = np.random.default_rng(1).normal(size=(3, 5, 6)).astype("float32")
    outputs = model(rgb.transpose(1, 2, 0)[None], training=False)
    np.testing.assert_allclose(np.array(outputs)[0], torch_result(state, rgb[::-1]), rtol=1e-4)


def test_sss_checkpoint_loads(tmp_path):
    names = {
        "backbone_net.conv1": "backbone.conv1",
        "decoder.0": "decode_head.convs.0.conv",
        "decoder.7": "decode_head.conv_seg",
        "auxiliary_decoder.4": "auxiliary_head.conv_seg",
    }
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, [keras.layers.Conv2D(2, 1, name=name)(images) for name in names.values()])
    random = np.random.default_rng(0)
    state = {
        f"{name}.{weight}": random.normal(size=(2, 3, 1, 1) if weight == "weight" else 2).astype("float32")
        for name in names
        for weight in ("weight", "bias")
    }
    np.savez(tmp_path / "a.npz", **state)
    loading.load_checkpoint(model, tmp_path / "a.npz", "fcn")
    for ours, theirs in zip(names.values(), names):
        kernel = np.array(model.get_layer(ours).kernel)
        np.testing.assert_array_equal(kernel[0, 0].T, state[f"{theirs}.weight"][:, :, 0, 0])
    # The names themselves tell the head.
    with pytest.raises(WeightsError, match="a.npz has the head fcn.*model.head=encnet"):
        loading.load_checkpoint(keras.Model(model.input, model.outputs[:1]), tmp_path / "a.npz", "encnet")


def test_keras_weights_round_trip(tmp_path):
    written, model, path = small_model(), small_model(), tmp_path / "a.weights.h5"
    for index, variable in enumerate(written.weights):
        variable.assign(np.full(variable.shape, index + 1))
    written.save_weights(path)
    loading.load_keras(model, path)
    assert unchanged(model, values(written))


def test_keras_weights_that_do_not_fit(tmp_path):
    path, model = tmp_path / "a.weights.h5", small_model()
    before = values(model)
    with pytest.raises(WeightsError, match="a.weights.h5 does not exist"):
        loading.load_keras(model, path)
    np.savez(tmp_path / "b.weights.h5", a=np.ones(2))
    with pytest.raises(WeightsError, match="b.weights.h5.npz is not a Keras weights file but one of the kind npz"):
        loading.load_keras(model, tmp_path / "b.weights.h5.npz")
    small_model(classes=3).save_weights(path)
    with pytest.raises(WeightsError, match=r"decode_head.se_layer.weight file \(3, 3\), model \(2, 3\)"):
        loading.load_keras(model, path)
    data = path.read_bytes()
    for content in (data[: len(data) // 2], data[:10], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.weights.h5 is damaged"):
            loading.load_keras(model, path)
    # Keras' own loader accepts this file silently.
    bigger = keras.Model(model.input, keras.layers.Dense(2, name="more")(model.output))
    bigger.save_weights(path)
    with pytest.raises(WeightsError, match="2 weights in the file but not in the model:\n    more.0"):
        loading.load_keras(small_model(), path)
    assert unchanged(model, before)


def test_classifiers_that_are_loaded():
    assert loading.loaded_classifiers(small_model(), ()) == ["decode_head.se_layer"]
    assert loading.loaded_classifiers(small_model(), ("decode_head.*",)) == []


def test_entries_of_skip_cover_what_does_not_fit():
    model = {"a.b.weight": (1,), "a.b.bias": (1,), "a.c.weight": (2,), "d.weight": (3,), "e.f.weight": (1,), "g": (1,)}
    file = model | {"a.c.weight": (9,)}
    assert loading.skip_patterns(model, file, set()) == ["a.c.*"]
    # Whole modules that are missing on one side, a single weight beside one that fits, and what is skipped already.
    assert (
        loading.skip_patterns(
            model,
            {name: model[name] for name in ("a.b.bias", "a.c.weight", "d.weight", "g")} | {"x.y.weight": (1,)},
            {"g"},
        )
        == []
    )
    del file["a.b.weight"], file["e.f.weight"]
    file["a.c.weight"] = (2,)
    assert loading.skip_patterns(model, file, set()) == ["a.b.weight", "e.*"]
    assert loading.skip_patterns(model, model, {"g"}) == ["g"]
    # Too little fits.
    assert loading.skip_patterns(model, {"d.weight": (3,)}, set()) == []
