"""Parse JSON with large arrays of numbers, several times faster than the json module alone.

The json module holds the GIL while it parses, which would also delay health checks. Here arrays of numbers are parsed
in pieces, and a Python loop walks over all other values.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from json.decoder import JSONArray, JSONObject

from serving.errors import ServingError, invalid

# A value outside an array of numbers takes microseconds, and up to 100 times the memory of its text.
MAX_VALUES = 1 << 20
# NumPy supports 64 dimensions. The limit also bounds the search for the shape.
MAX_DIMENSIONS = 32
# Number of characters parsed while holding the GIL, about a millisecond.
PIECE = 1 << 16
# The bounded repeat limits the work on nested brackets without numbers, which are scanned again at each bracket.
NUMBERS_BEGIN = re.compile(r"\[[\[ \t\r\n]{0,4096}+[-0-9NI]")
BLANKS = b" \t\r\n"
# These include the letters of NaN, Infinity and -Infinity, which TensorFlow Serving accepts.
NUMBERS = b"0123456789+-.eE" + b"NaInfity" + BLANKS
BRACKETS_TO_BLANKS = bytes.maketrans(b"[]", b"  ")
# Messages of the json module, and the messages of rapidjson, TensorFlow Serving's parser.
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
    """A regular array of numbers that is not parsed yet.

    Attributes:
        shape: Lengths of the nested arrays, outermost first.
        text: JSON of the array with all brackets replaced by blanks.
        start: Offset of the array in the document, in characters.
    """

    shape: tuple[int, ...]
    text: str
    start: int

    def pieces(self) -> Iterator[list[int | float]]:
        """Yield all numbers in order, some at a time; raises ServingError if they are not JSON."""
        begin, count = 0, 0
        while begin <= len(self.text):
            end = self.text.find(",", begin + PIECE)
            end = len(self.text) if end < 0 else end
            try:
                values = json.loads(f"[{self.text[begin:end]}]")
            except json.JSONDecodeError as error:
                raise parse_error(error.msg, self.start + begin + error.pos - 1) from None
            # An integer has more digits than Python converts.
            except ValueError:
                raise parse_error("Number too big to be stored in double.", self.start + begin) from None
            count += len(values)
            yield values
            begin = end + 1
        if count != math.prod(self.shape):
            raise parse_error("Expecting value", self.start)


def parse_error(message: str, offset: int) -> ServingError:
    """Return the error of malformed JSON; `offset` counts characters."""
    return invalid(f"JSON Parse error: {MESSAGES.get(message, message)} at offset: {offset}")


def parse_document(body: bytes) -> object:
    """Parse a JSON document.

    Returns:
        dicts, lists, str, int, float, bool and None, with a Dense in place of each regular array of numbers.

    Raises:
        ServingError: INVALID_ARGUMENT with the offset, if the document is malformed, nested too deeply or has too many
            values.
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
    """Functions that parse the value at an index of a text, and their shared state.

    Their signatures are those of the json module's scanners: they return the value and the index of its end, and raise
    StopIteration if there is no value.
    """

    def __init__(self, text: str):
        self.memo: dict[str, str] = {}
        self.values = 0
        # Index of the next quote and brace. An array of numbers contains none of them.
        self.next = dict.fromkeys('"{}', -1)
        # Number of characters that all searches for the ends of arrays may still scan, to keep their total linear.
        self.scan_budget = 4 * len(text)

    def read(self, text: str, index: int) -> tuple[object, int]:
        """Parse a value of any kind."""
        if text[index : index + 1] == "[" and NUMBERS_BEGIN.match(text, index):
            # In an irregular array the rows are parsed plainly, since they are usually small and many.
            return self.dense(text, index) or self.read_plain(text, index)
        return self._read(text, index, self.read)

    def read_plain(self, text: str, index: int) -> tuple[object, int]:
        """Parse a value of any kind without creating Dense arrays."""
        return self._read(text, index, self.read_plain)

    def _read(self, text: str, index: int, read_inner: Callable[[str, int], tuple[object, int]]) -> tuple[object, int]:
        self.count()
        match text[index : index + 1]:
            case "[":
                return JSONArray((text, index + 1), read_inner)
            case "{":
                return JSONObject((text, index + 1), True, read_inner, None, None, self.memo)
        return scan(text, index)

    def count(self) -> None:
        """Count a value; raises ServingError above MAX_VALUES."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise invalid(
                f"JSON Parse error: There are more than {MAX_VALUES} values outside of regular arrays of numbers."
            )

    def dense(self, text: str, index: int) -> tuple[Dense, int] | None:
        """Return the array of numbers at an index and the index of its end, None if there is no such array."""
        self.count()
        for mark, position in self.next.items():
            if position < index:
                position = text.find(mark, index)
                self.next[mark] = len(text) if position < 0 else position
        end = min(self.next.values())
        self.scan_budget -= end - index
        last = text.rfind("]", index, end) + 1
        if not last or self.scan_budget < 0:
            return None
        candidate = text[index:last]
        if not candidate.isascii():
            return None
        array = candidate.encode()
        shape = dense_shape(array)
        return shape and (Dense(shape, array.translate(BRACKETS_TO_BLANKS).decode(), index), last)


def dense_shape(array: bytes) -> tuple[int, ...] | None:
    """Return the shape of the JSON of a regular array of numbers, None for anything else.

    The shape of a regular array determines all its brackets and commas. The shape is guessed from the end of the first
    row of each dimension, and the brackets and commas are compared with those of that shape. The numbers are not
    checked.
    """
    packed = array.translate(None, BLANKS)
    if any(mark in packed for mark in (b",]", b"[,", b"[]")):
        return None
    marks = array.translate(None, NUMBERS)
    rank = len(marks) - len(marks.lstrip(b"["))
    if rank > MAX_DIMENSIONS:
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
