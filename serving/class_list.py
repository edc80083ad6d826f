"""The class names and colours that travel with an exported model, as assets/classes.json."""

import json
from pathlib import Path

from kseg.errors import UserError

# As many as a byte can tell apart.
IDS = 256


def read_classes(path: Path) -> tuple[list[str], list[list[int]]]:
    """Return class names and RGB colours, one for each, of a classes.json; raises UserError where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        classes, palette = list(found["classes"]), [list(colour) for colour in found["palette"]]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    # What is no JSON and no UTF-8 raises ValueError.
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not hold classes and palette: {type(error).__name__}: {error}") from None
    colours = all(len(colour) == 3 and all(type(value) is int and 0 <= value <= 255 for value in colour)
                  for colour in palette)
    if not (all(isinstance(name, str) for name in classes) and colours and 0 < len(classes) == len(palette) <= IDS):
        raise UserError(f"{path} holds {len(classes)} classes and {len(palette)} colours; one colour of three bytes "
                        f"for each name is needed, at most {IDS}")
    return classes, palette
