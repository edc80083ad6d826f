"""Start commands in processes forked from one that has imported TensorFlow, without optimizing their graphs.

The import and the optimization would take most of the time of a short command.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.helpers import small_graphs, small_models

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
TRAINING = ("kseg.training.trainer", "kseg.evaluation.counter")
_preloaded: list[str] = []


class Forked:
    """A process that runs a module, with those parts of the interface of subprocess.Popen that tests use."""

    def __init__(self, module, arguments, directory, environment, output=None):
        """Start `python -u -m MODULE ARGUMENTS`; its output goes to a file or, without one, to `stdout` here."""
        preload(_preloaded or TRAINING)
        reader, writer = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_run,
            args=(
                module,
                list(map(str, arguments)),
                str(directory),
                dict(environment),
                str(output) if output else writer,
                small_models.is_shallow(),
            ),
        )
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        # A test that fails may leave it behind, and multiprocessing would wait for it.
        atexit.register(self.kill)

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._process.exitcode

    def communicate(self, timeout=None):
        """Return the rest of the output and None, as a process does whose stderr goes to stdout."""
        output = self.stdout.read()
        self.wait(timeout)
        return output, None

    def send_signal(self, number):
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()


def preload(modules):
    """Make the process from which others are forked import these modules.

    Other modules than before restart it; no forked process may be running then.
    """
    if list(modules) != _preloaded:
        # multiprocessing has no public way to end it.
        forkserver._forkserver._stop()
        CONTEXT.set_forkserver_preload(list(modules))
        # It would import the modules of the directory in which the test happens to be.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            forkserver.ensure_running()
        _preloaded[:] = modules


def make_small(shallow):
    """Run this process's graphs unoptimized, on a shallow resnet18 if the process that forks this one has it."""
    small_graphs.set_optimized(False)
    if shallow:
        small_models.make_shallow()


def _run(module, arguments, directory, environment, output, shallow):
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if isinstance(output, str) else output.fileno()
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    # The old streams remember that they were files.
    sys.stdout, sys.stderr = (
        open(descriptor, "w", encoding="utf-8", buffering=1, closefd=False) for descriptor in (1, 2)
    )
    if not isinstance(output, str):
        # The reader sees the end as soon as this process and its own children have closed their copies.
        output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    make_small(shallow)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
