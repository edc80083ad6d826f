"""benchmarks.formats compares the installed formats with the SavedModel, within rounds and pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import formats
from tests.benchmarks.test_heads import Process


def test_a_row_tells_the_size_of_its_files_and_the_pixels_that_differ(monkeypatch, capsys):
    ids = {"savedmodel": np.zeros((1, 2, 2), np.uint8), "litert": np.array([[[0, 0], [0, 7]]], np.uint8)}
    started = []

    def write(command, cwd, check):
        out, head, *rest = command[3:]
        assert (head, rest) == ("fcn", ["4", "6", "litert"])
        for name in ("1/saved_model.pb", "1/variables/data", "2/saved_model.pb", "1/model.tflite"):
            path = Path(out, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(1_500_000))

    def start(command, environment):
        threads, form, directory, file, *size = command[3:]
        assert Path(directory).is_dir() and (threads, size) == ("2", ["4", "6"])
        np.save(file, ids[form])
        started.append(Process(1, 0.5, load_seconds=0.25) if form == "litert" else Process(0.5, 0.5, load_seconds=2))
        return started[-1]

    monkeypatch.setattr(formats.subprocess, "run", write)
    monkeypatch.setattr(formats, "start", start)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: name == "ai_edge_litert" or None)
    arguments = formats.parse(["--size", "4,6", "--threads", "2", "--rounds", "2"])
    rows = formats.measure_head("fcn", arguments, set())
    output = capsys.readouterr().out
    assert "onnx: not measured: no tf2onnx, onnx, onnxruntime: pip install 'kseg[onnx]'" in output
    assert "openvino: not measured: no openvino: pip install 'kseg[openvino]'" in output
    assert all(process.closed for process in started)
    lines = formats.table(rows).splitlines()
    assert lines[2] == (
        "| fcn | SavedModel, device=cpu | 2.00 (2.00..2.00) | 1 | 4.00 | 1 | 2.0 | 1024 | 2 | 0.0000 % |"
    )
    assert lines[4] == ("| fcn | LiteRT | 1.50 (1.00..2.00) | 0.75 | 3.00 | 0.75 | 0.2 | 1024 | 2 | 25.0000 % |")


@pytest.mark.parametrize("size", ["512", "0,4", "a,b", "1,2,3"])
def test_a_wrong_size_is_a_usage_error(size, capsys):
    with pytest.raises(SystemExit):
        formats.parse(["--size", size])
    assert "--size takes HEIGHT,WIDTH" in capsys.readouterr().err


def test_every_format_is_measured():
    from kseg.exporting.formats import CONVERTED, NAMES

    assert {form for form, _, _ in formats.SYSTEMS.values()} == set(NAMES) == set(formats.LIBRARIES)
    assert all(set(record.libraries) <= set(formats.LIBRARIES[name]) for name, record in CONVERTED.items())
