"""The messages that docs/troubleshooting.md quotes are still those of the code."""

import ast
import re

import pytest

from tests.helpers.running import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
# Stands in a text for a value that is filled in.
VALUE = "\0"


def texts():
    """Yield the texts of all string literals and f-strings of the code, without docstrings."""
    for top in ("kseg", "serving", "pipeline"):
        for path in sorted((ROOT / top).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield node.value


TEXTS = list(dict.fromkeys(texts()))


def occurs(message):
    """Return whether one text of the code has the message's parts between `...` in their order."""
    parts = [part.strip() for part in message.split("...")]
    # Without a part of some length nearly every text would do.
    assert max(map(len, parts)) >= 8, message
    return any(stand_in_order(parts, text) for text in TEXTS)


def stand_in_order(parts, text):
    """Return whether the parts occur in the text, each behind the one before."""
    end = 0
    for part in parts:
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_occurs_in_the_code(message):
    assert occurs(message)


def test_the_page_lists_what_users_meet_most_and_each_once():
    assert len(MESSAGES) >= 40 and len(set(MESSAGES)) == len(MESSAGES)


def test_a_message_that_is_gone_would_be_noticed():
    assert not occurs("no such message ... of the code")
    # These words only stand in a docstring.
    assert not occurs("Raise HostsDisagree, with the same message on every host")
