"""Start real processes and check what reaches their stderr."""

import os
import subprocess
import sys

import pytest

from kseg.system import quiet_start
from tests.helpers.exhaustive import all_of
from tests.helpers.running import ROOT, TINY

NOTE = "I0000 00:00:1795999530.979704    9731 cudart_stub.cc:31] Could not find cuda drivers on your machine"
PROGRAM = f"""
import os, sys, warnings
from kseg.system import quiet_start
with quiet_start.filtered_stderr():
    os.write(2, b"{NOTE}\\n")
    {{work}}
print("after the block", file=sys.stderr)
"""


def stderr_of(code, status=0, **environment):
    """Run Python code in a new process, check its exit status and return its stderr."""
    variables = {name: value for name, value in os.environ.items() if name not in ("KSEG_LOG", "TF_CPP_MIN_LOG_LEVEL")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables | environment, text=True, capture_output=True
    )
    assert result.returncode == status, result.stderr
    return result.stderr


def test_only_log_lines_are_dropped():
    output = stderr_of(PROGRAM.format(work="warnings.warn('a Python warning'); os.write(2, b'another library\\n')"))
    lines = output.splitlines()
    assert "UserWarning: a Python warning" in output and "another library" in lines
    assert lines[-1] == "after the block" and NOTE not in lines


def test_an_error_prints_everything():
    output = stderr_of(PROGRAM.format(work="raise ImportError('libcudart.so is missing')"), status=1)
    assert NOTE in output and output.endswith("ImportError: libcudart.so is missing\n")


def test_a_crash_prints_everything():
    output = stderr_of(PROGRAM.format(work="os.write(2, b'F0000 no AVX\\n'); os.abort()"), status=-6)
    assert output.splitlines() == [NOTE, "F0000 no AVX"]


def test_without_a_shell_nothing_is_held_back():
    output = stderr_of(PROGRAM.format(work="pass"), PATH="")
    assert output.splitlines() == [NOTE, "after the block"]


START = (
    "import sys; from kseg.system import quiet_start; quiet_start.import_tensorflow(); "
    "import os; assert os.environ['TF_FORCE_GPU_ALLOW_GROWTH'] == 'true'; "
    "assert os.environ['TF_CUDNN_USE_AUTOTUNE'] == '0'; "
    "import tensorflow as tf; tf.constant(1) + 1; "
    "assert not sys.modules.keys() & set(quiet_start.OPTIONAL_PACKAGES); "
    "import IPython, cv2, jax, matplotlib, pandas, scipy, sklearn"
)


def test_tensorflow_starts_quietly_unless_its_log_is_asked_for():
    assert stderr_of(START) == ""
    assert "absl::InitializeLog" in stderr_of(START, KSEG_LOG="debug")


def test_keras_finds_its_backend(monkeypatch, tmp_path):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert quiet_start.keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert quiet_start.keras_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert quiet_start.keras_backend() == "torch"


def test_an_unknown_level_is_refused():
    stderr = stderr_of(START, 1, KSEG_LOG="debgu")
    assert "ConfigError: " in stderr and "KSEG_LOG" in stderr and "'debgu'. Did you mean debug" in stderr


@pytest.mark.parametrize("log, quiet", all_of([("", True)], ("debug", False)))
def test_a_dry_run_prints_nothing_on_stderr(shapes_directory, log, quiet):
    command = [
        sys.executable,
        "-m",
        "kseg.train",
        "--config",
        "encnet_shapes",
        "--dry-run",
        "--set",
        f"data.directory={shapes_directory}",
        *TINY,
    ]
    # oneDNN, which the tests enable, reports what it lacks on a CPU for which TensorFlow would not have chosen it.
    environment = {key: value for key, value in os.environ.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    result = subprocess.run(command, cwd=ROOT, env=environment | {"KSEG_LOG": log}, text=True, capture_output=True)
    assert result.returncode == 0 and "parameters: " in result.stdout
    assert (result.stderr == "") == quiet, result.stderr
