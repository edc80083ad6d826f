"""Describe every config field by its key, type, default, limits and comment, for documentation."""

import inspect
import re
import typing
from typing import Any, NamedTuple

from kseg.config.checks import limited_values
from kseg.config.values import field_types

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
        descriptions.append(FieldDescription(key, type_text(kind), default, ", ".join(map(str, limits)),
                                             field_comments(type(section)).get(name, "")))
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
