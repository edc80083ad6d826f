"""What the files of several systems hold, read into one set of names."""

import ml_dtypes
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights.foreign_files import read_checkpoint
from tests.helpers.shared_files import FIXTURES, needs_fixtures
from tests.helpers.torch_writing import FakeTensor, Stored, write_zip


def tensor(values, kind="FloatStorage", key=None):
    """A tensor to be written; the key of its storage is its own unless named."""
    array = np.asarray(values)
    tensor.count += 1
    stored = Stored(array.ravel(), kind, key or str(tensor.count))
    return FakeTensor(stored, 0, array.shape, tuple(stride // array.itemsize for stride in array.strides))


tensor.count = 0


def state_of(*names, value=1.0):
    return {name: tensor(np.full((2, 3), value, "float32")) for name in names}


def test_entries_are_unwrapped_and_counters_left_out(tmp_path):
    bare = {**state_of("a.weight"), "a.num_batches_tracked": tensor(np.array(7), "LongStorage")}
    for wrapped in (bare, {"model": bare, "cur_iter": 3}, {"meta": 1, "state_dict": bare, "optimizer": {"state": {}}},
                    {"model": {"state_dict": bare}}):
        checkpoint = read_checkpoint(write_zip(tmp_path / "a.pth", wrapped))
        assert list(checkpoint.state) == ["a.weight"] and checkpoint.state["a.weight"].shape == (2, 3)
        assert checkpoint.system == "plain" and checkpoint.notes == []


@pytest.mark.parametrize("contents, message", [
    ({}, "holds no weights: its dict of them is empty"), ({"state_dict": {}}, "holds no weights: its dict"),
    ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "holds an optimizer's state only"),
    ({"state": {0: {"momentum_buffer": 1}}, "param_groups": [{"lr": 0.01}]}, "holds an optimizer's state only"),
    ({"state_dict": {"a": 3}}, "holds 'a', a int"), ({"model": [1]}, "holds no named weights but a list"),
    ("text", "holds no named weights but a str"), ({3: tensor(np.ones(2, "float32"))}, "holds 3, an array of shape"),
    ({"a": tensor(np.ones(2, "int8"), "CharStorage")}, "holds a as int8; weights are floating numbers"),
    ({"module.a": tensor(np.ones(2, "float32")), "a": tensor(np.ones(2, "float32"))}, "a both with and without 'mod"),
    ({"a.num_batches_tracked": tensor(np.array(7), "LongStorage")}, "holds no weights, only counters"),
])
def test_files_without_weights_are_named_for_what_they_are(tmp_path, contents, message):
    with pytest.raises(WeightsError, match=f"a.pth .*{message}") as caught:
        read_checkpoint(write_zip(tmp_path / "a.pth", contents))
    assert "\n" not in str(caught.value)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="unknown suffix '.ckpt'; choices: .npz, .pth, .pt, .h5"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(WeightsError, match="a.npz does not exist"):
        read_checkpoint(path)
    np.savez(path, a=np.ones(9))
    data = path.read_bytes()
    for content in (b"", data[:100], data[:-40], b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.npz is damaged"):
            read_checkpoint(path)
    np.savez(path, a=np.array([print], dtype=object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        read_checkpoint(path)


def test_module_prefixes_of_any_number(tmp_path):
    contents = {"state_dict": state_of("module.module.a.weight", "module.b.weight", "c.bias")}
    path = write_zip(tmp_path / "a.pth", contents)
    assert read_checkpoint(path).state.keys() == {"a.weight", "b.weight", "c.bias"}


@pytest.mark.parametrize("kind, dtype", [("HalfStorage", "float16"), ("BFloat16Storage", ml_dtypes.bfloat16),
                                         ("DoubleStorage", "float64")])
def test_other_precisions_become_float32_and_are_named(tmp_path, kind, dtype):
    numbers = np.array([1.5, -2, 0.1]).astype(dtype)
    contents = {"a": tensor(numbers, kind), "b": tensor(np.ones(2, "float32"))}
    checkpoint = read_checkpoint(write_zip(tmp_path / "a.pth", contents))
    np.testing.assert_array_equal(checkpoint.state["a"], numbers.astype("float32"), strict=True)
    assert checkpoint.notes == [f"1 weights of type {np.dtype(dtype).name} were converted to float32"]


def sets(path, contents):
    """What is read of two sets of weights: by default, and when the average is asked for."""
    write_zip(path, contents)
    return read_checkpoint(path), read_checkpoint(path, average=True)


def test_averages_beside_the_weights_in_mmcvs_names(tmp_path):
    """mmcv 0.x: a second set under `ema_`, with underscores for points; statistics of norms stand once."""
    contents = {"state_dict": {**state_of("backbone.conv_1.weight", "backbone.bn1.running_mean", value=1),
                               **state_of("ema_backbone_conv_1_weight", value=2)}}
    plain, average = sets(tmp_path / "a.pth", contents)
    assert plain.state.keys() == average.state.keys() == {"backbone.conv_1.weight", "backbone.bn1.running_mean"}
    assert plain.state["backbone.conv_1.weight"][0, 0] == 1 and average.state["backbone.conv_1.weight"][0, 0] == 2
    assert average.state["backbone.bn1.running_mean"][0, 0] == 1
    assert "a second set of weights under ema names; the plain one" in plain.notes[0]
    assert "the one under ema names was read" in average.notes[0]


@pytest.mark.parametrize("names, averaged", [
    # PyTorch's reference scripts; mmengine, which exchanges the two sets when it saves.
    (("model", "model_ema", "n_averaged"), 2), (("state_dict", "ema_state_dict", "steps"), 1)])
def test_averages_in_an_entry_of_their_own(tmp_path, names, averaged):
    own, average_entry, counter = names
    contents = {own: state_of("a.weight", value=1), average_entry: {
        **state_of("module.a.weight", value=2), counter: tensor(np.array(9), "LongStorage")}}
    plain, average = sets(tmp_path / "a.pth", contents)
    assert plain.state.keys() == average.state.keys() == {"a.weight"}
    assert plain.state["a.weight"][0, 0] == 1 and average.state["a.weight"][0, 0] == averaged
    assert ("which mmengine saves as state_dict" in plain.notes[0]) == (averaged == 1)


def test_one_set_of_weights(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"state_dict": state_of("a.weight")})
    with pytest.raises(WeightsError, match="holds one set of weights, no average beside it"):
        read_checkpoint(path, average=True)
    for contents in ({"ema_state_dict": state_of("module.a.weight")}, {"model": state_of("ema_a.weight")}):
        checkpoint = read_checkpoint(write_zip(path, contents))
        assert list(checkpoint.state) == ["a.weight"]
        assert "no weights but those under an ema name" in checkpoint.notes[0]


@pytest.mark.parametrize("name", ["conv1.weight", "backbone.stem.0.weight", "backbone_net.stem.0.weight"])
def test_bgr_reverses_the_first_kernel_alone(tmp_path, name):
    kernel = np.arange(24, dtype="float32").reshape(2, 3, 2, 2)
    contents = {name: tensor(kernel), "layer1.0.conv1.weight": tensor(kernel)}
    if "net" in name:
        contents = {name: tensor(kernel), "decoder.0.weight": tensor(kernel), "decoder.4.weight": tensor(kernel)}
    checkpoint = read_checkpoint(write_zip(tmp_path / "a.pth", contents), "BGR")
    reversed_name = name.replace("_net", "")
    for other, array in checkpoint.state.items():
        np.testing.assert_array_equal(array, kernel[:, [2, 1, 0]] if other == reversed_name else kernel)
    assert f"the input channels of {reversed_name} were reversed" in checkpoint.notes[-1]
    with pytest.raises(WeightsError, match="has no first convolution of three channels"):
        read_checkpoint(write_zip(tmp_path / "b.pth", {"layer1.0.conv1.weight": tensor(kernel)}), "BGR")


@pytest.mark.parametrize("names, system", [
    (("backbone.conv1.weight", "decode_head.conv_seg.bias"), "mmseg"), (("conv1.weight", "fc.weight"), "torchvision"),
    (("backbone.layer1.0.bn1.bias", "head.fc.weight"), "mmpretrain"), (("w",), "plain"),
    (("backbone_net.conv1.weight", "decoder.0.weight", "decoder.4.bias"), "sss")])
def test_systems(tmp_path, names, system):
    assert read_checkpoint(write_zip(tmp_path / "a.pth", state_of(*names))).system == system


def test_unknown_sss_heads_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"model": state_of("backbone_net.conv1.weight", "ocr_module.0.weight")})
    with pytest.raises(WeightsError, match="SSSegmentation head that is unknown here; its modules are ocr_module"):
        read_checkpoint(path)


def test_the_pooled_branch_comes_first(tmp_path):
    """SSSegmentation concatenates the branches and then the picture's mean, MMSegmentation the mean first."""
    branches, channels = 3, 4
    # Each input channel of the bottleneck holds its own number: 0..11 of the branches, 12..15 of the mean.
    kernel = np.broadcast_to(np.arange(16, dtype="float32")[None, :, None, None], (6, 16, 3, 3)).copy()
    contents = {"backbone_net.conv1.weight": tensor(np.zeros((1, 3, 1, 1), "float32")),
                "aspp_net.bottleneck.0.weight": tensor(kernel),
                "aspp_net.global_branch.1.weight": tensor(np.zeros((channels, 5, 1, 1), "float32"))}
    contents |= {f"aspp_net.parallel_branches.{index}.0.weight": tensor(np.zeros((channels, 5, 1, 1), "float32"))
                 for index in range(branches)}
    checkpoint = read_checkpoint(write_zip(tmp_path / "a.pth", {"model": contents}))
    turned = checkpoint.state["decode_head.bottleneck.conv.weight"][0, :, 0, 0]
    assert turned.tolist() == [12, 13, 14, 15, *range(12)]
    assert any("pooled branch last" in note for note in checkpoint.notes)


@needs_fixtures
@pytest.mark.parametrize("path", sorted(FIXTURES.glob("**/model.pth")),
                         ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_reference_checkpoints(path):
    checkpoint = read_checkpoint(path)
    assert checkpoint.system == path.parent.parent.name
    assert all(name.startswith(("backbone.", "decode_head.", "auxiliary_head.")) for name in checkpoint.state)
    assert {array.dtype for array in checkpoint.state.values()} == {np.dtype("float32")}


def test_a_dict_within_itself_ends(tmp_path):
    contents = {"meta": 1}
    contents["model"] = contents
    with pytest.raises(WeightsError, match="expected a named array"):
        read_checkpoint(write_zip(tmp_path / "a.pth", contents))


def test_other_entries_and_prefixes(tmp_path):
    state = state_of("backbone.conv1.weight")
    named = {"model_state_dict": state, "epoch": 3}
    assert set(read_checkpoint(write_zip(tmp_path / "a.pth", named)).state) == set(state)
    only = {f"ema_module.{name}": value for name, value in state.items()}
    assert set(read_checkpoint(write_zip(tmp_path / "b.pth", only)).state) == set(state)
    with pytest.raises(WeightsError, match="holds an optimizer's state only"):
        read_checkpoint(write_zip(tmp_path / "c.pth", {"optimizer_state_dict": {}, "epoch": 1}))
