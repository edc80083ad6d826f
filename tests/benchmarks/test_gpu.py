"""benchmarks.gpu counts operations by layer, refuses unequal work, keeps what it has measured and reports the rest."""

import json
import math

import keras
import pytest

from benchmarks import gpu, gpu_process, gpu_rows, kseg_gpu, measured_process
from benchmarks.gpu_rows import Row
from kseg import models

WORK = gpu_process.Work("fcn", 8, 512, 1024, "bfloat16", "gpu", rounds=3, steps=10)
RESULTS = {
    "device": "NVIDIA H200",
    "parameters": 49_500_000,
    "multiply_adds": 10**11,
    "loss": 4.0,
    "seconds": [0.1, 0.2, 0.16],
    "first_seconds": 30.0,
    "peak": 3 * 2**30,
    "versions": {"JAX": "1"},
}


def row(system="kseg", task="training", reason="", work=WORK, **results):
    return Row(work, system, task, {} if reason else RESULTS | results, reason)


def test_all_heads_are_measured_in_two_sizes_and_precisions():
    arguments = gpu.parse([])
    assert set(arguments.heads) == set(models.HEADS) and set(arguments.precisions) == {"bfloat16", "tf32"}
    assert arguments.sizes == [(8, 512, 1024), (16, 512, 512)] and set(gpu.PROCESSES) == set(gpu_rows.NAMES)
    assert (arguments.rounds, arguments.steps, arguments.budget, arguments.peak_tflops) == (3, 10, math.inf, {})
    quick = gpu.parse(["--quick", "--steps", "2", "--peak-tflops", "tf32=0.5,float32=0.25"])
    assert (quick.sizes, quick.rounds, quick.steps) == ([(2, 128, 128)], 1, 2)
    assert quick.peak_tflops == {"tf32": 0.5, "float32": 0.25}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--heads", "fcn,unet"], "no 'unet'; choices: encnet"),
        (["--precisions", "fp8"], "no 'fp8'"),
        (["--systems", "mmseg"], "no 'mmseg'; choices: kseg, eager, compiled"),
        (["--sizes", "8x512"], "got '8x512'"),
        (["--sizes", "8x512x0"], "got '8x512x0'"),
        (["--sizes", "1x100x96"], "multiples of 8"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--budget", "0"], "--budget must be above 0"),
        (["--peak-tflops", "fp8=1"], "got 'fp8=1'"),
        (["--peak-tflops", "tf32=many"], "got 'tf32=many'"),
        (["--peak-tflops", "tf32=-1"], "got 'tf32=-1'"),
    ],
)
def test_unusable_arguments_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        gpu.parse(words)
    assert message in capsys.readouterr().err


def test_multiply_adds_of_layers_match_a_calculation_by_hand():
    images = keras.Input((10, 14, 3))
    outputs = keras.layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)(images)
    outputs = keras.layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(outputs)
    outputs = keras.layers.Dense(11)(keras.layers.GlobalAveragePooling2D()(outputs))
    # The first convolution gives 5x7 positions, and every channel of the second has its own kernel.
    by_hand = 3 * 3 * 3 * 5 * 5 * 7 + 3 * 3 * 5 * 5 * 7 + 5 * 11
    assert kseg_gpu.multiply_adds(keras.Model(images, outputs)) == by_hand


def test_table():
    unknown = {"device": "Another", "peak": None}
    rows = [row(), row("eager", "inference", **unknown), row("compiled", reason="OutOfMemoryError: 9 | 8 GiB")]
    lines = gpu_rows.table(rows, {}).splitlines()
    assert lines[0].startswith("NVIDIA H200, Another, 20") and lines[0].endswith(", JAX 1")
    # 8 images in 0.16 s, with three passes of two operations per multiply-add: 30 TFLOP/s of 989.4.
    assert lines[4] == (
        "| fcn | 8x512x1024 | bfloat16 | training | kseg on JAX | 50.00 (40.00..80.00) | 30.00 | 3.0 % | 3072 | 30.0 |"
    )
    assert lines[5] == (
        "| fcn | 8x512x1024 | bfloat16 | inference | PyTorch | 50.00 (40.00..80.00) | 10.00 |  |  | 30.0 |"
    )
    assert lines[6] == (
        "| fcn | 8x512x1024 | bfloat16 | training | PyTorch, compiled "
        "| not measured: OutOfMemoryError: 9 / 8 GiB |  |  |  |  |"
    )
    assert lines[-3:] == [
        "Peak of NVIDIA H200 at bfloat16: 989.4 TFLOP/s",
        "Peak of Another at bfloat16: unknown; --peak-tflops sets it",
        "2 of 3 rows measured; not: fcn 8x512x1024 bfloat16 training PyTorch, compiled",
    ]
    assert "| 60.0 % |" in gpu_rows.table(rows, {"bfloat16": 50.0})


