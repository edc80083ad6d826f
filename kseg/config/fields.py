"""Describe every config field by its key, type, default, limits and comment, for users and documentation."""

import inspect
import re
import typing
from typing import Any, NamedTuple

from kseg.config.checks import limited_values
from kseg.config.values import field_types
from kseg.errors import ConfigError

# Between these lines of a Markdown file stands the table of all fields.
TABLE_START, TABLE_END = "<!-- config keys -->", "<!-- end of config keys -->"

FIELD = re.compile(r"    (\w+): ")
COMMENT = re.compile(r"    # ?(.*)")


class FieldDescription(NamedTuple):
    """A value of a config, with texts for its type, limits and meaning."""

    key: str
    type: str
    default: Any
    limits: str
    description: str


def describe_fields(config: Any) -> list[FieldDescription]:
    """Return the descriptions of all values of nested dataclasses, whose defaults are those of `config`."""
    descriptions = []
    for key, default, limits in limited_values(config):
        *groups, name = key.split(".")
        section = config
        for group in groups:
            section = getattr(section, group)
        kind = field_types(type(section))[name]
        descriptions.append(
            FieldDescription(
                key, type_text(kind), default, ", ".join(map(str, limits)), field_comments(type(section)).get(name, "")
            )
        )
    return descriptions


def field_comments(section: type) -> dict[str, str]:
    """Return the comment above each field of a dataclass, joined to one line."""
    comments, lines = {}, []
    for line in inspect.getsource(section).splitlines():
        if comment := COMMENT.fullmatch(line):
            lines.append(comment[1])
        else:
            if (name := FIELD.match(line)) and lines:
                comments[name[1]] = " ".join(lines)
            lines = []
    return comments


def type_text(kind: Any) -> str:
    """Return a type as a table shows it: its name, its choices, or a list."""
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"list of {type_text(typing.get_args(kind)[0])}"
    return kind.__name__


def value_text(value: Any) -> str:
    """Return a value as --set takes it; "(empty)" for an empty text or list."""
    if isinstance(value, tuple):
        return ",".join(map(value_text, value)) or "(empty)"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or "(empty)"


def reference_table(config: Any) -> str:
    """Return a Markdown table of all fields for each section of nested dataclasses."""
    sections: dict[str, list[str]] = {}
    for key, kind, default, limits, description in describe_fields(config):
        section, _, name = key.rpartition(".")
        rows = sections.setdefault(
            section,
            [
                f"### {section or 'the config itself'}",
                "",
                "| key | type and limits | default | meaning |",
                "|---|---|---|---|",
            ],
        )
        cells = (f"`{name}`", f"{kind}, {limits}" if limits else kind, f"`{value_text(default)}`", description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n\n".join("\n".join(rows) for rows in sections.values())


def with_updated_table(text: str, config: Any) -> str:
    """Return a Markdown text in which the marked table is generated from `config`.

    Raises ConfigError if the text has no such marks.
    """
    before, start, rest = text.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        raise ConfigError(f"the file has no table between the lines {TABLE_START} and {TABLE_END}")
    return f"{before}{start}\n\n{reference_table(config)}\n\n{end}{after}"
