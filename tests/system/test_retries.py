"""Retry storage operations: which errors are transient, the waits, and the reports."""

import errno
import os
import random
import re

import h5py
import pytest
import tensorflow as tf

from kseg.system import retries

# Real errors of the operating system, through Python, TensorFlow and HDF5.
REAL = {
    "an unmapped address": (lambda: os.pread(os.open("/proc/self/mem", os.O_RDONLY), 1, 0), errno.EIO),
    "a missing file": (lambda: open("/none/there"), errno.ENOENT),
    "TensorFlow: a missing file": (lambda: tf.io.read_file("/none/there"), errno.ENOENT),
    "TensorFlow: a full disk": (lambda: tf.io.write_file("/dev/full", "x" * 100_000), errno.ENOSPC),
    "TensorFlow: a directory": (lambda: tf.io.write_file("/dev", "x"), errno.EISDIR),
    "HDF5: a full disk": (lambda: h5py.File("/dev/full", "w"), errno.ENOSPC),
    "HDF5: a missing file": (lambda: h5py.File("/none/there.h5"), errno.ENOENT),
}


@pytest.mark.parametrize("fails, expected", REAL.values(), ids=REAL)
def test_error_numbers_of_real_errors(fails, expected):
    with pytest.raises(Exception) as raised:
        fails()
    assert retries.error_number(raised.value) == expected
    assert retries.is_transient(raised.value) == (expected == errno.EIO)


def python_error_in_a_pipeline():
    def fail(_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/data/a.png")

    try:
        next(iter(tf.data.Dataset.range(1).map(lambda x: tf.numpy_function(fail, [x], tf.int64))))
    except tf.errors.OpError as error:
        return error


@pytest.mark.parametrize(
    "make, transient",
    [
        (lambda: OSError(errno.ETIMEDOUT, "timed out"), True),
        (lambda: OSError(errno.ESTALE, "stale"), True),
        (lambda: OSError(errno.EROFS, "read-only"), False),
        (lambda: OSError(errno.EACCES, "no"), False),
        (lambda: OSError(errno.EDQUOT, "quota"), False),
        # TensorFlow's file system reports the system's text without its number.
        (lambda: tf.errors.UnknownError(None, None, "/a/step-1.index; Input/output error"), True),
        (lambda: tf.errors.FailedPreconditionError(None, None, "/a; Device or resource busy"), True),
        (lambda: tf.errors.PermissionDeniedError(None, None, "/a; Permission denied"), False),
        (lambda: tf.errors.UnavailableError(None, None, "503 from the object store"), True),
        (lambda: tf.errors.InternalError(None, None, "a bug"), False),
        (lambda: tf.errors.DataLossError(None, None, "checksum does not match"), False),
        (
            lambda: RuntimeError("Can't decrement id ref count (unable to close file, errno = 5, error message = 'x')"),
            True,
        ),
        (python_error_in_a_pipeline, True),
        (lambda: ValueError("no number"), False),
    ],
)
def test_transient_errors_are_recognized(make, transient):
    assert retries.is_transient(make()) is transient


@pytest.fixture
def waits(monkeypatch):
    """Return the list of waits in seconds, which are not actually waited."""
    seconds = []
    monkeypatch.setattr(retries.time, "sleep", seconds.append)
    return seconds


def failing(*errors):
    """Return an action that raises the errors one after another and then returns its number of calls, and the calls."""
    calls = []

    def action():
        calls.append(len(calls))
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return len(calls)

    return action, calls


def test_attempts_follow_growing_waits_which_are_reported(waits):
    action, _ = failing(OSError(errno.EIO, "first"), OSError(errno.ESTALE, "second"))
    lines = []
    assert retries.with_retries(action, "writing x", lines.append, attempts=4, first_wait=8.0) == 3
    assert 6 <= waits[0] <= 10 and 12 <= waits[1] <= 20 and len(waits) == 2
    for line, wait, attempt, error in zip(lines, waits, (2, 3), ("first", "second"), strict=True):
        assert re.fullmatch(rf"writing x failed \(.*{error}\); attempt {attempt} of 4 in {wait:.1f} s", line)


def test_the_error_of_the_last_attempt_is_raised(waits):
    errors = [OSError(errno.EIO, str(number)) for number in range(9)]
    action, calls = failing(*errors)
    with pytest.raises(OSError) as raised:
        retries.with_retries(action, "reading x", print, attempts=3)
    assert raised.value is errors[2] and len(calls) == 3 and len(waits) == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyError("name"), KeyboardInterrupt()])
def test_errors_that_are_not_transient_are_raised_at_once(waits, error):
    action, calls = failing(error)
    with pytest.raises(type(error)):
        retries.with_retries(action, "writing x", print)
    assert len(calls) == 1 and not waits


def test_the_state_of_the_global_random_generator_is_unchanged(waits):
    before = random.getstate()
    retries.with_retries(failing(OSError(errno.EIO, "x"))[0], "writing x", lambda line: None)
    assert random.getstate() == before
