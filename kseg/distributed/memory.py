"""How much memory this process takes, for the log."""

import re
from pathlib import Path

import tensorflow as tf

STATUS = Path("/proc/self/status")
# Lines of it -> what the log calls them.
FIELDS = {"VmRSS": "memory_mib", "VmHWM": "memory_peak_mib"}
MIB = 2**20


def used() -> dict[str, float]:
    """Return MiB of memory: {"memory_mib", "memory_peak_mib"} of the process, resident, on systems that tell.

    For each GPU, counted from 0, "gpu0_memory_mib" and "gpu0_memory_peak_mib": TensorFlow's tensors there now, and at
    most since the last call of `restart_peaks`.
    """
    values = _of_process(STATUS.read_text(encoding="ascii", errors="replace")) if STATUS.exists() else {}
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        info = tf.config.experimental.get_memory_info(f"GPU:{number}")
        values[f"gpu{number}_memory_mib"] = info["current"] / MIB
        values[f"gpu{number}_memory_peak_mib"] = info["peak"] / MIB
    return values


def restart_peaks() -> None:
    """Forget the largest memory of the GPUs so far; the process's own is the system's to keep."""
    for number, _ in enumerate(tf.config.list_logical_devices("GPU")):
        tf.config.experimental.reset_memory_stats(f"GPU:{number}")


def _of_process(status: str) -> dict[str, float]:
    found = re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)
    return {FIELDS[name]: int(size) / 1024 for name, size in found if name in FIELDS}
