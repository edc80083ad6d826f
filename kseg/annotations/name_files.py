"""Read a file of class names."""

from pathlib import Path

from kseg.errors import DataError


def read_names(path: Path) -> tuple[str, ...]:
    """Return the class names of a file with one name per line.

    Raises DataError for a file that cannot be read, has no name, or has one twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    repeated = [name for name in names if names.count(name) > 1]
    if repeated or not names:
        raise DataError(f"{path}: {f'{repeated[0]!r} is listed twice' if repeated else 'no class name'}")
    return tuple(names)
