"""Write images and label maps in the layout of a folder dataset, complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kseg.datasets.class_list import UNMAPPED, classes_text, parse_classes
from kseg.datasets.class_names import class_palette
from kseg.errors import DataError
from kseg.images.image_files import save_image
from kseg.system import atomic_files

# Prefix of the directory beside the dataset that holds what is written so far.
UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a hidden directory beside `out` that gets its name when the block ends without an error.

    After an error it is removed. The remainder of a killed process lacks classes.txt, so that no command takes it for a
    dataset.

    Raises:
        DataError: `out` exists.
    """
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists; remove it, or choose another --out")
    temporary = out.parent / f"{UNFINISHED}{os.getpid()}-{out.name}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        atomic_files.sync_file(temporary)
        # A directory that was made meanwhile is replaced only if it is empty.
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class FolderWriter:
    """Write the examples of a folder dataset below a directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        # The image that each file name without suffix comes from, for each split.
        self._sources: dict[tuple[str, str], str] = {}
        self.counts: dict[str, int] = {}

    def add(self, split: str, name: str, suffix: str, image: Path | bytes, label: np.ndarray) -> None:
        """Write an image, unchanged, and its label.

        Args:
            split: Name of the split.
            name: Path of the image in the annotations; its directories become a part of the file's name.
            suffix: Suffix of the image file.
            image: The file, which is linked or else copied, or the encoded image.
            label: Class ids, uint8 (H, W).

        Raises:
            DataError: Two images of the split would get one name.
        """
        stem = file_stem(name)
        other = self._sources.setdefault((split, stem), name)
        if (split, stem) in self._sources and other != name or (self._image_path(split, stem, suffix)).exists():
            raise DataError(f"{other} and {name} both get the name {stem} in {split}; rename one of them")
        save_image(label, self.directory / split / "labels" / f"{stem}.png")
        target = self._image_path(split, stem, suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            target.write_bytes(image)
        else:
            link_or_copy(image, target)
        self.counts[split] = self.counts.get(split, 0) + 1

    def move(self, name: str, suffix: str, source: str, target: str) -> None:
        """Move an example from a split to another."""
        stem = file_stem(name)
        for part, ending in (("images", suffix), ("labels", ".png")):
            (self.directory / target / part).mkdir(parents=True, exist_ok=True)
            os.rename(
                self.directory / source / part / (stem + ending), self.directory / target / part / (stem + ending)
            )
        self.counts[source] -= 1
        self.counts[target] = self.counts.get(target, 0) + 1

    def finish(self, names: Sequence[str]) -> None:
        """Write classes.txt, by which a directory becomes a dataset."""
        atomic_files.write_text(self.directory / "classes.txt", class_lines(names))

    def _image_path(self, split: str, stem: str, suffix: str) -> Path:
        return self.directory / split / "images" / (stem + suffix)


def file_stem(name: str) -> str:
    """Return the name of an example's files: the image's path without its suffix, with _ for each separator."""
    path = Path(name)
    parts = [part for part in path.with_suffix("").parts if part not in ("/", "..", ".")]
    return "_".join(parts)


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, or a copy where the file system allows no link."""
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def class_lines(names: Sequence[str]) -> str:
    """Return the classes.txt of labels that store the index of each name.

    Raises:
        DataError: There are too few or too many classes, or a name cannot be stored.
    """
    if len(names) > UNMAPPED:
        raise DataError(
            f"{len(names)} classes; an 8-bit label holds at most {UNMAPPED}, because 254 and 255 are reserved"
        )
    table = [index if index < len(names) else UNMAPPED for index in range(255)] + [255]
    text = classes_text(names, [class_palette(index + 1) for index in range(len(names))], table)
    listed = parse_classes("classes.txt", text)
    for name, read in zip(names, listed.names):
        if name != read:
            raise DataError(f"class {name!r} cannot be stored in classes.txt, where it reads {read!r}; rename it")
    return text
