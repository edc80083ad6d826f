"""List the files of a directory by stem, and the names in a split list; say what is skipped."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kseg.errors import DataError
from kseg.system.paths import is_utf8

# Files that file managers leave behind.
CLUTTER = ("thumbs.db", "desktop.ini")


class DirectoryFiles(NamedTuple):
    """The files of a directory.

    Attributes:
        paths: Path of each file with a wanted suffix, by stem.
        others: Path of each file with another suffix, by stem.
        notes: Sentences on what is skipped.
    """

    paths: dict[str, Path]
    others: dict[str, Path]
    notes: tuple[str, ...]


def files_by_stem(directory: Path, suffixes: tuple[str, ...]) -> DirectoryFiles:
    """List the files of a directory, without hidden ones.

    Args:
        directory: The directory; its subdirectories are skipped.
        suffixes: The wanted suffixes in lower case.

    Raises:
        DataError: Two wanted files have the same stem, or a name is not UTF-8.
    """
    paths: dict[str, Path] = {}
    others: dict[str, Path] = {}
    notes = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name.lower() in CLUTTER:
            continue
        # The suffix comes first, because a look at each file's kind is slow on network storage.
        if path.suffix.lower() in suffixes:
            if path.stem in paths:
                raise DataError(f"two files have the same name: {paths[path.stem]} and {path}")
            paths[require_utf8(path).stem] = path
        elif path.is_dir():
            count = sum(file.suffix.lower() in suffixes and not file.name.startswith(".") for file in path.rglob("*"))
            notes += [
                f"{path} is not read, because it is a subdirectory ({count} file{'s' * (count > 1)}); move its "
                f"files to {directory}"
            ] * (count > 0)
        else:
            others[path.stem] = path
    if others:
        counts = Counter(path.suffix or "no suffix" for path in others.values())
        found = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(counts.items()))
        notes.append(
            f"files of {directory} are not read because of their suffixes: {found}; read are {' '.join(suffixes)}"
        )
    return DirectoryFiles(paths, others, tuple(notes))


def require_utf8(path: Path) -> Path:
    """Return the path; raises DataError if it is not UTF-8, which TensorFlow and record files need."""
    if not is_utf8(path):
        raise DataError(f"the name {os.fsencode(path)!r} is not UTF-8; rename it, for example with convmv")
    return path


def match_keys(images: Mapping[str, object], labels: Mapping[str, object]) -> dict[str, str]:
    """Return the label's key of each image's key that has one.

    A name may be composed (NFC) on one side and decomposed (NFD), as macOS writes it, on the other.
    """
    matched = {key: key for key in images if key in labels}
    composed: dict[str, list[str]] = {}
    for key in labels:
        if key not in matched:
            composed.setdefault(unicodedata.normalize("NFC", key), []).append(key)
    for key in images:
        candidates = composed.get(unicodedata.normalize("NFC", key), [])
        if key not in matched and len(candidates) == 1:
            matched[key] = candidates.pop()
    return matched


def first_three(names: Iterable[str]) -> str:
    """Return the first three names in sorted order, and the number of the others."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def listed_names(file: str, content: bytes) -> list[str]:
    """Return the names in a split list, which has one name on each line.

    Args:
        file: The list's name for messages.
        content: Its bytes, UTF-8, with or without a byte order mark.

    Raises:
        DataError: The list is empty, repeats a name, has several columns or is not UTF-8.
    """
    try:
        # Editors on Windows write a byte order mark.
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8") from None
    names = []
    for number, words in enumerate(map(str.split, lines), 1):
        if len(words) > 1:
            raise DataError(
                f"{file}, line {number}: one name is expected, found {len(words)} columns, "
                f"{' '.join(words)!r}; keep the first one: cut -d' ' -f1"
            )
        names += words
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise DataError(f"{file} repeats {first_three(repeated)}" if names else f"{file} is empty")
    return names


def suffix_hint(stems: Iterable[str], others: Sequence[DirectoryFiles]) -> str:
    """Return why some stems have no file, if files of other suffixes have these stems, or ""."""
    found = [str(listed.others[stem]) for listed in others for stem in stems if stem in listed.others]
    return f" (of another suffix: {first_three(found)})" if found else ""
