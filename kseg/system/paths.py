"""Recognize paths that TensorFlow cannot work with, and print those that are not UTF-8."""

import re
from pathlib import Path

# The files of a path are found only if it matches itself as a pattern; `*` and `?` do.
PATTERN_CHARACTERS = re.compile(r"[\[\\]")


def path_fault(path: Path | str) -> str:
    """Return why TensorFlow could not write files below a path, or not read them again; "" if it can."""
    found = PATTERN_CHARACTERS.search(str(path))
    if found:
        return (
            f"contains {found[0]!r}, which TensorFlow takes for a pattern when it looks for files; choose a path "
            "without [ and \\, or a relative one that starts below it"
        )
    if not is_utf8(path):
        return "is not UTF-8, which TensorFlow needs; choose another path, or a relative one that starts below it"
    return ""


def is_utf8(path: Path | str) -> bool:
    """Return whether a path, which may hold any bytes, is valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""Return a text with escapes, such as \xff, in place of bytes of paths that are not UTF-8.

    No stream that encodes strictly, as a log file or a notebook, can print these bytes.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
