"""Weights of Keras files are plain floating-point arrays inside of the file."""

import h5py
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import keras_files, loading
from tests.helpers.shared_files import SHARED
from tests.helpers.small_models import small_model, unchanged, values


def external(group, secret):
    layout = h5py.h5d.create(group.id, b"0", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((2,)), _external(secret))
    assert layout


def _external(secret):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_external(str(secret).encode(), 0, 8)
    return plan


def virtual(group, secret):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource(secret, "a", shape=(2,))
    group.create_virtual_dataset("0", layout)


FORMS = {
    "external storage": external,
    "virtual": virtual,
    "external link": lambda group, secret: group.__setitem__("0", h5py.ExternalLink(secret, "/a")),
    "soft link": lambda group, secret: group.__setitem__("0", h5py.SoftLink("/layers/other")),
    "empty": lambda group, secret: group.__setitem__("0", h5py.Empty("f4")),
    "text": lambda group, secret: group.__setitem__("0", "text"),
    "compound": lambda group, secret: group.__setitem__("0", np.zeros(2, [("a", "f4")])),
    "complex": lambda group, secret: group.__setitem__("0", np.zeros(2, "c8")),
    "integer": lambda group, secret: group.__setitem__("0", np.zeros(2, "i4")),
    "group": lambda group, secret: group.create_group("0"),
    "missing": lambda group, secret: group.__setitem__("1", np.zeros(2, "f4")),
    "unwritten": lambda group, secret: group.create_dataset("0", (2**31,), "f4"),
    "bomb": lambda group, secret: group.create_dataset("0", (2**31,), "f4", compression="gzip", chunks=(2**20,)),
    "compressed": lambda group, secret: group.create_dataset("0", data=np.zeros(2, "f4"), compression="gzip"),
    "checksums": lambda group, secret: group.create_dataset("0", data=np.zeros(2, "f4"), fletcher32=True),
    "missing chunk": lambda group, secret: group.create_dataset("0", (4,), "f4", chunks=(2,)).write_direct(
        np.ones(2, "f4"), dest_sel=np.s_[:2]
    ),
    "large chunk": lambda group, secret: group.create_dataset("0", (2,), "f4", chunks=(2**28,), maxshape=(None,)),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_members_are_refused(tmp_path, form):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = np.ones(2, "f4")
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        group = file.create_group("layers/conv/vars")
        group.attrs["name"] = "backbone.conv1"
        FORMS[form](group, tmp_path / "secret.h5")
    with pytest.raises(WeightsError, match="a.weights.h5 "):
        keras_files.read_layers(tmp_path / "a.weights.h5")


def compact(group, name, array):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(group.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plan).write(space, space, array)


@pytest.mark.parametrize("settings", [{}, {"userblock_size": 512}, {"libver": "latest"}])
def test_elements_are_those_that_hdf5_reads(tmp_path, settings):
    array = np.random.default_rng(0).normal(size=(5, 7, 3)).astype("f4")
    with h5py.File(tmp_path / "a.weights.h5", "w", **settings) as file:
        group = file.create_group("layers/conv/vars")
        group.attrs["name"] = "conv"
        for index, kind in enumerate(("<f4", ">f4", "<f2", ">f8", "<f8")):
            group[str(index)] = array.astype(kind)
        for index, chunks in enumerate([(5, 7, 3), (1, 7, 3), (2, 4, 2), (5, 1, 1)], 5):
            group.create_dataset(str(index), data=array.astype(">f4" if index % 2 else "<f8"), chunks=chunks)
        group.create_dataset("9", data=array, chunks=(3, 3, 3), maxshape=(None, 7, None))
        compact(group, "10", array)
        group["11"], group["12"], group["13"] = np.float32(3), np.zeros((0, 4), "f4"), array[0, 0]
    with h5py.File(tmp_path / "a.weights.h5", "r") as file:
        expected = [file[f"layers/conv/vars/{index}"][()] for index in range(14)]
    for index, actual in enumerate(keras_files.read_layers(tmp_path / "a.weights.h5")["conv"]):
        np.testing.assert_array_equal(actual, expected[index], strict=True, err_msg=str(index))


@pytest.mark.parametrize("chunks", [None, (2, 2)])
def test_elements_outside_of_the_file_are_refused(tmp_path, chunks):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/a/vars")
        group.attrs["name"] = "a"
        group.create_dataset("0", data=np.full((4, 4), 7, "f4"), chunks=chunks)
        identifier = group["0"].id
        offset = identifier.get_chunk_info(0).byte_offset if chunks else identifier.get_offset()
    content = path.read_bytes()
    place = offset.to_bytes(8, "little")
    assert content.count(place) == 1
    for other in (2**62, 2**63 + 5, len(content) - 8):
        path.write_bytes(content.replace(place, other.to_bytes(8, "little")))
        with pytest.raises(WeightsError, match="a.weights.h5 is damaged"):
            keras_files.read_layers(path)


@pytest.mark.parametrize("place", ["layers", "layers/conv", "layers/conv/vars"])
def test_groups_are_not_links(tmp_path, place):
    path = tmp_path / "a.weights.h5"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers/conv/vars/0"] = np.ones(2, "f4")
        file["layers/conv/vars"].attrs["name"] = "conv"
    with h5py.File(path, "w") as file:
        file.require_group("layers")
        if place == "layers":
            del file["layers"]
        file[place] = h5py.ExternalLink(str(tmp_path / "other.h5"), place)
    with pytest.raises(WeightsError, match="is a link"):
        keras_files.read_layers(path)


def test_values_beyond_float32_are_refused(tmp_path):
    path, model = tmp_path / "a.weights.h5", small_model()
    before = values(model)
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        name = next(name for name, layer in file["layers"].items() if len(layer["vars"]) == 4)
        shape = file[f"layers/{name}/vars/0"].shape
        del file[f"layers/{name}/vars/0"]
        file[f"layers/{name}/vars/0"] = np.full(shape, 1e300)
    with pytest.raises(WeightsError, match="non-finite values in 1 weights"):
        loading.load_keras(model, path)
    assert unchanged(model, before)


@pytest.mark.parametrize("name", ["bomb", "compound", "nulldata"])
def test_collected_files_are_refused(name):
    path = SHARED / "cases" / "weights" / f"{name}.weights.h5"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with pytest.raises(WeightsError, match=path.name):
        keras_files.read_layers(path)


def test_a_file_on_which_hdf5_never_ends_is_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/a/vars")
        group.attrs["name"] = "a"
        group["0"] = np.ones(2, "f4")
    content = bytearray(path.read_bytes())
    # HDF5 steps from one text to the next by the size of each. The first one gets index 0, free space, and no size.
    first = content.index(b"GCOL") + 16
    content[first : first + 2], content[first + 8 : first + 16] = bytes(2), bytes(8)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="a.weights.h5 is damaged"):
        keras_files.read_layers(path)
