"""Weight files: the restricted PyTorch reader, the name and layout tables, and strict loading."""

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import keras
import ml_dtypes
import numpy as np
import pytest

from kseg import torch_files, weights
from kseg.errors import WeightsError

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
FIXTURES = SHARED / "fixtures"
KEYS = SHARED / "reference" / "keys"
PARTIAL = SHARED / "data" / "weights" / "resnet18_imagenet_partial.npz"
CHECKPOINTS = sorted(FIXTURES.glob("**/model.pth"))
needs_fixtures = pytest.mark.skipif(not CHECKPOINTS, reason=f"no reference checkpoints below {FIXTURES}")
needs_keys = pytest.mark.skipif(not KEYS.is_dir(), reason=f"no reference key lists in {KEYS}")
needs_partial = pytest.mark.skipif(not PARTIAL.is_file(), reason=f"no file {PARTIAL}")


# === A small writer of both containers, after the layout that torch.save documents ===

class Stored:
    """A storage: a flat array, its PyTorch type, its key, and for legacy files a view (key, start, length)."""

    def __init__(self, array, kind="FloatStorage", key="0", view=None, declared=None):
        self.array, self.kind, self.key, self.view = array, kind, key, view
        self.declared = len(array) if declared is None else declared


class FakeTensor:
    def __init__(self, stored, offset, size, stride, function="_rebuild_tensor_v2"):
        self.arguments = (stored, offset, size, stride)
        self.function = function

    def __reduce__(self):
        extra = () if self.function == "_rebuild_tensor" else (False, OrderedDict())
        return getattr(sys.modules["torch._utils"], self.function), (*self.arguments, *extra)


class FakeParameter:
    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_parameter, (self.tensor, True, OrderedDict())


class FakePickler(pickle.Pickler):
    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy, self.seen = legacy, {}

    def persistent_id(self, value):
        if not isinstance(value, Stored):
            return None
        self.seen[value.key] = value
        identifier = ("storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", value.declared)
        return identifier + (value.view,) if self.legacy else identifier


@contextlib.contextmanager
def fake_torch():
    """Stand-ins for PyTorch's names, so that pickle can write them."""
    torch, functions = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in (*torch_files.STORAGE_DTYPES, "QInt8Storage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        def function():
            raise AssertionError("only its name is used")
        function.__module__, function.__name__, function.__qualname__ = "torch._utils", name, name
        setattr(functions, name, function)
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": functions}):
        yield


def write_zip(path, value, byteorder="little"):
    with fake_torch(), zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        pickler = FakePickler(buffer, legacy=False)
        pickler.dump(value)
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/version", "3\n")
        for key, stored in pickler.seen.items():
            array = stored.array.byteswap() if byteorder == "big" else stored.array
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, value):
    with fake_torch(), open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, protocol=2)
        pickler = FakePickler(file, legacy=True)
        pickler.dump(value)
        pickle.dump(sorted(pickler.seen), file, protocol=2)
        for key in sorted(pickler.seen):
            array = pickler.seen[key].array
            file.write(struct.pack("<q", len(array)) + array.tobytes())
    return path


both_containers = pytest.mark.parametrize("write", [write_zip, write_legacy])


# === kseg.torch_files ===

@both_containers
def test_offset_size_and_stride_are_honoured(tmp_path, write):
    stored = Stored(np.arange(24, dtype="float32"))
    value = {
        "matrix": FakeTensor(stored, 2, (2, 3), (3, 1)),
        "transposed": FakeTensor(stored, 2, (3, 2), (1, 3)),
        "skipping": FakeTensor(stored, 1, (3,), (5,), "_rebuild_tensor"),
        "repeated": FakeTensor(stored, 7, (2, 2), (0, 1)),
        "scalar": FakeTensor(stored, 23, (), ()),
        "one": FakeTensor(stored, 23, (1, 1), (10**30, 7)),
        "empty": FakeTensor(stored, 0, (0, 4), (4, 1)),
        "parameter": FakeParameter(FakeTensor(stored, 0, (2,), (1,))),
    }
    read = torch_files.read(write(tmp_path / "a.pth", value))
    expected = {"matrix": [[2, 3, 4], [5, 6, 7]], "transposed": [[2, 5], [3, 6], [4, 7]], "skipping": [1, 6, 11],
                "repeated": [[7, 8], [7, 8]], "scalar": 23, "one": [[23]], "empty": np.zeros((0, 4)),
                "parameter": [0, 1]}
    assert read.keys() == expected.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(array, np.array(expected[name], "float32"), strict=True)
        assert array.flags.c_contiguous and array.flags.owndata and array.flags.writeable, name
    read["matrix"][:] = -1
    assert read["skipping"][1] == 6


