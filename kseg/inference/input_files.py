"""Find the images and videos that files, directories and patterns refer to, and name their results."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from kseg.errors import UserError
from kseg.images import image_files, video_files
from kseg.inference.output_kinds import KINDS

DEFAULT_KINDS = ("ids", "overlay")
SUFFIXES = image_files.SUFFIXES + video_files.SUFFIXES


class InputFile(NamedTuple):
    """An image or video to predict, and the path of its result below OUT/overlay (.png or .mp4)."""

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        return self.name.suffix == ".mp4"

    def result_path(self, kind: str, frame: int | None = None) -> PurePath:
        """Return the path of a kind of result below OUT; `frame` is the index of a video's frame."""
        if frame is not None:
            return PurePath(kind, self.name.with_suffix(""), f"{frame:06d}{KINDS[kind].suffix}")
        return PurePath(kind, self.name if self.is_video else self.name.with_suffix(KINDS[kind].suffix))


def find_input_files(inputs: Sequence[str | Path], out: Path, kinds: Sequence[str] = DEFAULT_KINDS) -> list[InputFile]:
    """Return the images and videos that the inputs refer to, with unique result names.

    Directories are searched recursively for image and video suffixes, in sorted order. Hidden files and the results of
    previous runs in `out` are skipped, and links to directories are not followed. A file named explicitly is accepted
    with any suffix: as an image if Pillow can read it, otherwise as a video.

    The results of a.jpg are called a.png. If that name is taken, for example by a.png, they are called a.jpg.png and
    a.png.png. A video's frames have a directory of the same name as its .mp4 without the suffix.

    Args:
        inputs: Files, directories and glob patterns.
        out: The directory for the results.
        kinds: The kinds of results that will be written.

    Raises:
        UserError: an input matches no files, two results would have the same name, or a result would overwrite an
            input.
    """
    path_of = {}
    for value in inputs:
        base, listed = _list_input(os.path.expanduser(value), out)
        paths = [path for path in listed if _is_wanted(path, value)]
        if not paths:
            raise UserError(f"no images or videos in {value}; supported suffixes: {' '.join(SUFFIXES)}")
        resolved_base = base.resolve()
        for path in paths:
            relative = path.relative_to(base)
            # A file that several inputs list under the same name is predicted once.
            path_of.setdefault((resolved_base / relative, relative), path)
    if not path_of:
        raise UserError("no input given: name an image, a video, a directory or a pattern")
    files = [InputFile(path, name) for path, name in zip(path_of.values(), _result_names(list(path_of)))]
    sources = {path for path, _ in path_of}
    # A video has many frames, so their whole directory is checked.
    sources |= {path.parent for path in sources}
    for kind in kinds:
        for file in files:
            results = [file.result_path(kind)] + [file.result_path(kind, 0).parent] * file.is_video
            for result in results:
                if (out / result).resolve() in sources:
                    raise UserError(
                        f"{out / result}, the result of {file.path}, would overwrite an input: choose another --out"
                    )
    return files


def skipped_files_note(inputs: Sequence[str | Path], out: Path) -> str:
    """Return a sentence on the files of directories and patterns that are not predicted, by suffix, or "".

    Takes the arguments of `find_input_files`, which must have succeeded.
    """
    counts = Counter(
        path.suffix or "no suffix"
        for value in inputs
        for path in _list_input(os.path.expanduser(value), out)[1]
        if not _is_wanted(path, value)
    )
    if not counts:
        return ""
    found = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(counts.items()))
    return f"files with other suffixes are not predicted: {found}; predicted are {' '.join(SUFFIXES)}"


def _is_wanted(path: Path, value: str | Path) -> bool:
    """Return whether a file that an input lists is predicted: by its suffix, or because the input names it."""
    return path.suffix.lower() in SUFFIXES or os.path.isfile(os.path.expanduser(value))


def _list_input(value: str, out: Path) -> tuple[Path, list[Path]]:
    """Return the directory that result names are relative to, and all files of one input."""
    # Existing files come before patterns, because their names may contain brackets.
    if os.path.isfile(value):
        return Path(value).parent, [Path(value)]
    if os.path.isdir(value):
        base, paths = Path(value), _list_recursively(value)
    elif glob.has_magic(value):
        parts = Path(value).parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        if ".." in parts[fixed:]:
            raise UserError(f"the pattern {value} has '..' after a wildcard, which would put results outside --out")
        base = Path(*parts[:fixed])
        paths = [Path(path) for path in sorted(glob.glob(value, recursive=True)) if not os.path.isdir(path)]
    else:
        raise UserError(f"no file or directory {value}")
    # --out may be inside the input directory, so results of previous runs are excluded.
    resolved_base, written = base.resolve(), [(out / kind).resolve() for kind in (*KINDS, "legend.png")]
    written = [path.relative_to(resolved_base) for path in written if resolved_base in path.parents]
    return base, [
        path for path in paths if not any(path.relative_to(base).is_relative_to(result) for result in written)
    ]


def _list_recursively(directory: str) -> list[Path]:
    """Return the files below a directory, sorted, without hidden ones (such as macOS's ._NAME files)."""

    def raise_user_error(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}")

    files = []
    # Path.rglob silently skips directories that it may not list; os.walk reports them.
    for folder, folders, names in os.walk(directory, onerror=raise_user_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _is_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in video_files.SUFFIXES or suffix not in image_files.SUFFIXES and not image_files.is_image(path)


def _result_names(sources: list[tuple[Path, PurePath]]) -> list[PurePath]:
    """Return a unique result name for each (resolved path, relative path); raises UserError for duplicates."""
    keep_suffix = set()
    suffixes = [".mp4" if _is_video(path) else ".png" for path, _ in sources]
    while True:
        names = [
            relative.with_name(relative.name + suffix) if index in keep_suffix else relative.with_suffix(suffix)
            for index, ((_, relative), suffix) in enumerate(zip(sources, suffixes))
        ]
        # A video also needs a directory for its frames.
        taken = [(name, name.with_suffix("")) if name.suffix == ".mp4" else (name,) for name in names]
        counts = Counter(path for paths in taken for path in paths)
        # The result of a.jpg must not have the name of the directory that the result of a.png/b.jpg needs.
        folders = {folder for name in names for folder in name.parents}
        clashes = {
            index for index, paths in enumerate(taken) if any(counts[path] > 1 or path in folders for path in paths)
        }
        if clashes <= keep_suffix:
            break
        # The longer names may clash with other names, so all names are checked again.
        keep_suffix |= clashes
    if clashes:
        first = taken[min(clashes)]
        name = next((path for path in first if counts[path] > 1), first[0])
        same = [str(path) for (path, _), paths in zip(sources, taken) if name in paths]
        raise UserError(
            f"several results would be called {name}: those of {', '.join(same[:3])}"
            f"{' ...' if len(same) > 3 else ''}; name their common parent directory, or predict them "
            "separately"
        )
    return names
