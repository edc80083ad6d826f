"""Reading JSON whose arrays of numbers are large: a picture's are read several times faster than by json alone.

json holds the interpreter while it reads, so that nothing else in the process runs, health checks neither. Here
arrays of numbers are read in pieces, and all else is walked in Python.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json.decoder import JSONArray, JSONObject

from serving.errors import ServingError, invalid

# Each takes up to 100 times the memory of its text, and microseconds.
MOST_VALUES = 1 << 20
# numpy has at most 64 dimensions, and a search for a rank of millions would take for ever.
MOST_DIMENSIONS = 32
# Characters read without letting others run: about a millisecond.
PIECE = 1 << 16
# Within so many characters, as what begins thus and does not go on so is read again at each bracket.
NUMBERS_BEGIN = re.compile(r"\[[\[ \t\r\n]{0,4096}+[-0-9NI]")
BLANKS = b" \t\r\n"
# With NaN, Infinity and -Infinity, which TensorFlow Serving reads.
NUMBERS = b"0123456789+-.eE" + b"NaInfity" + BLANKS
BRACKETS_TO_BLANKS = bytes.maketrans(b"[]", b"  ")
# What json says, and the same in the words of TensorFlow Serving's parser.
MESSAGES = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member, or a comma or ] after an array element.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Extra data": "The document root must not be followed by other values.",
}
scan = json.JSONDecoder().scan_once


@dataclass(frozen=True)
class Dense:
    """An array of numbers alone, as many everywhere: its `shape`, and its `text` with brackets blanked.

    `start` is where it stands in the document.
    """

    shape: tuple[int, ...]
    text: str
    start: int

    def pieces(self) -> Iterator[list[int | float]]:
        """Yield all numbers in their order, some at a time; raises ServingError where they are no JSON."""
        begin, count = 0, 0
        while begin <= len(self.text):
            end = self.text.find(",", begin + PIECE)
            end = len(self.text) if end < 0 else end
            try:
                values = json.loads(f"[{self.text[begin:end]}]")
            except json.JSONDecodeError as error:
                raise parse_error(error.msg, self.start + begin + error.pos - 1) from None
            # An int of more digits than Python converts.
            except ValueError:
                raise parse_error("Number too big to be stored in double.", self.start + begin) from None
            count += len(values)
            yield values
            begin = end + 1
        if count != math.prod(self.shape):
            raise parse_error("Expecting value", self.start)


def parse_error(message: str, offset: int) -> ServingError:
    """Return the error of a document that is no JSON; `offset` in characters."""
    return invalid(f"JSON Parse error: {MESSAGES.get(message, message)} at offset: {offset}")


def read(body: bytes) -> object:
    """Return a JSON document: dicts, lists, str, int, float, bool, None, and Dense for arrays of numbers alone.

    Raises ServingError, INVALID_ARGUMENT naming the place, where it is no JSON or nested too deeply.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise parse_error("Invalid encoding in string.", error.start) from None
    begin = len(text) - len(text.lstrip(BLANKS.decode()))
    try:
        value, end = _Reader(text).read(text, begin)
    except StopIteration as error:
        empty = begin == len(text)
        raise parse_error("The document is empty." if empty else "Expecting value", error.value) from None
    except json.JSONDecodeError as error:
        raise parse_error(error.msg, error.pos) from None
    except RecursionError:
        raise invalid("JSON Parse error: Values are nested too deeply.") from None
    except ValueError:
        raise invalid("JSON Parse error: Number too big to be stored in double.") from None
    if rest := text[end:].lstrip(BLANKS.decode()):
        raise parse_error("Extra data", len(text) - len(rest))
    return value


class _Reader:
    """Functions that read the value at an index of a text, in the form of json's scanners, and what they share.

    They return the value and where it ends, and raise StopIteration where there is none.
    """

    def __init__(self, text: str):
        self.memo: dict[str, str] = {}
        self.values = 0
        # Where the next ones are that no array of numbers holds.
        self.next = dict.fromkeys('"{}', -1)
        # Looking for the ends of arrays that are none of numbers shall not take long altogether.
        self.left = 4 * len(text)

    def read(self, text: str, index: int) -> tuple[object, int]:
        """Read any value."""
        if text[index:index + 1] == "[" and NUMBERS_BEGIN.match(text, index):
            # Where it is none as a whole, its rows are not tried one by one: they are many, and small.
            return self.dense(text, index) or self.read_plain(text, index)
        return self._read(text, index, self.read)

    def read_plain(self, text: str, index: int) -> tuple[object, int]:
        """Read any value, without Dense."""
        return self._read(text, index, self.read_plain)

    def _read(self, text: str, index: int, read_inner: Callable[[str, int], tuple[object, int]]) -> tuple[object, int]:
        self.count()
        match text[index:index + 1]:
            case "[":
                return JSONArray((text, index + 1), read_inner)
            case "{":
                return JSONObject((text, index + 1), True, read_inner, None, None, self.memo)
        return scan(text, index)

    def count(self) -> None:
        """Count a value; raises ServingError where there are too many."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise invalid(f"JSON Parse error: There are more than {MOST_VALUES} values outside of regular arrays of "
                          "numbers.")

    def dense(self, text: str, index: int) -> tuple[Dense, int] | None:
        """Return the array of numbers that begins at an index, and where it ends; None where it is none."""
        self.count()
        for mark, place in self.next.items():
            if place < index:
                found = text.find(mark, index)
                self.next[mark] = len(text) if found < 0 else found
        end = min(self.next.values())
        self.left -= end - index
        last = text.rfind("]", index, end) + 1
        if not last or self.left < 0:
            return None
        found = text[index:last]
        if not found.isascii():
            return None
        array = found.encode()
        shape = dense_shape(array)
        return shape and (Dense(shape, array.translate(BRACKETS_TO_BLANKS).decode(), index), last)


def dense_shape(array: bytes) -> tuple[int, ...] | None:
    """Return the shape of an array of numbers, None where lengths differ or where there is something else.

    The brackets and commas of a regular array follow from its shape: the shape is guessed from where the first ones
    of each dimension end, and then they all have to be there. The numbers themselves are not looked at.
    """
    packed = array.translate(None, BLANKS)
    if any(mark in packed for mark in (b",]", b"[,", b"[]")):
        return None
    marks = array.translate(None, NUMBERS)
    rank = len(marks) - len(marks.lstrip(b"["))
    if rank > MOST_DIMENSIONS:
        return None
    shape = [marks.find(b"]") - rank + 1]
    unit = b"[" + b"," * (shape[0] - 1) + b"]"
    for depth in range(2, rank + 1):
        length = marks.find(b"]" * depth) + 2 * depth - rank
        count = (length - 1) // (len(unit) + 1)
        if count < 1:
            return None
        shape.insert(0, count)
        unit = b"[" + b",".join([unit] * count) + b"]"
    return tuple(shape) if unit == marks else None