@both_containers
@pytest.mark.parametrize("kind, numbers", [
    ("DoubleStorage", np.array([1.5, -2], "float64")), ("FloatStorage", np.array([1.5, -2], "float32")),
    ("HalfStorage", np.array([1.5, -2], "float16")), ("BFloat16Storage", np.array([1.5, -2], ml_dtypes.bfloat16)),
    ("LongStorage", np.array([2**40, -2], "int64")), ("IntStorage", np.array([2**20, -2], "int32")),
    ("ShortStorage", np.array([300, -2], "int16")), ("CharStorage", np.array([3, -2], "int8")),
    ("ByteStorage", np.array([3, 254], "uint8")), ("BoolStorage", np.array([True, False])),
])
def test_every_dtype(tmp_path, write, kind, numbers):
    path = write(tmp_path / "a.pth", [FakeTensor(Stored(numbers, kind), 0, (2,), (1,))])
    np.testing.assert_array_equal(torch_files.read(path)[0], numbers, strict=True)


@pytest.mark.parametrize("kind, numbers", [
    ("FloatStorage", np.array([1.5, -2], "float32")), ("BFloat16Storage", np.array([1.5, -2], ml_dtypes.bfloat16))])
def test_big_endian_zip(tmp_path, kind, numbers):
    stored = Stored(numbers, kind)
    if kind == "BFloat16Storage":  # numpy cannot swap its bytes
        stored.array = numbers.view("uint16")
    path = write_zip(tmp_path / "a.pth", [FakeTensor(stored, 0, (2,), (1,))], byteorder="big")
    np.testing.assert_array_equal(torch_files.read(path)[0], numbers, strict=True)


def test_bfloat16_bits(tmp_path):
    """1.0 is 0x3f80 in bfloat16, the upper half of its float32."""
    stored = Stored(np.array([0x3F80, 0xC000], "uint16"), "BFloat16Storage")
    array = torch_files.read(write_zip(tmp_path / "a.pth", FakeTensor(stored, 0, (2,), (1,))))
    assert array.dtype == ml_dtypes.bfloat16 and array.astype("float32").tolist() == [1.0, -2.0]


def test_legacy_view_of_a_storage(tmp_path):
    stored = Stored(np.arange(10, dtype="float32"), view=("1", 4, 3))
    array = torch_files.read(write_legacy(tmp_path / "a.pth", FakeTensor(stored, 1, (2,), (1,))))
    assert array.tolist() == [5, 6]
    for view, offset in ((("1", 4, 3), 2), (("1", 8, 3), 0), (("1", -1, 3), 0)):
        stored.view = view
        path = write_legacy(tmp_path / "b.pth", FakeTensor(stored, offset, (2,), (1,)))
        with pytest.raises(WeightsError, match="b.pth"):
            torch_files.read(path)


@both_containers
def test_plain_values_and_attributes_of_state_dicts(tmp_path, write):
    state = OrderedDict(weight=FakeTensor(Stored(np.ones(2, "float32")), 0, (2,), (1,)))
    state._metadata = OrderedDict({"": {"version": 1}})  # PyTorch's modules leave this on every state dict.
    meta = {"classes": ("road", "sky"), "palette": [[1, 2, 3]], "epoch": 3, "lr": 0.1, "none": None, "set": {1, 2},
            "raw": b"\xff\x00", "number": np.float32(0.5), "count": np.int64(7), "truth": np.bool_(True)}
    meta["itself"] = meta["palette"]
    read = torch_files.read(write(tmp_path / "a.pth", {"meta": meta, "state_dict": state}))
    assert read["meta"] == meta
    assert type(read["meta"]["number"]) is np.float32 and read["meta"]["itself"] is read["meta"]["palette"]
    assert type(read["state_dict"]) is dict and read["state_dict"]["weight"].tolist() == [1, 1]


class Calling:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@both_containers
def test_malicious_pickles_run_nothing(tmp_path, write):
    marker = tmp_path / "marker"
    for call, name in ((Calling(os.system, f"touch {marker}"), "posix.system"),
                       (Calling(eval, f"open({str(marker)!r}, 'w')"), "eval"),
                       (Calling(getattr, OrderedDict, "fromkeys"), "getattr")):
        with pytest.raises(WeightsError, match=rf"evil.pth is refused: .*{name}"):
            torch_files.read(write(tmp_path / "evil.pth", {"state_dict": call}))
        assert not marker.exists()


