"""Skip tests of integer convolutions where TensorFlow has no kernels for them."""

import platform

import pytest

NEEDS_INTEGER_KERNELS = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorFlow's integer convolutions need an x86-64 processor"
)
