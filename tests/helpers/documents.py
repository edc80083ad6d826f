"""The documentation as tests read it: its pages, its shell blocks, and which test runs which."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.helpers.running import ROOT

# In the order in which their blocks are run.
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("serving", "pipeline", "benchmarks")),
)
BLOCK = re.compile(r"(?:^<!-- (?P<marker>[^\n]*) -->\n)?^```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"not run: (?P<reason>\S.*)|run by (?P<runner>test_\w+)")
# Runs the blocks without a marker.
DEFAULT_RUNNER = "test_end_to_end"


class Block(NamedTuple):
    """A shell block: its page, its text, and the test module that runs it or the reason why none does."""

    page: Path
    text: str
    runner: str
    reason: str


def blocks() -> list[Block]:
    """Return all shell blocks of the documentation; a marker of another form gives neither runner nor reason."""
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            marker = MARKER.fullmatch(match["marker"] or f"run by {DEFAULT_RUNNER}")
            runner, reason = (marker["runner"], marker["reason"]) if marker else ("", "")
            found.append(Block(page, match["text"], runner or "", reason or ""))
    return found


def run_by(runner: str) -> list[Block]:
    """Return the blocks that a test module runs."""
    return [block for block in blocks() if block.runner == runner]


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments; one that spans quotes is left out."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        if words:
            found.append(words)
    return found
