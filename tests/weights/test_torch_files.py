"""The restricted PyTorch reader: both containers, damaged files and malicious files."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import torch_files
from tests.helpers.running import ROOT
from tests.helpers.shared_files import FIXTURES, KEYS, needs_fixtures, read_keys
from tests.helpers.torch_writing import FakeParameter, FakeTensor, Stored, both_containers, write_legacy, write_zip

CHECKPOINTS = sorted(FIXTURES.glob("**/model.pth"))


@both_containers
def test_offset_size_and_stride_are_respected(tmp_path, write):
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
    read = torch_files.read_torch_file(write(tmp_path / "a.pth", value))
    expected = {
        "matrix": [[2, 3, 4], [5, 6, 7]],
        "transposed": [[2, 5], [3, 6], [4, 7]],
        "skipping": [1, 6, 11],
        "repeated": [[7, 8], [7, 8]],
        "scalar": 23,
        "one": [[23]],
        "empty": np.zeros((0, 4)),
        "parameter": [0, 1],
    }
    assert read.keys() == expected.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(array, np.array(expected[name], "float32"), strict=True)
        assert array.flags.c_contiguous and array.flags.owndata and array.flags.writeable, name
    read["matrix"][:] = -1
    assert read["skipping"][1] == 6


@both_containers
@pytest.mark.parametrize(
    "kind, numbers",
    [
        ("DoubleStorage", np.array([1.5, -2], "float64")),
        ("FloatStorage", np.array([1.5, -2], "float32")),
        ("HalfStorage", np.array([1.5, -2], "float16")),
        ("BFloat16Storage", np.array([1.5, -2], ml_dtypes.bfloat16)),
        ("LongStorage", np.array([2**40, -2], "int64")),
        ("IntStorage", np.array([2**20, -2], "int32")),
        ("ShortStorage", np.array([300, -2], "int16")),
        ("CharStorage", np.array([3, -2], "int8")),
        ("ByteStorage", np.array([3, 254], "uint8")),
        ("BoolStorage", np.array([True, False])),
    ],
)
def test_every_dtype(tmp_path, write, kind, numbers):
    path = write(tmp_path / "a.pth", [FakeTensor(Stored(numbers, kind), 0, (2,), (1,))])
    np.testing.assert_array_equal(torch_files.read_torch_file(path)[0], numbers, strict=True)


@pytest.mark.parametrize(
    "kind, numbers",
    [("FloatStorage", np.array([1.5, -2], "float32")), ("BFloat16Storage", np.array([1.5, -2], ml_dtypes.bfloat16))],
)
def test_big_endian_zip(tmp_path, kind, numbers):
    stored = Stored(numbers, kind)
    if kind == "BFloat16Storage":  # NumPy cannot swap its bytes.
        stored.array = numbers.view("uint16")
    path = write_zip(tmp_path / "a.pth", [FakeTensor(stored, 0, (2,), (1,))], byteorder="big")
    np.testing.assert_array_equal(torch_files.read_torch_file(path)[0], numbers, strict=True)


def test_bfloat16_bits(tmp_path):
    # 1.0 is 0x3f80 in bfloat16, the upper half of its float32 representation.
    stored = Stored(np.array([0x3F80, 0xC000], "uint16"), "BFloat16Storage")
    array = torch_files.read_torch_file(write_zip(tmp_path / "a.pth", FakeTensor(stored, 0, (2,), (1,))))
    assert array.dtype == ml_dtypes.bfloat16 and array.astype("float32").tolist() == [1.0, -2.0]


def test_legacy_view_of_a_storage(tmp_path):
    stored = Stored(np.arange(10, dtype="float32"), view=("1", 4, 3))
    array = torch_files.read_torch_file(write_legacy(tmp_path / "a.pth", FakeTensor(stored, 1, (2,), (1,))))
    assert array.tolist() == [5, 6]
    for view, offset in ((("1", 4, 3), 2), (("1", 8, 3), 0), (("1", -1, 3), 0)):
        stored.view = view
        path = write_legacy(tmp_path / "b.pth", FakeTensor(stored, offset, (2,), (1,)))
        with pytest.raises(WeightsError, match="b.pth"):
            torch_files.read_torch_file(path)


@both_containers
def test_plain_values_and_attributes_of_state_dicts(tmp_path, write):
    state = OrderedDict(weight=FakeTensor(Stored(np.ones(2, "float32")), 0, (2,), (1,)))
    state._metadata = OrderedDict({"": {"version": 1}})  # PyTorch adds this attribute to every state dict.
    meta = {
        "classes": ("road", "sky"),
        "palette": [[1, 2, 3]],
        "epoch": 3,
        "lr": 0.1,
        "none": None,
        "set": {1, 2},
        "raw": b"\xff\x00",
        "number": np.float32(0.5),
        "count": np.int64(7),
        "flag": np.bool_(True),
    }
    meta["itself"] = meta["palette"]
    read = torch_files.read_torch_file(write(tmp_path / "a.pth", {"meta": meta, "state_dict": state}))
    assert read["meta"] == meta
    assert type(read["meta"]["number"]) is np.float32 and read["meta"]["itself"] is read["meta"]["palette"]
    assert type(read["state_dict"]) is dict and read["state_dict"]["weight"].tolist() == [1, 1]


class Calling:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@both_containers
def test_malicious_pickles_run_no_code(tmp_path, write):
    marker = tmp_path / "marker"
    for call, name in (
        (Calling(os.system, f"touch {marker}"), "posix.system"),
        (Calling(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (Calling(getattr, OrderedDict, "fromkeys"), "getattr"),
    ):
        with pytest.raises(WeightsError, match=rf"evil.pth is refused: .*{name}"):
            torch_files.read_torch_file(write(tmp_path / "evil.pth", {"state_dict": call}))
        assert not marker.exists()


def test_training_histories_are_refused_with_advice(tmp_path):
    """mmengine stores history objects in the checkpoints of a run."""
    path = tmp_path / "epoch_3.pth"
    for name, advice in (("mmengine.logging.history_buffer\nHistoryBuffer", True), ("subprocess\nPopen", False)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02c" + name.encode() + b"\n)R.")
        with pytest.raises(WeightsError, match=f"is refused: .*{name.replace(chr(10), '.')}") as caught:
            torch_files.read_torch_file(path)
        assert ("torch.save" in str(caught.value)) == advice


@pytest.mark.parametrize(
    "program, message",
    [
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", "OrderedDict.fromkeys"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "change OrderedDict"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "storage type"),
        (b"\x80\x02ccollections\nOrderedDict\n.", "OrderedDict as a value"),
        (b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", "scalar of type 'O'"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00OX\x03\x00\x00\x00hex\x86R.", "'hex'"),
        (b"\x80\x02X\x06\x00\x00\x00moduleQ.", "other than a storage"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo index 2147483647"),
    ],
)
def test_hand_written_programs_are_refused(tmp_path, program, message):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(WeightsError, match=message):
        torch_files.read_torch_file(path)


@both_containers
@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (7,), (1,)),
        (6, (1,), (1,)),
        (0, (2, 2), (5, 1)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (2**62,), (2**62,)),
        (0, (10**12,), (0,)),
        (0, (2, 2), (1,)),
        (0.0, (1,), (1,)),
        (0, (2,), (2**70,)),
        (True, (1,), (1,)),
        (0, 3, 1),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, write, offset, size, stride):
    path = write(tmp_path / "a.pth", FakeTensor(Stored(np.zeros(6, "float32")), offset, size, stride))
    with pytest.raises(WeightsError, match="a.pth is damaged"):
        torch_files.read_torch_file(path)


@both_containers
def test_every_truncation_is_refused(tmp_path, write):
    value = {"a": FakeTensor(Stored(np.arange(6, dtype="float32")), 0, (6,), (1,)), "b": "text"}
    data = write(tmp_path / "whole.pth", value).read_bytes()
    path = tmp_path / "cut.pth"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError, match="cut.pth"):
            torch_files.read_torch_file(path)


@both_containers
def test_storages_of_wrong_length_or_type_are_refused(tmp_path, write):
    longer = Stored(np.zeros(6, "float32"), declared=7)
    for stored in (longer, Stored(np.zeros(6, "int8"), "QInt8Storage")):
        with pytest.raises(WeightsError):
            torch_files.read_torch_file(write(tmp_path / "a.pth", FakeTensor(stored, 0, (6,), (1,))))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYPE"),
        (pickle.dumps({"a": 1}, 2), "magic number"),
        (b"x" * 257 + b"ustar" + b"x" * 300, "tar file"),
        (b"PK\x03\x04 and no more", "incomplete or damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"other.pth .*{message}"):
        torch_files.read_torch_file(path)


def test_other_zips_and_missing_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme", "text")
    with pytest.raises(WeightsError, match="not a PyTorch checkpoint"):
        torch_files.read_torch_file(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="none.pth cannot be read"):
        torch_files.read_torch_file(tmp_path / "none.pth")


@both_containers
def test_half_a_file_is_reported_as_incomplete(tmp_path, write):
    value = {
        str(index): FakeTensor(Stored(np.ones(500, "float32"), key=str(index)), 0, (500,), (1,)) for index in range(20)
    }
    path = write(tmp_path / "half.pth", value)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(WeightsError, match="half.pth is incomplete") as caught:
        torch_files.read_torch_file(path)
    assert "\n" not in str(caught.value)


def test_a_changed_byte_in_a_zip_is_detected(tmp_path):
    path = write_zip(tmp_path / "a.pth", FakeTensor(Stored(np.full(500, 3, "float32")), 0, (500,), (1,)))
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(3).tobytes() * 9) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="a.pth is damaged: .*archive/data/0"):
        torch_files.read_torch_file(path)


def test_compressed_entries(tmp_path):
    """PyTorch does not compress entries, but other tools that repack a file do."""
    numbers = np.arange(500, dtype="float32")
    path = write_zip(tmp_path / "a.pth", {"a": FakeTensor(Stored(numbers), 0, (500,), (1,))})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    np.testing.assert_array_equal(torch_files.read_torch_file(tmp_path / "b.pth")["a"], numbers, strict=True)


PEAK = """
import re, sys
from kseg.weights import torch_files

def peak():
    # getrusage would include the memory of the parent process.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
state = torch_files.read_torch_file(sys.argv[1])
assert sum(array.nbytes for array in state.values()) == 2**27 and "torch" not in sys.modules
print((peak() - before) / 2**27)
"""


@both_containers
def test_a_file_is_not_in_memory_twice(tmp_path, write):
    """Reading 128 MiB in 32 tensors needs little more memory than the arrays."""
    numbers = np.ones(2**20, "float32")
    value = {str(index): FakeTensor(Stored(numbers, key=f"{index:02}"), 0, (2**20,), (1,)) for index in range(32)}
    path = write(tmp_path / "a.pth", value)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    assert 0.9 < float(result.stdout) < 1.4


@needs_fixtures
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: f"{path.parent.parent.name}-{path.parent.name}")
def test_reference_checkpoints(path):
    """Names match the original's gradients and, for ResNet-50, names and shapes match the original's key list."""
    contents = torch_files.read_torch_file(path)
    state = {
        name: array
        for name, array in contents.get("state_dict", contents.get("model")).items()
        if not name.endswith("num_batches_tracked")
    }
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
