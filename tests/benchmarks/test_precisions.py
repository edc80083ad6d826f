"""benchmarks.precisions compares exports within rounds and refuses unknown precisions."""

import pytest

from benchmarks import precisions
from benchmarks.comparison import ModelRow
from kseg.config.sections import Export


def test_unknown_precisions_are_refused(capsys):
    assert precisions.parse([]).precisions == ["float32", "int8"]
    with pytest.raises(SystemExit):
        precisions.parse(["--precisions", "float32,int4"])
    assert "no precision 'int4'; choices: float32, bfloat16, dynamic-range, int8" in capsys.readouterr().err
    assert set(precisions.PRECISIONS) == set(Export.__annotations__["precision"].__args__)


def test_table():
    row = ModelRow(
        "encnet",
        "int8",
        [2.0, 4.0],
        0.5,
        [3.0, 5.0],
        0.25,
        2**30,
        {"bytes": 35_000_000, "versions": {"TensorFlow": "1"}},
    )
    assert precisions.table([row]).splitlines()[2:] == [
        "| encnet | int8 | 3.00 (2.00..4.00) | 0.50 | 4.00 | 0.25 | 35 | 1024 |",
        "",
        "TensorFlow 1",
    ]
