"""Weight files of several systems are read into one set of names and layouts."""

import ml_dtypes
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights.foreign_files import read_foreign_checkpoint
from tests.helpers.shared_files import FIXTURES, needs_fixtures
from tests.helpers.torch_writing import FakeTensor, Stored, write_zip


def tensor(values, kind="FloatStorage", key=None):
    """Return a tensor to write, with a storage of its own unless `key` names one."""
    array = np.asarray(values)
    tensor.count += 1
    stored = Stored(array.ravel(), kind, key or str(tensor.count))
    return FakeTensor(stored, 0, array.shape, tuple(stride // array.itemsize for stride in array.strides))


tensor.count = 0


def state_of(*names, value=1.0):
    return {name: tensor(np.full((2, 3), value, "float32")) for name in names}


def test_entries_are_unwrapped_and_counters_removed(tmp_path):
    bare = {**state_of("a.weight"), "a.num_batches_tracked": tensor(np.array(7), "LongStorage")}
    for wrapped in (
        bare,
        {"model": bare, "cur_iter": 3},
        {"meta": 1, "state_dict": bare, "optimizer": {"state": {}}},
        {"model": {"state_dict": bare}},
    ):
        checkpoint = read_foreign_checkpoint(write_zip(tmp_path / "a.pth", wrapped))
        assert list(checkpoint.state) == ["a.weight"] and checkpoint.state["a.weight"].shape == (2, 3)
        assert checkpoint.system == "plain" and checkpoint.notes == []


@pytest.mark.parametrize(
    "contents, message",
    [
        ({}, "no weights: its dict of weights is empty"),
        ({"state_dict": {}}, "no weights: its dict of weights is empty"),
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "only an optimizer's state"),
        ({"state": {0: {"momentum_buffer": 1}}, "param_groups": [{"lr": 0.01}]}, "only an optimizer's state"),
        ({"state_dict": {"a": 3}}, "type int under 'a'"),
        ({"model": [1]}, "type list instead of named weights"),
        ("text", "type str instead of named weights"),
        ({3: tensor(np.ones(2, "float32"))}, "array of shape .* under 3"),
        ({"a": tensor(np.ones(2, "int8"), "CharStorage")}, "a as int8"),
        (
            {"module.a": tensor(np.ones(2, "float32")), "a": tensor(np.ones(2, "float32"))},
            "a both with and without 'mod",
        ),
        ({"a.num_batches_tracked": tensor(np.array(7), "LongStorage")}, "only counters"),
    ],
)
def test_files_without_weights_are_described(tmp_path, contents, message):
    with pytest.raises(WeightsError, match=f"a.pth .*{message}") as caught:
        read_foreign_checkpoint(write_zip(tmp_path / "a.pth", contents))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.ckpt", "a.bin", "a.pth.tar", "a.PTH", "a"])
def test_files_are_known_by_content(tmp_path, name):
    assert list(read_foreign_checkpoint(write_zip(tmp_path / name, state_of("a.weight"))).state) == ["a.weight"]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (b"\n<!DOCTYPE HTML>", "web page"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "PNG picture"),
        (b"plain text", "starts with b'plain text'"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=f"a.ckpt .*{message}"):
        read_foreign_checkpoint(tmp_path / "a.ckpt")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(WeightsError, match="a.npz does not exist"):
        read_foreign_checkpoint(path)
    np.savez(path, a=np.ones(9))
    data = path.read_bytes()
    for content in (b"", data[:100], data[:-40], b"text"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="a.npz is damaged"):
            read_foreign_checkpoint(path)
    np.savez(path, a=np.array([print], dtype=object))
    with pytest.raises(WeightsError, match="allow_pickle"):
        read_foreign_checkpoint(path)


def test_repeated_module_prefixes(tmp_path):
    contents = {"state_dict": state_of("module.module.a.weight", "module.b.weight", "c.bias")}
    path = write_zip(tmp_path / "a.pth", contents)
    assert read_foreign_checkpoint(path).state.keys() == {"a.weight", "b.weight", "c.bias"}


@pytest.mark.parametrize(
    "kind, dtype", [("HalfStorage", "float16"), ("BFloat16Storage", ml_dtypes.bfloat16), ("DoubleStorage", "float64")]
)
def test_other_precisions_become_float32_and_are_noted(tmp_path, kind, dtype):
    numbers = np.array([1.5, -2, 0.1]).astype(dtype)
    contents = {"a": tensor(numbers, kind), "b": tensor(np.ones(2, "float32"))}
    checkpoint = read_foreign_checkpoint(write_zip(tmp_path / "a.pth", contents))
    np.testing.assert_array_equal(checkpoint.state["a"], numbers.astype("float32"), strict=True)
    assert checkpoint.notes == [f"1 weights of type {np.dtype(dtype).name} were converted to float32"]


def read_both_sets(path, contents):
    """Return what is read from a file with two sets of weights: by default, and as the average."""
    write_zip(path, contents)
    return read_foreign_checkpoint(path), read_foreign_checkpoint(path, average=True)


def test_averages_with_mmcvs_prefix(tmp_path):
    """mmcv 0.x stores averages under `ema_` with underscores for dots; it does not average norm statistics."""
    contents = {
        "state_dict": {
            **state_of("backbone.conv_1.weight", "backbone.bn1.running_mean", value=1),
            **state_of("ema_backbone_conv_1_weight", value=2),
        }
    }
    plain, average = read_both_sets(tmp_path / "a.pth", contents)
    assert plain.state.keys() == average.state.keys() == {"backbone.conv_1.weight", "backbone.bn1.running_mean"}
    assert plain.state["backbone.conv_1.weight"][0, 0] == 1 and average.state["backbone.conv_1.weight"][0, 0] == 2
    assert average.state["backbone.bn1.running_mean"][0, 0] == 1
    assert "the plain one was read" in plain.notes[0]
    assert "the one under ema names was read" in average.notes[0]


@pytest.mark.parametrize(
    "names, averaged",
    [
        # PyTorch's reference scripts, and mmengine, which swaps the two sets when it saves.
        (("model", "model_ema", "n_averaged"), 2),
        (("state_dict", "ema_state_dict", "steps"), 1),
    ],
)
def test_averages_in_a_separate_entry(tmp_path, names, averaged):
    plain_entry, average_entry, counter = names
    contents = {
        plain_entry: state_of("a.weight", value=1),
        average_entry: {**state_of("module.a.weight", value=2), counter: tensor(np.array(9), "LongStorage")},
    }
    plain, average = read_both_sets(tmp_path / "a.pth", contents)
    assert plain.state.keys() == average.state.keys() == {"a.weight"}
    assert plain.state["a.weight"][0, 0] == 1 and average.state["a.weight"][0, 0] == averaged
    assert ("mmengine" in plain.notes[0]) == (averaged == 1)


def test_files_with_one_set_of_weights(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"state_dict": state_of("a.weight")})
    with pytest.raises(WeightsError, match="contains no EMA weights"):
        read_foreign_checkpoint(path, average=True)
    for contents in ({"ema_state_dict": state_of("module.a.weight")}, {"model": state_of("ema_a.weight")}):
        checkpoint = read_foreign_checkpoint(write_zip(path, contents))
        assert list(checkpoint.state) == ["a.weight"]
        assert "only EMA weights" in checkpoint.notes[0]


