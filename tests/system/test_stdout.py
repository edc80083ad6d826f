"""Commands run with any stdout: one of ASCII, and one that a notebook has replaced."""

import io
import sys

import pytest

from kseg import cli
from kseg.system import quiet_start
from kseg.system.progress import Progress

NAMES = "дорога 道路 Straße caf\udce9"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    quiet_start.prepare_stdout()
    print(NAMES)
    # Lines are written at once.
    written = raw.getvalue().decode(encoding)
    assert written.endswith("\n") and "\\udce9" in written
    assert ("дорога" in written) == (encoding == "utf-8")


class OnlyWrite:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("make", [io.StringIO, OnlyWrite])
def test_a_replaced_stdout_is_used_as_it_is(monkeypatch, make):
    stdout = make()
    monkeypatch.setattr(sys, "stdout", stdout)

    def main():
        print(NAMES)
        Progress(1, "images").update(1)

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 0
    text = stdout.getvalue() if isinstance(stdout, io.StringIO) else stdout.text
    assert text.startswith(f"{NAMES}\n1/1 images")
