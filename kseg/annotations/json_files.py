"""Read JSON files with errors that name the file, the line and the field."""

import json
from pathlib import Path
from typing import Any

from kseg.errors import DataError


def read_json(path: Path, kind: type) -> Any:
    """Return the contents of a JSON file, whose outermost value is a dict or a list.

    Raises DataError for a file that is missing, no JSON, or of the other kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(content, kind):
        names = {dict: "an object", list: "an array"}
        raise DataError(f"{path}: expected {names[kind]}, found {type(content).__name__}")
    return content


def member(place: str, values: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    """Return a member of a JSON object; raises DataError if it is missing or has another type."""
    if not isinstance(values, dict) or key not in values:
        raise DataError(f"{place}: {key!r} is missing")
    if not isinstance(values[key], kind):
        raise DataError(f"{place}: {key!r} has type {type(values[key]).__name__}")
    return values[key]
