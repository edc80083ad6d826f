"""Objects of other systems are inert, and small files cannot take much time or memory."""

import zipfile

import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights import torch_files
from kseg.weights.foreign_files import read_foreign_checkpoint
from kseg.weights.torch_pickles import MAX_OPERATIONS, StandIn
from tests.helpers.shared_files import SHARED
from tests.helpers.torch_writing import FakeTensor, Stored, both_containers

UNFINISHED = sorted((SHARED / "cases" / "checkpoints").glob("*/*.pth"))


class History:
    """An object of a training system's own."""

    def __init__(self, marker):
        self.marker = marker

    def __setstate__(self, state):
        state["marker"].touch()

    def __reduce__(self):
        return print, (), {"marker": 1}


def program_file(path, program):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program)
    return path


@both_containers
def test_objects_outside_of_the_weights_are_inert(tmp_path, write):
    weight = FakeTensor(Stored(np.ones(2, "float32")), 0, (2,), (1,))
    path = write(tmp_path / "a.pth", {"state_dict": {"a": weight}, "hub": [History(tmp_path / "marker")]})
    contents = torch_files.read_torch_file(path)
    assert isinstance(contents["hub"][0], StandIn) and contents["hub"][0].name.endswith(".print")
    assert read_foreign_checkpoint(path).state["a"].tolist() == [1, 1]


@both_containers
@pytest.mark.parametrize("value", [{"state_dict": History(1)}, {"state_dict": {"a": History(1)}}, History(1)])
def test_objects_inside_the_weights_are_refused(tmp_path, write, value):
    with pytest.raises(WeightsError, match="a.pth .*print"):
        read_foreign_checkpoint(write(tmp_path / "a.pth", value))


SHARED_TUPLES = b"".join(b"h%ch%c\x86q%c" % (index, index, index + 1) for index in range(60))


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02})" + b"\x85" * 150_000 + b"K\x01s.",
        b"\x80\x02)" + b"\x85" * 1000 + b".",
        b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
        b"\x80\x02" + b"}" * (MAX_OPERATIONS + 10) + b".",
        # Tuples that are shared 2^60-fold as a key, an identifier, a name, a byte order and a size.
        b"\x80\x02})q\x00" + SHARED_TUPLES + b"K\x01s.",
        b"\x80\x02)q\x00" + SHARED_TUPLES + b"Q.",
        b"\x80\x04)q\x00" + SHARED_TUPLES + b")\x93.",
        b"\x80\x02)q\x00" + SHARED_TUPLES + b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03h<tb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n()q\x00" + SHARED_TUPLES + b"h<h<h<tR.",
        b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".",
    ],
)
def test_crafted_programs_are_refused(tmp_path, program):
    with pytest.raises(WeightsError, match="a.pth"):
        torch_files.read_torch_file(program_file(tmp_path / "a.pth", program))


@pytest.mark.skipif(not UNFINISHED, reason="the unfinished checkpoints are missing")
@pytest.mark.parametrize("path", UNFINISHED, ids=lambda path: path.parent.name)
def test_unfinished_checkpoints_are_read(path):
    checkpoint = read_foreign_checkpoint(path)
    assert checkpoint.system == "mmseg" and checkpoint.state["backbone.stem.0.weight"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("name", ["pth-segfault.pth", "laughs_order.pth", "pth-amplify.pth"])
def test_collected_files_are_refused(name):
    path = SHARED / "cases" / "weights" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with pytest.raises(WeightsError, match=name):
        read_foreign_checkpoint(path)
