"""Recognize paths that TensorFlow takes for patterns when it reads a checkpoint or a SavedModel."""

import re
from pathlib import Path

# The files of a path are found only if it matches itself as a pattern; `*` and `?` do.
PATTERN_CHARACTERS = re.compile(r"[\[\\]")


def pattern_fault(path: Path | str) -> str:
    """Return why TensorFlow could write files below a path but not read them again, or ""."""
    found = PATTERN_CHARACTERS.search(str(path))
    return found and (f"contains {found[0]!r}, which TensorFlow takes for a pattern when it looks for files; choose a "
                      "path without [ and \\, or a relative one that starts below it") or ""