@pytest.mark.parametrize("name", ["conv1.weight", "backbone.stem.0.weight", "backbone_net.stem.0.weight"])
def test_bgr_reverses_only_the_first_kernel(tmp_path, name):
    kernel = np.arange(24, dtype="float32").reshape(2, 3, 2, 2)
    contents = {name: tensor(kernel), "layer1.0.conv1.weight": tensor(kernel)}
    if "net" in name:
        contents = {name: tensor(kernel), "decoder.0.weight": tensor(kernel), "decoder.4.weight": tensor(kernel)}
    checkpoint = read_foreign_checkpoint(write_zip(tmp_path / "a.pth", contents), "BGR")
    reversed_name = name.replace("_net", "")
    for other, array in checkpoint.state.items():
        np.testing.assert_array_equal(array, kernel[:, [2, 1, 0]] if other == reversed_name else kernel)
    assert f"the input channels of {reversed_name} were reversed" in checkpoint.notes[-1]
    with pytest.raises(WeightsError, match="no first convolution with three channels"):
        read_foreign_checkpoint(write_zip(tmp_path / "b.pth", {"layer1.0.conv1.weight": tensor(kernel)}), "BGR")


@pytest.mark.parametrize(
    "names, system",
    [
        (("backbone.conv1.weight", "decode_head.conv_seg.bias"), "mmseg"),
        (("conv1.weight", "fc.weight"), "torchvision"),
        (("backbone.layer1.0.bn1.bias", "head.fc.weight"), "mmpretrain"),
        (("w",), "plain"),
        (("backbone_net.conv1.weight", "decoder.0.weight", "decoder.4.bias"), "sss"),
    ],
)
def test_systems(tmp_path, names, system):
    assert read_foreign_checkpoint(write_zip(tmp_path / "a.pth", state_of(*names))).system == system


