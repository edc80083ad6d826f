"""Measure the memory of this process and of its GPUs, for the log."""

import re
from pathlib import Path

import tensorflow as tf

STATUS = Path("/proc/self/status")
# Lines of STATUS and their keys in the log.
KEYS = {"VmRSS": "memory_mib", "VmHWM": "memory_peak_mib"}
MIB = 2**20


def memory_in_use() -> dict[str, float]:
    """Return memory figures in MiB.

    "memory_mib" and "memory_peak_mib" are the resident memory of the process, on systems with /proc. For each GPU,
    counted from 0, "gpu0_memory_mib" is the memory of TensorFlow's tensors, and "gpu0_memory_peak_mib" its maximum
    since the last call of `reset_peak_memory`.
    """
    values = _process_memory(STATUS.read_text(encoding="ascii", errors="replace")) if STATUS.exists() else {}
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        info = tf.config.experimental.get_memory_info(f"GPU:{number}")
        values[f"gpu{number}_memory_mib"] = info["current"] / MIB
        values[f"gpu{number}_memory_peak_mib"] = info["peak"] / MIB
    return values


def reset_peak_memory() -> None:
    """Restart the peaks of the GPUs; the system keeps the peak of the process."""
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        tf.config.experimental.reset_memory_stats(f"GPU:{number}")


def _process_memory(status: str) -> dict[str, float]:
    lines = re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)
    return {KEYS[name]: int(size) / 1024 for name, size in lines if name in KEYS}
