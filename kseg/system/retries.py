"""Storage that fails for a moment: which errors pass by themselves, and trying again after growing waits."""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

ATTEMPTS = 5
# Seconds before the second attempt; each wait after it is twice as long, 7.5 s in all.
FIRST_WAIT = 0.5

# What network file systems answer while a server restarts, a cable is moved or a path is switched over. All other
# errors stay until somebody mends them, and waiting would only delay the message: a full disk or quota (ENOSPC,
# EDQUOT, EFBIG), rights (EACCES, EPERM), a read-only file system (EROFS), what is not there (ENOENT, ENOTDIR, ENODEV),
# too many open files (EMFILE, ENFILE), and content that is damaged, which has no number.
TRANSIENT = frozenset({
    # The device or its server did not answer in time, or answered with a failure.
    errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOLCK,
    # The server has restarted; opened again, the file has a new handle.
    errno.ESTALE,
    # The way there is broken.
    errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EPIPE,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECOMM,
})
# TensorFlow's classes for the same, which object stores raise without a number.
TRANSIENT_CLASSES = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)

# Its own: Keras seeds Python's, which training must find as it left it.
JITTER = random.Random()

Result = TypeVar("Result")


def retried(action: Callable[[], Result], what: str, report: Callable[[str], None], attempts: int = ATTEMPTS,
            first_wait: float = FIRST_WAIT) -> Result:
    """Return what `action()` returns, calling it again after errors that pass by themselves.

    Before attempt n + 1 it waits first_wait * 2**(n - 1) seconds, more or less by up to a quarter, so that many
    processes do not come back at once; each wait is reported with `what` was done and its error. The action must be
    such that it can be repeated after it has failed half way. Raises what the last attempt raised, or at once an error
    that is not transient.
    """
    for attempt in range(1, attempts):
        try:
            return action()
        # h5py and TensorFlow raise what they like.
        except Exception as error:
            if not is_transient(error):
                raise
            wait = first_wait * 2 ** (attempt - 1) * JITTER.uniform(0.75, 1.25)
            report(f"{what} failed ({first_line(error)}); attempt {attempt + 1} of {attempts} in {wait:.1f} s")
        time.sleep(wait)
    return action()


def is_transient(error: Exception) -> bool:
    """Return whether an error of the storage may be gone at the next attempt, by TRANSIENT and TRANSIENT_CLASSES."""
    return isinstance(error, TRANSIENT_CLASSES) or number(error) in TRANSIENT


def number(error: Exception) -> int | None:
    """Return the operating system's number of an error; None where it has none.

    h5py writes "errno = 5" into its words, Python's errors in tf.data become "[Errno 5]", and TensorFlow leaves only
    the system's text for it, such as "Input/output error".
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := re.search(r"errno\s*=?\s*(\d+)", text, re.IGNORECASE):
        return int(found[1])
    # The longest: one text may be the beginning of another.
    named = [each for each in errno.errorcode if os.strerror(each) in text]
    return max(named, key=lambda each: len(os.strerror(each)), default=None)


def first_line(error: Exception) -> str:
    """Return what an error says in its first line, at most 200 characters."""
    text = str(getattr(error, "message", error)) or type(error).__name__
    return text.splitlines()[0][:200]
