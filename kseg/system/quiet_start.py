"""Import TensorFlow without its start-up messages, unless KSEG_LOG=debug asks for them."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kseg.errors import ConfigError, unknown

VARIABLE = "KSEG_LOG"
LEVELS = ("info", "debug")

# Lines of TensorFlow's C++ log below FATAL, with the two unprefixed lines that belong to them.
LOG_LINE = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:\d+\.\d+ |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions:"
)

# A shell that waits for one line. If its input ends without one, the process that started it has died, and the shell
# prints what that process had written to its stderr.
WATCHER = 'read -r done || { cat "$1" >&2; rm -f "$1"; }'

# TensorFlow's settings for GPUs that it reads from the environment, unless the user has set them. A process allocates
# memory as it needs it, so that several share a GPU.
GPU_SETTINGS = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
# All steps have the same shapes: it pays to time cuDNN's algorithms for each. In half precision only this kernel of
# batch normalization keeps the layout NHWC.
TRAINING_SETTINGS = {"TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT": "1"}
# Images of other sizes keep coming, and timing the algorithms for every new size takes longer than the wrong one.
INFERENCE_SETTINGS = {"TF_CUDNN_USE_AUTOTUNE": "0"}

# TensorFlow and Keras import these, if they are installed, for features that no command uses: half of their time.
OPTIONAL_PACKAGES = ("IPython", "cv2", "jax", "matplotlib", "pandas", "scipy", "sklearn")


def import_tensorflow(optional_packages: bool = False, for_training: bool = False) -> None:
    """Import TensorFlow with kseg's settings and list its devices, without their messages on stderr.

    The libraries write to file descriptor 2 while they are loaded, before any log level of theirs is in force. With
    KSEG_LOG=debug all messages appear. TF_CPP_MIN_LOG_LEVEL is set to 2 (errors only) unless it is set already; it
    applies to the rest of the process and to the processes that it starts.

    Args:
        optional_packages: whether TensorFlow and Keras may use the packages that they can do without. A command starts
            in half the time without them; a user's own process keeps all features.
        for_training: whether the process trains; GPUs then get TRAINING_SETTINGS, and otherwise INFERENCE_SETTINGS.

    Raises:
        ConfigError: KSEG_LOG has another value.
    """
    level = os.environ.get(VARIABLE) or "info"
    if level not in LEVELS:
        raise ConfigError(unknown(f"value of {VARIABLE}:", level, LEVELS))
    if "tensorflow" in sys.modules:
        return
    for name, value in (GPU_SETTINGS | (TRAINING_SETTINGS if for_training else INFERENCE_SETTINGS)).items():
        os.environ.setdefault(name, value)
    hidden = () if optional_packages or keras_backend() != "tensorflow" else OPTIONAL_PACKAGES
    if level == "debug":
        _import_and_list_devices(hidden)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with filtered_stderr():
        _import_and_list_devices(hidden)


def prepare_stdout() -> None:
    """Write stdout line by line, and replace characters that its encoding lacks.

    Whoever follows the log should not wait for a full buffer, and a name outside ASCII must not end a command. A
    notebook or a test may have replaced stdout by an object that has no such settings; it stays as it is.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")


def keras_backend() -> str:
    """Return the name of the backend that Keras will use, found as Keras finds it."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    directory = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    try:
        return json.loads((directory / "keras.json").read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


@contextlib.contextmanager
def hidden_packages(names: tuple[str, ...]) -> Iterator[None]:
    """Let imports of these packages fail within the block, unless they have been imported before."""
    names = [name for name in names if name not in sys.modules]
    # None is Python's own mark of a module that cannot be imported.
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _import_and_list_devices(hidden: tuple[str, ...]) -> None:
    with hidden_packages(hidden):
        import tensorflow as tf

    # The first listing initializes CUDA, which reports a missing driver as an error.
    tf.config.list_physical_devices()


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Collect what is written to file descriptor 2, and print it after the block without TensorFlow's log lines.

    If the block raises an error or the process dies in it, everything is printed.
    """
    with contextlib.ExitStack() as stack:
        try:
            collected = stack.enter_context(tempfile.NamedTemporaryFile(prefix="kseg-stderr-"))
            stderr = os.dup(2)
            watcher = subprocess.Popen(["sh", "-c", WATCHER, "sh", collected.name], stdin=subprocess.PIPE)
        except OSError:
            # In a container without a temporary directory or a shell the messages appear.
            yield
            return
        os.dup2(collected.fileno(), 2)
        hidden = LOG_LINE
        try:
            yield
        except Exception:
            hidden = re.compile(rb"(?!)")
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            watcher.communicate(b"\n")
            collected.seek(0)
            os.write(2, b"".join(line for line in collected if not hidden.match(line)))
