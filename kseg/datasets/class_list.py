"""Read and write the lines of classes.txt, which lists the classes of a folder dataset.

A line is `NAME`, `SELECTOR NAME` or `SELECTOR ignore`, and a palette color `#rrggbb` may follow. A selector is a label
value, several values (`7,8`), a label color (`#804080` or `128,64,128`), several colors (`#804080,#000000`), or `*`
for everything that no other line selects.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kseg.config.sections import IGNORED
from kseg.datasets import class_list_faults, class_names
from kseg.errors import DataError

# Train id of raw values that a dataset does not define. A label with such a value is an error.
UNMAPPED = 254
OTHERS = "*"
NUMBERS = re.compile(r"\d+(,\d+)*")
COLORS = re.compile(r"#[0-9a-f]{6}(,#[0-9a-f]{6})*", re.IGNORECASE)


@dataclass(frozen=True)
class ClassList:
    """The classes of a dataset and what selects them in labels.

    Attributes:
        names: Class names in train id order.
        palette: One RGB color per class.
        label_table: 256 train ids, one per raw label value; 255 is ignored, 254 (UNMAPPED) an undefined value.
        label_colors: (RGB color, raw label value) of each color that labels may have; empty if labels store values.
        other_colors: Raw label value of all other colors.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_table: tuple[int, ...]
    label_colors: tuple[tuple[tuple[int, int, int], int], ...] = ()
    other_colors: int = UNMAPPED


@dataclass(frozen=True)
class _Line:
    """A line of classes.txt: its number, text, selector ("" for none), name and palette color ("" for none)."""

    number: int
    text: str
    selector: str
    name: str
    color: str


def parse_classes(path: str, text: str) -> ClassList:
    """Return the classes that the text of a classes.txt lists.

    Args:
        path: Name of the file for messages.
        text: The contents of the file.

    Raises:
        DataError: A line is malformed; the message names the file, the line and what to write instead.
    """
    # A byte order mark may also stand between files that were joined; it would become part of a name.
    stripped = [(number, line.replace("\ufeff", "").strip()) for number, line in enumerate(text.splitlines(), 1)]
    filled = [(number, line) for number, line in stripped if line]
    hint = class_list_faults.foreign_format([line for _, line in filled])
    if hint:
        raise DataError(f"{path}, line {filled[0][0]}: {hint}")
    lines = [_split_line(number, line) for number, line in filled]
    faults = class_list_faults.LineFaults([(line.selector, line.name) for line in lines])
    for line in lines:
        fault = faults.describe(line.text, line.selector, line.name)
        if fault:
            raise DataError(f"{path}, line {line.number}: {fault}")
    listed = _read_colors(path, lines) if _selects_colors(lines) else _read_values(path, lines)
    count = len(listed.names)
    # The train ids 254 and 255 are reserved for unmapped and ignored pixels.
    if not 2 <= count <= UNMAPPED:
        hint = class_list_faults.one_line_hint(listed.names) if count == 1 else ""
        raise DataError(f"{path} lists {count} class{'es' * (count != 1)}; 2 to {UNMAPPED} are required{hint}")
    return listed


def _split_line(number: int, text: str) -> _Line:
    words = text.split()
    color = words.pop() if len(words) > 1 and words[-1].startswith("#") else ""
    is_selector = words[0] == OTHERS or NUMBERS.fullmatch(words[0]) or COLORS.fullmatch(words[0])
    selector = words.pop(0) if len(words) > 1 and is_selector else ""
    return _Line(number, text, selector, " ".join(words), color)


def _selects_colors(lines: Sequence[_Line]) -> bool:
    """Return whether labels are colors: a selector is `#rrggbb`, or all selectors are three numbers."""
    selectors = [line.selector for line in lines if line.selector not in ("", OTHERS)]
    if any(selector.startswith("#") for selector in selectors):
        return True
    return bool(selectors) and all(selector.count(",") == 2 for selector in selectors)


def _read_values(path: str, lines: Sequence[_Line]) -> ClassList:
    """Return the classes of lines that select label values."""
    # The train id of each raw value, and of OTHERS.
    train_ids: dict[int | str, int] = {}
    names, palette = [], []
    for line in lines:
        place = f"{path}, line {line.number}"
        if not line.selector:
            keys = [len(names)]
        else:
            keys = [OTHERS] if line.selector == OTHERS else [int(word) for word in line.selector.split(",")]
        for key in keys:
            if key != OTHERS and key > 255:
                raise DataError(f"{place}: value {key} is above 255")
            if key in train_ids or keys.count(key) > 1:
                raise DataError(f"{place}: {_repeated(line, key)}")
        train_id = _add_class(place, line, names, palette)
        train_ids |= dict.fromkeys(keys, train_id)
    others = train_ids.pop(OTHERS, UNMAPPED)
    table = {IGNORED: IGNORED} | train_ids
    return ClassList(tuple(names), tuple(palette), tuple(table.get(value, others) for value in range(256)))


