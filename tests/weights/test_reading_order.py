"""Names and shapes are compared with the model before elements are read, and only elements that it takes are read."""

import json
import struct
import zipfile

import h5py
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import foreign_files, loading
from tests.helpers.small_models import small_model, small_state, unchanged, values
from tests.helpers.torch_writing import FakeTensor, Stored, write_legacy, write_zip

# More elements than the memory holds, in a hole of the file.
HUGE = 2**35


def tensors(state, name):
    """Return a state's tensors to write, and one of HUGE elements whose storage is the last one."""
    stored = {key: Stored(array.ravel(), key=f"{index:02}") for index, (key, array) in enumerate(state.items())}
    tensors = {
        key: FakeTensor(stored[key], 0, array.shape, tuple(step // 4 for step in array.strides))
        for key, array in state.items()
    }
    return tensors | {name: FakeTensor(Stored(np.zeros(0, "f4"), key="99", declared=HUGE), 0, (HUGE,), (1,))}


def append_hole(path, name, start, size):
    """Append a zip entry that starts with `start` and continues with `size` bytes of zeros, which take no space."""
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.header_offset, entry.CRC = archive.start_dir, 0
        entry.file_size = entry.compress_size = len(start) + size
        archive.fp.seek(archive.start_dir)
        archive.fp.write(entry.FileHeader(zip64=True) + start)
        archive.fp.seek(size, 1)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(entry)
        archive._didModify = True


def zip_file(path, state, name):
    append_hole(write_zip(path, tensors(state, name)), "archive/data/99", b"", 4 * HUGE)


def legacy_file(path, state, name):
    with open(write_legacy(path, {"state_dict": tensors(state, name)}), "r+b") as file:
        file.seek(-8, 2)
        file.write(struct.pack("<q", HUGE))
        file.truncate(file.tell() + 4 * HUGE)


def npz_file(path, state, name):
    np.savez(path, **state)
    append_hole(path, f"{name}.npy", npy_header((HUGE,)), 4 * HUGE)


def npy_header(shape):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def safetensors_file(path, state, name):
    entries, position = {}, 0
    for key, shape in [*((key, array.shape) for key, array in state.items()), (name, (HUGE,))]:
        end = position + 4 * int(np.prod(shape))
        entries[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + b"".join(array.tobytes() for array in state.values())
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(len(content) + 4 * HUGE)


def add_hole(group, name):
    """Add a dataset of HUGE elements to an HDF5 file that take no space on the disk."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((HUGE,)), plan)


FILES = {"zip.pth": zip_file, "legacy.pth": legacy_file, "a.npz": npz_file, "a.safetensors": safetensors_file}


@pytest.mark.parametrize("file", FILES)
def test_a_huge_weight_that_the_model_does_not_take_is_not_read(tmp_path, file):
    path, model, state = tmp_path / file, small_model(), small_state()
    before = values(model)
    FILES[file](path, state, "decode_head.huge")
    with pytest.raises(WeightsError, match=rf"in the file but not in the model:\n    decode_head.huge \({HUGE},\)"):
        loading.load_checkpoint(model, path, "encnet")
    assert unchanged(model, before)
    loading.load_checkpoint(model, path, "encnet", ("decode_head.huge",))
    np.testing.assert_array_equal(loading.mmseg_names(model)["backbone.bn1.bias"], state["backbone.bn1.bias"])
    path.unlink()
    bias = state.pop("backbone.bn1.bias")
    FILES[file](path, state, "backbone.bn1.bias")
    with pytest.raises(WeightsError, match=rf"backbone.bn1.bias file \({HUGE},\), model \({len(bias)},\)"):
        loading.load_checkpoint(model, path, "encnet")


def test_a_huge_weight_of_kerass_files_is_not_read(tmp_path):
    path, model = tmp_path / "a.weights.h5", small_model()
    expected = values(model)
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        group = file.create_group("layers/huge/vars")
        group.attrs["name"] = "decode_head.huge"
        add_hole(group, "0")
    other = small_model()
    with pytest.raises(WeightsError, match=rf"in the file but not in the model:\n    decode_head.huge.0 \({HUGE},\)"):
        loading.load_keras(other, path)
    loading.load_checkpoint(other, path, "encnet", ("decode_head.huge.*",))
    assert unchanged(other, expected)
    with h5py.File(path, "r+") as file:
        del file["layers/huge"]
        group = next(group["vars"] for group in file["layers"].values() if len(group["vars"]) == 4)
        del group["0"]
        add_hole(group, "0")
    with pytest.raises(WeightsError, match=rf"backbone.bn1.weight file \({HUGE},\), model \(4,\)"):
        loading.load_keras(other, path)
    assert unchanged(other, expected)


def test_a_huge_classifier_of_keras_applications_is_not_read(tmp_path):
    path, random = tmp_path / "a.h5", np.random.default_rng(0)
    kernel = random.random((3, 2, 3, 4), "f4")
    norm = {name: random.random(4, "f4") for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    layers = {"conv1_conv": {"kernel": kernel}, "conv1_bn": norm, "predictions": {}}
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [*layers]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            for name, array in weights.items():
                group[name] = array
            group.attrs["weight_names"] = [*weights] or ["kernel", "bias"]
        group["bias"] = np.zeros(5, "f4")
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((HUGE // 4, 4))
        h5py.h5d.create(group.id, b"kernel", h5py.h5t.IEEE_F32LE, space, plan)
    model = small_model()
    notes = loading.load_backbone(model, path, std=(1, 2, 3))
    assert notes[-1] == "the ImageNet classifier was skipped: fc.weight, fc.bias"
    weights = loading.mmseg_names(model)
    np.testing.assert_array_equal(weights["backbone.conv1.weight"], kernel * np.float32([1, 2, 3])[:, None])
    np.testing.assert_array_equal(weights["backbone.bn1.running_mean"], norm["moving_mean"])


@pytest.fixture()
def read(monkeypatch):
    """Return the names of the arrays of .npz files that have been read."""
    names = []

    def recorded(path, opened=foreign_files.OPENERS["npz"]):
        return {
            name: array.changed(lambda elements, name=name: names.append(name) or elements)
            for name, array in opened(path).items()
        }

    monkeypatch.setitem(foreign_files.OPENERS, "npz", recorded)
    return names


def test_nothing_is_read_of_a_file_that_does_not_fit(tmp_path, read):
    path, model, state = tmp_path / "a.npz", small_model(), small_state()
    extra, wrong = {"decode_head.new": np.zeros(3)}, {"backbone.bn1.bias": np.zeros(9, "f4")}
    for changed, skip, channels in [(state | extra, (), "RGB"), (state | wrong, (), "BGR"), (state, ("none",), "RGB")]:
        np.savez(path, **changed)
        with pytest.raises(WeightsError):
            loading.load_checkpoint(model, path, "encnet", skip, channels)
    np.savez(path, **{name.removeprefix("backbone."): array for name, array in state.items()})
    with pytest.raises(WeightsError):
        loading.load_backbone(model, path)
    assert read == []


def test_only_weights_that_the_model_takes_are_read(tmp_path, read):
    path, model, state = tmp_path / "a.npz", small_model(), small_state()
    more = {f"ema_{name.replace('.', '_')}": array for name, array in state.items()}
    np.savez(
        path,
        **{f"module.{name}": array for name, array in state.items()},
        **more,
        **{"backbone.bn1.num_batches_tracked": np.array(7)},
    )
    loading.load_checkpoint(model, path, "encnet", ("decode_head.*",), "BGR")
    assert sorted(read) == sorted(f"module.{name}" for name in state if name.startswith("backbone."))
    read.clear()
    loading.load_checkpoint(model, path, "encnet", average=True)
    assert sorted(read) == sorted(more)
    read.clear()
    bare = {name: array for name, array in state.items() if name.startswith("backbone.")}
    np.savez(path, **bare, **{"fc.weight": np.zeros((5, 4)), "fc.bias": np.zeros(5)})
    loading.load_backbone(model, path, ("bn1.bias",))
    assert sorted(read) == sorted(bare.keys() - {"backbone.bn1.bias"})
