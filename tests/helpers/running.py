"""Run kseg's commands as a user does, on a model small enough for a test."""

import os

import pytest

from kseg import cli
from tests.helpers.forks import ROOT, Forked

# Environment in which Keras runs on JAX. Optimization is off because operations are compiled for a few numbers only.
ON_JAX = {
    "KERAS_BACKEND": "jax",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}

# Overrides for a real model with a few thousand weights on small crops of the synthetic set.
TINY = [
    "model.width=4",
    "model.channels=8",
    "model.auxiliary_channels=4",
    "model.output_stride=16",
    "augment.crop=64,64",
    "train.global_batch=2",
    "train.steps=12",
    "train.warmup_steps=0",
    "train.log_every=1",
    "train.validate_every=12",
    "train.checkpoint_every=3",
    "train.deterministic=true",
]


def tiny(shapes_directory, *more):
    """Return the --config and --set arguments of a tiny run on the synthetic set."""
    return ["--config", "encnet_shapes", "--set", f"data.directory={shapes_directory}", *TINY, *more]


def start(module, *arguments, directory=ROOT):
    """Start `python -m MODULE ARGUMENTS` and return the process, with stdout and stderr in one text stream."""
    return Forked(module, arguments, directory, os.environ | {"PYTHONPATH": str(ROOT)})


def run(module, *arguments, status=0, directory=ROOT):
    """Run a command, check its exit status and return its output."""
    process = start(module, *arguments, directory=directory)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def run_here(main, arguments, capsys, status=0):
    """Run a command's main in this process, check its exit status and return its output."""
    with pytest.raises(SystemExit) as stopped:
        cli.run(lambda: main([str(argument) for argument in arguments]))
    captured = capsys.readouterr()
    assert stopped.value.code == status, captured.out + captured.err
    return captured.out + captured.err