def _repeated(line: _Line, key: int | str) -> str:
    if key == OTHERS:
        return f"{OTHERS} is repeated; one line may select all other values"
    if not line.selector:
        return (
            f"value {key} is repeated: a line without a value has the number of classes before it; write VALUE "
            f"{line.name}"
        )
    if line.selector.count(",") == 2:
        return (
            f"value {key} is repeated; if {line.selector} is a label color, every line needs a color, such as "
            f"`{_hex_of(line.selector)} {line.name}`"
        )
    return f"value {key} is repeated; a value belongs to one line"


def _hex_of(numbers: str) -> str:
    """Return `#rrggbb` of `r,g,b`."""
    return "#" + "".join(f"{int(word):02x}" for word in numbers.split(","))


def _read_colors(path: str, lines: Sequence[_Line]) -> ClassList:
    """Return the classes of lines that select label colors."""
    label_colors: dict[tuple[int, int, int], int] = {}
    names, palette, others = [], [], UNMAPPED
    for line in lines:
        place = f"{path}, line {line.number}"
        colors = [] if line.selector == OTHERS else _colors(place, line)
        for color in colors:
            if color in label_colors or colors.count(color) > 1:
                raise DataError(f"{place}: the color #{bytes(color).hex()} is repeated; a color belongs to one line")
        if line.selector == OTHERS and others != UNMAPPED:
            raise DataError(f"{place}: {OTHERS} is repeated; one line may select all other colors")
        if line.color and colors:
            raise DataError(
                f"{place}: {line.selector} and {line.color} are two colors; the color in front is also "
                f"the one of the palette: write `{line.selector} {line.name}`"
            )
        train_id = _add_class(place, line, names, palette, colors)
        label_colors |= dict.fromkeys(colors, train_id)
        if line.selector == OTHERS:
            others = train_id
    values = set(range(len(names))) | {IGNORED}
    table = tuple(value if value in values else UNMAPPED for value in range(256))
    return ClassList(tuple(names), tuple(palette), table, tuple(label_colors.items()), others)


def _colors(place: str, line: _Line) -> list[tuple[int, int, int]]:
    """Return the colors that a line selects; raises DataError if there are none."""
    if line.selector.startswith("#"):
        return [tuple(bytes.fromhex(word[1:])) for word in line.selector.split(",")]
    numbers = [int(word) for word in line.selector.split(",") if word]
    if not numbers:
        raise DataError(
            f"{place}: {line.name!r} has no color, but another line begins with one, which selects label "
            f"colors. If labels store colors, write `#rrggbb {line.name}`; if they store values, write "
            "the colors behind the names, as in `road #804080`"
        )
    if len(numbers) != 3:
        raise DataError(
            f"{place}: {line.selector} is not a color, but another line begins with one; labels store "
            "either values (`7 road #804080`) or colors (`#804080 road`)"
        )
    if max(numbers) > 255:
        raise DataError(f"{place}: {max(numbers)} in the color {line.selector} is above 255")
    return [tuple(numbers)]


def _add_class(
    place: str,
    line: _Line,
    names: list[str],
    palette: list[tuple[int, int, int]],
    colors: Sequence[tuple[int, int, int]] = (),
) -> int:
    """Append a line's class and its color, unless it is ignored, and return the train id.

    `colors` are the label colors that the line selects.
    """
    if class_list_faults.is_ignored(line.name):
        return IGNORED
    if line.name in names:
        merged = "" if line.selector in ("", OTHERS) else f"; write all its values in one line, as in `7,8 {line.name}`"
        raise DataError(f"{place}: class {line.name!r} is repeated{merged}")
    names.append(line.name)
    palette.append(colors[0] if colors else _palette_color(place, line, len(names)))
    return len(names) - 1


def _palette_color(place: str, line: _Line, number: int) -> tuple[int, int, int]:
    if not line.color:
        return class_names.class_palette(number)
    if not COLORS.fullmatch(line.color) or len(line.color) != 7:
        raise DataError(f"{place}: {line.color!r} is not a color such as #40a0ff")
    return tuple(bytes.fromhex(line.color[1:]))


def classes_text(names: Sequence[str], palette: Sequence[tuple[int, int, int]], label_table: Sequence[int]) -> str:
    """Return a classes.txt that selects the same label values.

    Args:
        names: Class names in train id order.
        palette: One RGB color per class.
        label_table: 256 train ids, one per raw label value.
    """
    values = [[raw for raw, train_id in enumerate(label_table) if train_id == index] for index in range(len(names))]
    lines = [
        f"{','.join(map(str, raw))} {name} #{bytes(color).hex()}\n"
        for raw, name, color in zip(values, names, palette, strict=True)
    ]
    ignored = [raw for raw, train_id in enumerate(label_table) if train_id == IGNORED and raw != IGNORED]
    lines += [f"{raw} ignore\n" for raw in ignored]
    if not ignored and all(len(raw) == 3 for raw in values):
        # Without a line of another number of values, three values would be a color.
        lines.append(f"{IGNORED} ignore\n")
    return "".join(lines)
