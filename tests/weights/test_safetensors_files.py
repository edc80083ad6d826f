"""Files in the .safetensors format, written by hand from its description."""

import json

import ml_dtypes
import numpy as np
import pytest

from kseg.errors import WeightsError
from kseg.weights.foreign_files import read_foreign_checkpoint
from kseg.weights.safetensors_files import read_safetensors


def stored(entries, data, length=None):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_arrays_have_their_values(tmp_path):
    first, second = np.arange(6, dtype="f4").reshape(2, 3), np.array([1.5, -2], ml_dtypes.bfloat16)
    path = tmp_path / "model"
    # Entries may have another order than the elements.
    path.write_bytes(
        stored(
            {
                "__metadata__": {"format": "pt"},
                "b": entry("BF16", [2], 32, 36),
                "n": entry("I64", [], 24, 32),
                "a": entry("F32", [2, 3], 0, 24),
            },
            first.tobytes() + np.int64(7).tobytes() + second.tobytes(),
        )
    )
    arrays = read_safetensors(path)
    assert arrays.keys() == {"a", "b", "n"} and arrays["n"] == 7 and arrays["b"].dtype == second.dtype
    np.testing.assert_array_equal(arrays["a"], first)
    np.testing.assert_array_equal(arrays["b"], second)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    kernel = np.ones((2, 3, 1, 1), "f4")
    for name in ("model.safetensors", "weights", "x.pth"):
        path = tmp_path / name
        path.write_bytes(
            stored(
                {
                    "model.conv1.weight": entry("F32", [2, 3, 1, 1], 0, 24),
                    "model.bn1.num_batches_tracked": entry("I64", [], 24, 32),
                },
                kernel.tobytes() + bytes(8),
            )
        )
        state = read_foreign_checkpoint(path).state
        assert list(state) == ["conv1.weight"] and (state["conv1.weight"] == kernel).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8),
        stored({}, b"", length=2**62),
        stored(b"[]", b""),
        stored(b"{", b""),
        stored(b"[" * 100_000, b""),
        stored({"a": entry("F32", [2], 0, 8)}, bytes(7)),
        stored({"a": entry("F32", [2], 0, 8)}, bytes(9)),
        stored({"a": entry("F32", [3], 0, 8)}, bytes(8)),
        stored({"a": entry("F32", [2**62], 0, 8)}, bytes(8)),
        stored({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 0, 8)}, bytes(8)),
        stored({"a": entry("F32", [-2], 0, 8)}, bytes(8)),
        stored({"a": entry("F32", [True, 2], 0, 8)}, bytes(8)),
        stored({"a": entry("F8", [8], 0, 8)}, bytes(8)),
        stored({"a": entry({}, [8], 0, 8)}, bytes(8)),
        stored({"a": [1]}, b""),
        stored({"a": {"dtype": "F32"}}, b""),
        stored(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}', b""),
    ],
)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="a.safetensors"):
        read_safetensors(tmp_path / "a.safetensors")
