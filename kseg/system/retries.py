"""Retry storage operations after errors that are usually gone seconds later."""

import errno
import os
import random
import re
import sys
import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 5
# Seconds before the second attempt. The wait doubles after each further failure: 7.5 s in total.
FIRST_WAIT = 0.5

# Network file systems report these while a server restarts, a cable is moved or a path fails over. Retrying cannot
# repair any other error and would only delay its message: a full disk or quota (ENOSPC, EDQUOT, EFBIG), missing rights
# (EACCES, EPERM), a read-only file system (EROFS), a missing file (ENOENT, ENOTDIR, ENODEV), too many open files
# (EMFILE, ENFILE), or damaged content, which has no error number.
TRANSIENT = frozenset(
    {
        # The device or its server did not answer in time, or answered with a failure.
        errno.EIO,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.ENOLCK,
        # The server has restarted; reopening the file gives a new handle.
        errno.ESTALE,
        # The network path to the server is broken.
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.EPIPE,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.ECOMM,
    }
)

# A generator of this module: Keras seeds Python's global one, and training must find its state unchanged.
JITTER = random.Random()

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result],
    what: str,
    report: Callable[[str], None],
    attempts: int = ATTEMPTS,
    first_wait: float = FIRST_WAIT,
) -> Result:
    """Return the result of `action()`, calling it again after transient errors.

    Args:
        action: must be safe to repeat after it has failed halfway.
        what: names the action in reports, such as "writing runs/a/log".
        report: receives one line for each failed attempt.
        attempts: number of calls before the error is raised.
        first_wait: the wait before attempt n + 1 is first_wait * 2**(n - 1) seconds, with a random deviation of up to
            25 % so that many processes do not retry at the same moment.

    Raises:
        Exception: the last attempt's error, or immediately an error that is not transient.
    """
    for attempt in range(1, attempts):
        try:
            return action()
        # h5py and TensorFlow raise classes of their own, so no narrower class covers storage errors.
        except Exception as error:
            if not is_transient(error):
                raise
            wait = first_wait * 2 ** (attempt - 1) * JITTER.uniform(0.75, 1.25)
            report(f"{what} failed ({first_line(error)}); attempt {attempt + 1} of {attempts} in {wait:.1f} s")
        time.sleep(wait)
    return action()


def is_transient(error: Exception) -> bool:
    """Return whether the next attempt may succeed after this storage error."""
    return error_number(error) in TRANSIENT or _is_transient_in_tensorflow(error)


def _is_transient_in_tensorflow(error: Exception) -> bool:
    # Object stores raise these classes without an error number. A process that has not imported TensorFlow cannot have
    # received one, and this module must not be the first to import it.
    if "tensorflow" not in sys.modules:
        return False
    import tensorflow as tf

    return isinstance(error, (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError))


def error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, or None if it has none.

    h5py writes "errno = 5" into its message, tf.data turns a Python error into "[Errno 5]", and TensorFlow keeps only
    the system's text, such as "Input/output error".
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if match := re.search(r"errno\s*=?\s*(\d+)", text, re.IGNORECASE):
        return int(match[1])
    # The longest text wins, because one text may be the beginning of another.
    numbers = [number for number in errno.errorcode if os.strerror(number) in text]
    return max(numbers, key=lambda number: len(os.strerror(number)), default=None)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; of a very long one, its beginning and its end."""
    line = (str(getattr(error, "message", error)) or type(error).__name__).splitlines()[0]
    # TensorFlow writes the paths of all files involved before the cause.
    return line if len(line) <= 1200 else f"{line[:600]} ... {line[-500:]}"
