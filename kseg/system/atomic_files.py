"""Atomic, durable writes: after a crash a file has either its old or its new content.

Transient storage errors are retried (kseg.system.retries).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kseg.system.retries import with_retries

# Prefix of temporary files. Without a running writer, such a file is the remainder of a killed process.
WRITING = ".writing-"


def write_text(path: Path, text: str, report: Callable[[str], None] = print) -> None:
    """Write a text file atomically, in UTF-8; raises OSError with the file's name."""
    write_bytes(path, text.encode("utf-8"), report)


def write_bytes(path: Path, content: bytes | memoryview, report: Callable[[str], None] = print) -> None:
    """Write a file atomically; raises OSError with the file's name.

    `report` receives a line for each retried storage error.
    """
    temporary = path.with_name(f"{WRITING}{os.getpid()}-{path.name}")

    def write() -> None:
        try:
            temporary.write_bytes(content)
            sync_file(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync_file(path.parent)

    with _named_error(path):
        with_retries(write, f"writing {path}", report)


def append_text(path: Path, text: str, report: Callable[[str], None] = print) -> None:
    """Append to a text file, which is created if missing; raises OSError and then appends nothing."""
    with _named_error(path):
        size = with_retries(lambda: path.stat().st_size if path.exists() else 0, f"reading {path}", report)

        def append() -> None:
            # The file is reopened for each attempt, because an open file may stay broken after a storage error.
            with path.open("ab") as file:
                # A failed attempt may have written a part of the text.
                file.truncate(size)
                file.write(text.encode())

        try:
            with_retries(append, f"writing {path}", report)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def sync_file(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the storage device; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync directories.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EOPNOTSUPP)):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named_error(path: Path) -> Iterator[None]:
    """Set the file name of an OSError that has none, or that of a temporary file, to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
