"""Files where users have them: in an extracted tree, a .zip or a .tar, all listed and read in one way."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kseg.errors import DataError

# What the readers of archives raise where bytes are missing or wrong.
FAULTS = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class File:
    """A file of `size` bytes; `where` names it, and its archive if it lies in one."""

    where: str
    size: int
    fetch: Callable[[], bytes]

    def __str__(self) -> str:
        return self.where

    def read(self) -> bytes:
        """Return the bytes; raises DataError where they cannot be read in whole."""
        try:
            return self.fetch()
        except FAULTS as error:
            raise DataError(f"{self.where} cannot be read: {reason(error)}") from None


def reason(error: Exception) -> str:
    """Return what an error says, or its kind where it says nothing."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def tree_files(root: Path, parts: tuple[str, ...]) -> dict[str, File]:
    """Return the files below some directories of `root` by their path in it; directories that are not there are empty.

    Names that begin with a dot are left out.
    """
    paths = (path for part in parts for path in (root / part).rglob("*") if not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): File(str(path), path.stat().st_size, path.read_bytes)
            for path in paths if path.is_file()}


def zip_files(path: Path, prefix: str = "") -> dict[str, File]:
    """Return the files of a .zip below `prefix`, by their path after it; raises DataError for a damaged archive."""
    try:
        # Stays open as long as one of its files may be read.
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except FAULTS as error:
        raise damaged(path, error) from None

    def file(member: zipfile.ZipInfo) -> File:
        return File(f"{path}: {member.filename}", member.file_size, lambda: archive.read(member))

    return {member.filename.removeprefix(prefix): file(member) for member in members
            if member.filename.startswith(prefix) and not member.is_dir()}


def tar_files(path: Path, prefix: str = "") -> dict[str, File]:
    """Return the files of an uncompressed .tar below `prefix`, by their path after it.

    Raises DataError for a damaged archive.
    """
    try:
        # A compressed one could only be read from its beginning, for each file again.
        archive = tarfile.open(path, "r:")
        members = archive.getmembers()
    except FAULTS as error:
        raise damaged(path, error) from None

    def file(member: tarfile.TarInfo) -> File:
        return File(f"{path}: {member.name}", member.size, lambda: archive.extractfile(member).read())

    return {member.name.removeprefix("./").removeprefix(prefix): file(member) for member in members
            if member.name.removeprefix("./").startswith(prefix) and member.isfile()}


def damaged(path: Path, error: Exception) -> DataError:
    """Return the error for an archive that is not whole."""
    return DataError(f"{path} is damaged or not whole: {reason(error)}. Get it again")


def below(files: dict[str, File], directory: str, suffix: str) -> dict[str, File]:
    """Return the files directly in a directory whose names end in `suffix`, by their names without it.

    Names that begin with a dot are left out.
    """
    start = len(directory) + 1
    return {path[start:-len(suffix)]: file for path, file in files.items()
            if path.startswith(f"{directory}/") and path.endswith(suffix) and "/" not in path[start:]
            and path[start] != "."}