def test_unknown_sss_heads_are_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"model": state_of("backbone_net.conv1.weight", "ocr_module.0.weight")})
    with pytest.raises(WeightsError, match="unsupported head; its modules are ocr_module"):
        read_foreign_checkpoint(path)


def test_the_pooled_branch_is_moved_to_the_front(tmp_path):
    """SSSegmentation concatenates the pooled branch last, MMSegmentation first."""
    branches, channels = 3, 4
    # The kernel contains the indices of its input channels: 0..11 for the branches, 12..15 for the pooled branch.
    kernel = np.broadcast_to(np.arange(16, dtype="float32")[None, :, None, None], (6, 16, 3, 3)).copy()
    contents = {
        "backbone_net.conv1.weight": tensor(np.zeros((1, 3, 1, 1), "float32")),
        "aspp_net.bottleneck.0.weight": tensor(kernel),
        "aspp_net.global_branch.1.weight": tensor(np.zeros((channels, 5, 1, 1), "float32")),
    }
    contents |= {
        f"aspp_net.parallel_branches.{index}.0.weight": tensor(np.zeros((channels, 5, 1, 1), "float32"))
        for index in range(branches)
    }
    checkpoint = read_foreign_checkpoint(write_zip(tmp_path / "a.pth", {"model": contents}))
    rotated = checkpoint.state["decode_head.bottleneck.conv.weight"][0, :, 0, 0]
    assert rotated.tolist() == [12, 13, 14, 15, *range(12)]
    assert any("pooled branch last" in note for note in checkpoint.notes)


@needs_fixtures
@pytest.mark.parametrize(
    "path", sorted(FIXTURES.glob("**/model.pth")), ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}"
)
def test_reference_checkpoints(path):
    checkpoint = read_foreign_checkpoint(path)
    assert checkpoint.system == path.parent.parent.name
    assert all(name.startswith(("backbone.", "decode_head.", "auxiliary_head.")) for name in checkpoint.state)
    assert {array.dtype for array in checkpoint.state.values()} == {np.dtype("float32")}


def test_a_dict_that_contains_itself(tmp_path):
    contents = {"meta": 1}
    contents["model"] = contents
    with pytest.raises(WeightsError, match="expected a named array"):
        read_foreign_checkpoint(write_zip(tmp_path / "a.pth", contents))


def test_other_entries_and_prefixes(tmp_path):
    state = state_of("backbone.conv1.weight")
    named = {"model_state_dict": state, "epoch": 3}
    assert set(read_foreign_checkpoint(write_zip(tmp_path / "a.pth", named)).state) == set(state)
    averages = {f"ema_module.{name}": value for name, value in state.items()}
    assert set(read_foreign_checkpoint(write_zip(tmp_path / "b.pth", averages)).state) == set(state)
    with pytest.raises(WeightsError, match="only an optimizer's state"):
        read_foreign_checkpoint(write_zip(tmp_path / "c.pth", {"optimizer_state_dict": {}, "epoch": 1}))


@pytest.mark.parametrize("prefix", ["model.", "student.", "_orig_mod.", "net._orig_mod.", "module.model."])
def test_prefixes_that_all_names_have_are_removed(tmp_path, prefix):
    names = ("backbone.conv1.weight", "decode_head.conv_seg.bias")
    checkpoint = read_foreign_checkpoint(write_zip(tmp_path / "a.pth", state_of(*(prefix + name for name in names))))
    assert checkpoint.state.keys() == set(names) and checkpoint.system == "mmseg"