@pytest.mark.parametrize(
    "results, reason",
    [
        ({}, ""),
        ({"multiply_adds": 10**11 + 10**8, "loss": 4.3}, ""),
        ({"device": "cpu"}, "computed on cpu, but kseg on"),
        ({"parameters": 49_500_001}, "has 49,500,001 parameters, but kseg 49,500,000"),
        ({"multiply_adds": 102 * 10**9}, "has 102,000,000,000 multiply-adds"),
        ({"loss": 4.5}, "has the first loss 4.500, but kseg 4.000"),
        ({"loss": float("nan")}, "has the first loss nan"),
    ],
)
def test_other_work_than_ksegs_is_refused(results, reason):
    checked = gpu_rows.checked(row("eager", **results), row())
    assert checked.reason.startswith(reason) and bool(checked.reason) == bool(reason)
    # Without kseg's figures there is nothing to compare.
    assert not gpu_rows.checked(row("eager", **results), row(reason="no JAX")).reason


def test_written_rows_replace_the_previous_ones(tmp_path):
    file = tmp_path / "gpu.json"
    gpu_rows.write(file, [row()], {})
    gpu_rows.write(file, [row(), row("eager", reason="no GPU")], {})
    first, second = json.loads(file.read_text())
    assert first["results"] == RESULTS and first["peak_tflops"] == 989.4 and first["work"]["height"] == 512
    assert second["reason"] == "no GPU" and second["peak_tflops"] is None
    assert list(tmp_path.iterdir()) == [file]


def measured(monkeypatch, tmp_path, script, *words):
    """Return the rows of `measure` for FCN where every process of a system runs a shell script."""
    monkeypatch.setattr(gpu, "PROCESSES", {"eager": ["module"], "compiled": ["module"]})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    arguments = gpu.parse(
        [
            "--heads",
            "fcn",
            "--precisions",
            "tf32",
            "--sizes",
            "8x8x8",
            "--systems",
            "eager,compiled",
            "--peer-python",
            str(python),
            *words,
        ]
    )
    return list(gpu.measure(arguments, str(tmp_path), gpu.time.monotonic()))


def test_failures_of_a_process_become_rows(monkeypatch, tmp_path):
    answer = json.dumps(RESULTS | {"task": "inference"})
    rows = measured(monkeypatch, tmp_path, f"echo '{answer}'; echo Killed >&2; exit 9")
    assert [(row.system, row.task, row.reason) for row in rows] == [
        ("eager", "inference", ""),
        ("eager", "training", "exited with status 9: Killed"),
        ("compiled", "inference", ""),
        ("compiled", "training", "exited with status 9: Killed"),
    ]
    assert rows[0].results["seconds"] == RESULTS["seconds"]
    rows = measured(monkeypatch, tmp_path, """echo '{"error": "RuntimeError: no GPU", "traceback": "..."}'""")
    assert [row.reason for row in rows] == ["RuntimeError: no GPU"] * 4
    rows = measured(monkeypatch, tmp_path, "", "--peer-python", str(tmp_path / "none"))
    assert {row.reason for row in rows} == {f"{tmp_path / 'none'}: No such file or directory"}


def test_a_budget_ends_a_process_and_starts_no_other(monkeypatch, tmp_path):
    rows = measured(monkeypatch, tmp_path, "exec sleep 60", "--budget", "0.2")
    assert [row.reason.partition(" it may")[0] for row in rows] == [
        "missing: ended by --budget",
        "missing: ended by --budget",
        "missing:",
        "missing:",
    ]


def test_a_failed_task_does_not_end_the_others(monkeypatch, capfd):
    def fail():
        raise MemoryError("out of memory\nallocating 9 GiB")

    monkeypatch.setattr(measured_process.os, "dup2", lambda *_: None)
    gpu_process.report(lambda: ({"device": "cpu"}, {"inference": fail, "training": lambda: {"peak": 1}}))
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["task"], first["error"]) == ("inference", "MemoryError: out of memory")
    assert "allocating 9 GiB" in first["traceback"]
    assert second == {"device": "cpu", "task": "training", "peak": 1}


def test_work_survives_the_command_line():
    assert gpu_process.read_work(WORK.words()) == WORK
