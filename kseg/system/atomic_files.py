"""Files that are as they were or as they were to be, whatever ends the process or the machine while they are written.

Storage that fails for a moment is asked again (kseg.system.retries).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kseg.system.retries import retried

# Names of what is being written begin with it; where nobody writes, it is what a killed process has left.
WRITING = ".writing-"


def write_text(path: Path, text: str, report: Callable[[str], None] = print) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part; raises OSError where it cannot."""
    write_bytes(path, text.encode("utf-8"), report)


def write_bytes(path: Path, content: bytes | memoryview, report: Callable[[str], None] = print) -> None:
    """Write a file as `write_text` does."""
    temporary = path.with_name(f"{WRITING}{os.getpid()}-{path.name}")

    def write() -> None:
        try:
            temporary.write_bytes(content)
            sync(temporary)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync(path.parent)

    with _naming(path):
        retried(write, f"writing {path}", report)


def append_text(path: Path, text: str, report: Callable[[str], None] = print) -> None:
    """Append to a file, which is made where there is none; raises OSError where that fails, and nothing is appended."""
    with _naming(path):
        size = retried(lambda: path.stat().st_size if path.exists() else 0, f"reading {path}", report)

        def append() -> None:
            # Opened anew: after a fault of the storage an open file may never work again.
            with path.open("ab") as file:
                # What a failed attempt has left.
                file.truncate(size)
                file.write(text.encode())

        try:
            retried(append, f"writing {path}", report)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


def sync(path: Path) -> None:
    """Wait until the storage holds a file, or a directory's names; raises OSError where it could not be written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep no directories of their own to write.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EOPNOTSUPP)):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file, or a temporary one, the name of the file that it is about."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
