"""The class names and colors in an exported model's assets/classes.json."""

import json
from pathlib import Path

from kseg.errors import UserError

# A class index is one byte.
MAX_CLASSES = 256


def read_class_list(path: Path) -> tuple[list[str], list[list[int]]]:
    """Return the class names and their RGB colors from a classes.json.

    Raises UserError if the file is missing or malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes, palette = list(content["classes"]), [list(color) for color in content["palette"]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    # Invalid JSON and invalid UTF-8 both raise subclasses of ValueError.
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not contain classes and palette: {type(error).__name__}: {error}") from None
    valid_colors = all(
        len(color) == 3 and all(type(value) is int and 0 <= value <= 255 for value in color) for color in palette
    )
    valid_names = all(isinstance(name, str) for name in classes)
    if not (valid_names and valid_colors and 0 < len(classes) == len(palette) <= MAX_CLASSES):
        raise UserError(
            f"{path} contains {len(classes)} classes and {len(palette)} colors; it needs one color of "
            f"three bytes for each of 1 to {MAX_CLASSES} class names"
        )
    return classes, palette