@pytest.mark.parametrize("program, message", [
    (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", "OrderedDict.fromkeys"),
    (b"\x80\x02ccollections\nOrderedDict\n}b.", "tries to change OrderedDict"),
    (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls a storage type"),
    (b"\x80\x02ccollections\nOrderedDict\n.", "holds OrderedDict as a value"),
    (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "numpy scalar of type 'O'"),
    (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00OX\x03\x00\x00\x00hex\x86R.", "encodes text as 'hex'"),
    (b"\x80\x02X\x06\x00\x00\x00moduleQ.", "other than a storage"),
    (b"\x80\x02}r\xff\xff\xff\x7f.", "memo index 2147483647"),
])
def test_hand_written_programs_are_refused(tmp_path, program, message):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(WeightsError, match=message):
        torch_files.read(path)


@both_containers
@pytest.mark.parametrize("offset, size, stride", [
    (0, (7,), (1,)), (6, (1,), (1,)), (0, (2, 2), (5, 1)), (-1, (1,), (1,)), (0, (2,), (-1,)), (0, (-1,), (1,)),
    (0, (2**62,), (2**62,)), (0, (10**12,), (0,)), (0, (2, 2), (1,)), (0.0, (1,), (1,)), (0, (2,), (2**70,)),
    (True, (1,), (1,)), (0, 3, 1),
])
def test_tensors_beyond_their_storage_are_refused(tmp_path, write, offset, size, stride):
    path = write(tmp_path / "a.pth", FakeTensor(Stored(np.zeros(6, "float32")), offset, size, stride))
    with pytest.raises(WeightsError, match="a.pth is damaged"):
        torch_files.read(path)


@both_containers
def test_every_truncation_is_refused(tmp_path, write):
    value = {"a": FakeTensor(Stored(np.arange(6, dtype="float32")), 0, (6,), (1,)), "b": "text"}
    data = write(tmp_path / "whole.pth", value).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match="cut.pth"):
            torch_files.read(path)


@both_containers
def test_wrong_lengths_and_types_of_storages_are_refused(tmp_path, write):
    longer = Stored(np.zeros(6, "float32"), declared=7)
    for stored in (longer, Stored(np.zeros(6, "int8"), "QInt8Storage")):
        with pytest.raises(WeightsError):
            torch_files.read(write(tmp_path / "a.pth", FakeTensor(stored, 0, (6,), (1,))))


@pytest.mark.parametrize("content, message", [
    (b"", "starts with b''"), (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYPE"),
    (pickle.dumps({"a": 1}, 2), "magic number"), (b"x" * 257 + b"ustar" + b"x" * 300, "tar file"),
    (b"PK\x03\x04 and no more", "damaged or incomplete"),
])
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"other.pth .*{message}"):
        torch_files.read(path)


def test_other_zips_and_missing_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme", "text")
    with pytest.raises(WeightsError, match="no PyTorch checkpoint"):
        torch_files.read(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="none.pth cannot be read"):
        torch_files.read(tmp_path / "none.pth")


@needs_fixtures
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_reference_checkpoints(path):
    """Names and shapes agree with the original's gradients and, for ResNet-50, with the original's key list."""
    state = weights.read_state(path)
    assert {array.dtype for array in state.values()} == {np.dtype("float32")}
    assert all(np.isfinite(array).all() and array.flags.owndata for array in state.values())
    statistics = (".running_mean", ".running_var")
    assert all((array > 0).all() for name, array in state.items() if name.endswith(".running_var"))
    if (path.parent / "grads.json").is_file():
        gradients = json.loads((path.parent / "grads.json").read_text()).keys() - {"_note"}
        assert gradients == {name for name in state if not name.endswith(statistics)}
    system, case = path.parent.parent.name, path.parent.name
    keys = KEYS / f"keys_{system}_{case.removesuffix('_ac').removesuffix('_r50_d8')}.txt"
    if "_r50_d8" in case and keys.is_file():
        expected = read_keys(keys)
        assert state.keys() == expected.keys()
        for name, shape in expected.items():
            assert len(state[name].shape) == len(shape) and state[name].shape[2:] == shape[2:], name
    assert "torch" not in sys.modules


def read_keys(path):
    """Return the shapes of a key list by name, without the step counters."""
    lines = [line.split("\t") for line in path.read_text().splitlines() if not line.startswith("#")]
    shapes = {name: tuple(int(number) for number in shape.strip("()").split(",") if number.strip())
              for name, shape, _ in lines}
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


# === kseg.weights ===

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
