"""Compare the classes that a weight file was trained on with those of a dataset, in their order."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kseg.weights import file_kinds, torch_files


def order_note(path: str | Path, classes: Sequence[str], classifiers: Sequence[str]) -> str:
    """Return a sentence if a file's classifier has other classes in the same number, or "".

    Its rows fit by shape, but each predicts the class at its place in the file.

    Args:
        path: A weight file that has been loaded.
        classes: The dataset's class names in train id order.
        classifiers: Layers with one output for each class whose weights were loaded; without any, nothing is said.
    """
    stored = stored_classes(path) if classifiers else ()
    if not stored or len(stored) != len(classes):
        return ""
    different = [index for index, pair in enumerate(zip(stored, classes)) if len({*map(_bare, pair)}) > 1]
    if not different:
        return ""
    shown = ", ".join(f"{index} is {stored[index]!r} there and {classes[index]!r} here" for index in different[:3])
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    kind = "the same classes in another order" if _same(stored, classes) else "other classes"
    skip = ",".join(f"{layer}.*" for layer in classifiers)
    return (
        f"{path} was trained on {kind}: {shown}{more}. The classifier starts with these rows; init.skip={skip} "
        "draws it anew"
    )


def stored_classes(path: str | Path) -> tuple[str, ...]:
    """Return the class names that a file or its directory states, in order; empty if they do not.

    mmcv and mmengine keep them in a checkpoint, kseg in the dataset.json of a working directory.
    """
    if file_kinds.find_kind(path) == "torch":
        meta = _entry(torch_files.open_torch_file(path), "meta")
        return _names(_entry(meta, "CLASSES")) or _names(_entry(_entry(meta, "dataset_meta"), "classes"))
    try:
        record = json.loads(Path(path).with_name("dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return _names(_entry(record, "classes"))


def _entry(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _names(value: Any) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value) else ()


def _bare(name: str) -> str:
    """Return a name in the form in which spellings of the same class agree."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _same(first: Sequence[str], second: Sequence[str]) -> bool:
    return {*map(_bare, first)} == {*map(_bare, second)}
