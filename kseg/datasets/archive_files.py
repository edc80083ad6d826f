"""List and read files of a directory tree, a .zip or a .tar."""

import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kseg.datasets.file_lists import require_utf8
from kseg.errors import DataError

# Exceptions of the archive readers for missing or damaged bytes.
READ_ERRORS = (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class File:
    """A file of `size` bytes.

    `name` is its path, or for a member of an archive the path of the archive and the member's name. `fetch` returns
    its bytes.
    """

    name: str
    size: int
    fetch: Callable[[], bytes]

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Return all bytes; raises DataError if the file cannot be read completely."""
        try:
            return self.fetch()
        except READ_ERRORS as error:
            raise DataError(f"{self.name} cannot be read: {error_text(error)}") from None


def error_text(error: Exception) -> str:
    """Return an error's message, or its type's name if it has none."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def tree_files(root: Path, directories: tuple[str, ...]) -> dict[str, File]:
    """Return the files below some directories of `root` by their path relative to `root`.

    Missing directories count as empty. Hidden files are skipped.
    """
    paths = (
        path for directory in directories for path in (root / directory).rglob("*") if not path.name.startswith(".")
    )
    return {
        require_utf8(path).relative_to(root).as_posix(): File(str(path), path.stat().st_size, path.read_bytes)
        for path in paths
        if path.is_file()
    }


def zip_files(path: Path, prefix: str = "") -> dict[str, File]:
    """Return the files of a .zip below `prefix`, by their remaining path.

    Raises DataError for a damaged archive.
    """
    try:
        # The archive stays open, because its files are read later.
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except READ_ERRORS as error:
        raise damaged_archive(path, error) from None

    def file(member: zipfile.ZipInfo) -> File:
        return File(f"{path}: {member.filename}", member.file_size, lambda: archive.read(member))

    files = [member for member in members if not member.is_dir()]
    directories = {parent.as_posix() for member in files for parent in PurePosixPath(member.filename).parents}
    both = sorted(directories & {member.filename for member in files})
    if both:
        raise DataError(f"{path} is damaged: {both[0]} is a file and a directory in it. Download it again")
    return {
        member.filename.removeprefix(prefix): file(member) for member in files if member.filename.startswith(prefix)
    }


def tar_files(path: Path, prefix: str = "") -> dict[str, File]:
    """Return the files of an uncompressed .tar below `prefix`, by their remaining path.

    Raises DataError for a damaged archive.
    """
    try:
        # "r:" refuses compression: each file of a compressed archive would be read from the archive's beginning.
        archive = tarfile.open(path, "r:")
        members = archive.getmembers()
    except READ_ERRORS as error:
        raise damaged_archive(path, error) from None

    def file(member: tarfile.TarInfo) -> File:
        return File(f"{path}: {member.name}", member.size, lambda: archive.extractfile(member).read())

    return {
        member.name.removeprefix("./").removeprefix(prefix): file(member)
        for member in members
        if member.name.removeprefix("./").startswith(prefix) and member.isfile()
    }


def damaged_archive(path: Path, error: Exception) -> DataError:
    """Return the error for an incomplete or damaged archive."""
    return DataError(f"{path} is damaged or incomplete: {error_text(error)}. Download it again")


def files_in(files: dict[str, File], directory: str, suffix: str) -> dict[str, File]:
    """Return the files of a directory with a suffix, by their stems.

    Hidden files are skipped.
    """
    start = len(directory) + 1
    return {
        path[start : -len(suffix)]: file
        for path, file in files.items()
        if path.startswith(f"{directory}/") and path.endswith(suffix) and "/" not in path[start:] and path[start] != "."
    }
