"""Recognize lines that are not meant for classes.txt, and tell what to write instead."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

FORMS = "write NAME or VALUE NAME, optionally followed by a color such as #40a0ff"
# Names that annotation tools give to pixels without a class, in lower case and without marks.
IGNORED_NAMES = frozenset(
    (
        "ignore",
        "ignored",
        "ignorelabel",
        "ignoreregion",
        "void",
        "unlabeled",
        "unlabelled",
        "unannotated",
        "dontcare",
        "backgroundignore",
        "ignorebackground",
    )
)
# Words of a table's header, in lower case and without marks.
NAMING_WORDS = frozenset(
    (
        "name",
        "names",
        "class",
        "classes",
        "classname",
        "classnames",
        "label",
        "labels",
        "labelname",
        "category",
        "categories",
        "categoryname",
    )
)
NUMBER_WORDS = frozenset(
    (
        "id",
        "ids",
        "idx",
        "index",
        "value",
        "pixelvalue",
        "pixel",
        "grayvalue",
        "labelid",
        "classid",
        "categoryid",
        "trainid",
        "rgb",
        "colorrgb",
        "color",
        "colour",
        "hex",
        "parts",
        "actions",
        "ratio",
        "train",
        "val",
    )
)
CHANNELS = (("r", "g", "b"), ("red", "green", "blue"))
SEPARATORS = re.compile(r"[,;:|=\t]")
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
# "1. road", "1) road", "-1 road".
NUMBERED = re.compile(r"[+-]?\d+\s*[:,;=.)|]|[+-]\d")
YAML = re.compile(r"(names|nc|classes|labels|item|path|train|val)\s*[:{]|---$|- ", re.IGNORECASE)
# A remark behind a name: "road # gray", "road // gray".
REMARK = re.compile(r"\s(#(?![0-9a-f]{3,6}\b)|//).*", re.IGNORECASE)
HEX = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)
SHORT_HEX = re.compile(r"#[0-9a-f]{3}", re.IGNORECASE)
# A color inside a name: "road,#804080", "road [128 64 128]", "road 128 64 128".
COLOR_INSIDE = re.compile(r"#[0-9a-f]{3,6}\b|[\[(]\s*\d+[\s,]+\d+[\s,]+\d+\s*[\])]|(\s\d+){3}$", re.IGNORECASE)


def plain(name: str) -> str:
    """Return a name in lower case with letters and digits only."""
    return "".join(character for character in name.casefold() if character.isalnum())


def is_ignored(name: str) -> bool:
    """Return whether a name stands for pixels without a class, such as `Ignore` or `unlabeled`."""
    return plain(name) in IGNORED_NAMES


def foreign_format(lines: Sequence[str]) -> str:
    """Return why the lines of a file are of another format, and what to write; "" if they are not."""
    if not lines:
        return ""
    first = lines[0]
    if "\0" in first:
        return "the file holds NUL characters, as UTF-16 text does; save it as UTF-8"
    if first[0] in "[{":
        return f"this looks like JSON; list one class per line{_converted_json(lines)}"
    if first[0] == "<":
        return f"{first!r} looks like XML; list one class per line, as in `road`"
    if YAML.match(first):
        return f"{first!r} looks like YAML; list one class per line, as in `road`, or `7 road` with its label value"
    return _header(lines)


def _converted_json(lines: Sequence[str]) -> str:
    """Return the first class of a JSON text as a line, introduced by ": write "; "" if it is unclear."""
    try:
        value = json.loads("\n".join(lines))
    except ValueError:
        return ", as in `road`"
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    if isinstance(value, dict):
        entries = [f"{key} {entry}" for key, entry in value.items()]
    else:
        entries = [
            " ".join(str(part) for part in entry.values()) if isinstance(entry, dict) else str(entry)
            for entry in (value if isinstance(value, list) else [])
        ]
    line = entries and (suggestion(entries[0]) or entries[0])
    return f": write `{line}` as the first one" if line else ", as in `road`"


def _header(lines: Sequence[str]) -> str:
    """Return that the first line is the header of a table; "" if it is not."""
    first = lines[0].lstrip("#/ ")
    words = [plain(word) for word in re.split(r"[\s,;:|]+", first) if plain(word)]
    known = NAMING_WORDS | NUMBER_WORDS | {channel for channels in CHANNELS for channel in channels}
    if not words or not set(words) <= known:
        return ""
    has_channels = any(set(channels) <= set(words) for channels in CHANNELS)
    if not (has_channels or len(words) > 1 and set(words) & NAMING_WORDS or words[0] in NAMING_WORDS):
        return ""
    text = f"{lines[0]!r} looks like the header of a table; remove it"
    example = suggestion(lines[1]) if len(lines) > 1 else ""
    if not example:
        return text + " and list one class per line: NAME or VALUE NAME"
    text += f" and write the next line as `{example}`"
    if example.startswith("#"):
        color, name = example.split(maxsplit=1)
        text += f" if labels store colors, or as `0 {name} {color}` if they store values"
    return text


def suggestion(line: str) -> str:
    """Return the line that a table's row, or a line with its parts in another order, was meant to be.

    Return "" if that is unclear.
    """
    words = [word for word in re.split(r"[\s,;:|=()\[\]{}\"'`]+", line) if word]
    if words and re.fullmatch(r"\d+[.)]", words[0]):
        words[0] = words[0][:-1]
    color = next((word.lower() for word in words if HEX.fullmatch(word)), "")
    short = next((word for word in words if SHORT_HEX.fullmatch(word)), "")
    if short and not color:
        color = "#" + "".join(2 * digit for digit in short[1:].lower())
    words = [word for word in words if not word.startswith("#")]
    numbers = [int(word) for word in words if word.isdecimal()]
    name = " ".join(word for word in words if not NUMBER.fullmatch(word) and word.lower() != "rgb")
    has_other_numbers = any(NUMBER.fullmatch(word) and not word.isdecimal() for word in words)
    if not name or has_other_numbers or any(number > 255 for number in numbers) or len(numbers) > 4:
        return ""
    if is_ignored(name):
        name = "ignore"
    if color and not numbers and line.lstrip().startswith("#"):
        return f"{color} {name}"
    if len(numbers) >= 3 and not color:
        # Three numbers are a color. A fourth is the value, which comes first in all known tables.
        color = f"#{bytes(numbers[-3:]).hex()}"
        numbers = numbers[:-3]
        if not numbers:
            return f"{color} {name}"
    selector = ",".join(map(str, numbers))
    return " ".join(filter(None, (selector, name, color if name != "ignore" else "")))


def one_line_hint(names: Sequence[str]) -> str:
    """Return how to write the only class if it is a list of classes; "" if it is not."""
    parts = [part.strip() for part in re.split(r"[,;|\t/]", names[0]) if part.strip()]
    if len(parts) < 2:
        return ""
    lines = ", ".join(f"`{part}`" for part in parts[:3])
    return f". {names[0]!r} looks like a list: write {lines} in lines of their own"


class LineFaults:
    """Finds what is wrong with single lines, given all lines of the file."""

    def __init__(self, lines: Sequence[tuple[str, str]]):
        """Take (selector, name) of each line."""
        self.lines = lines
        self.stems = Counter(_stem(name) for _, name in lines)
        selected = [name for selector, name in lines if selector and not is_ignored(name)]
        # A third column of numbers, such as train ids. A single name may end in a number.
        self.all_numbered = len(selected) > 1 and all(
            _stem(name) != name and self.stems[_stem(name)] == 1 and not COLOR_INSIDE.search(name) for name in selected
        )

    def describe(self, line: str, selector: str, name: str) -> str:
        """Return what is wrong with a line and what to write; "" for a correct line."""
        if REMARK.search(name):
            bare = REMARK.sub("", line)
            return f"{line!r} ends with a remark, which would be part of the name; write `{suggestion(bare) or bare}`"
        meant = suggestion(f"{selector} {_stem(name)}" if selector and self.all_numbered else line)
        if not selector and is_ignored(name):
            return (
                f"`{name}` needs the value to ignore; write VALUE ignore, as in `255 ignore`, or remove the line "
                "if only the value 255 is ignored"
            )
        if any(unicodedata.category(character) == "Cc" for character in name):
            return f"{line!r} holds a control character; save the file as UTF-8 text"
        if NUMBER.fullmatch(name):
            return (
                f"the name {name!r} is a number; write VALUE NAME, as in `{name} road`"
                if name.isdecimal() and int(name) < 256
                else f"the name {name!r} is a number; values are 0 to 255 and names begin with a letter, as in `7 road`"
            )
        if re.match(r"[+-]\d", name):
            return f"{line!r} is not a class name; label values are 0 to 255, so remove the line or write VALUE NAME"
        if name == "*":
            return "`*` needs a name; write `* ignore` to ignore all other values, or `* NAME`"
        is_malformed = (
            name.startswith(("#", "//", '"', "'", "*", ",", ";", ":", "|", "="))
            or name.endswith(",")
            or not selector
            and NUMBERED.match(name)
            or _has_numeric_field(name)
            or NUMBER.fullmatch(name.split()[0])
            or COLOR_INSIDE.search(name)
            or selector
            and self.all_numbered
            and _stem(name) != name
        )
        if is_malformed:
            return f"{line!r} is not a class name; {_instead(line, meant)}"
        if self._ends_with_value(selector, name):
            meant = [
                f"`{suggestion(other)}`"
                for other_selector, other in self.lines
                if self._ends_with_value(other_selector, other)
            ]
            return (
                f"{line!r} looks like a name with its label value, which comes first: write "
                f"{' and '.join(meant[:4])}. If {name.rsplit(maxsplit=1)[1]} is part of the name, write VALUE "
                f"{name}"
            )
        return ""

    def _ends_with_value(self, selector: str, name: str) -> bool:
        """Return whether a line looks like `object 255`. Names that differ in a number only, as `lane 1`, do not."""
        return not selector and _stem(name) != name and self.stems[_stem(name)] == 1


def _instead(line: str, meant: str) -> str:
    if REMARK.match(f" {line}"):
        return "remove the line if it is a remark" + (f"; write `{meant}` if it is a class" if meant else "")
    if not meant or meant == line:
        return FORMS
    if meant.startswith("#"):
        color, name = meant.split(maxsplit=1)
        return f"write `{meant}` if labels store colors, or `VALUE {name} {color}` if they store values"
    return f"write `{meant}`"


def _stem(name: str) -> str:
    """Return a name without a label value behind it, or the whole name."""
    words = name.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and words[1].isdecimal() and int(words[1]) < 256 else name


def _has_numeric_field(name: str) -> bool:
    """Return whether separators enclose a number, as in `road,128,64,128`."""
    fields = [field.strip() for field in SEPARATORS.split(name)]
    return len(fields) > 1 and any(NUMBER.fullmatch(field) for field in fields)
