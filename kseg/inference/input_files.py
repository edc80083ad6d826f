"""What files, directories and patterns stand for: pictures and videos, and the names of their results."""

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


class Picture(NamedTuple):
    """A picture or video to predict, and the path below OUT/overlay that its result gets: a .png or an .mp4."""

    path: Path
    name: PurePath

    @property
    def video(self) -> bool:
        return self.name.suffix == ".mp4"

    def result(self, kind: str, frame: int | None = None) -> PurePath:
        """Return the path below OUT of a kind of result; `frame` is the number of a video's frame."""
        if frame is not None:
            return PurePath(kind, self.name.with_suffix(""), f"{frame:06d}{KINDS[kind].suffix}")
        return PurePath(kind, self.name if self.video else self.name.with_suffix(KINDS[kind].suffix))


def find_pictures(inputs: Sequence[str | Path], out: Path, kinds: Sequence[str] = DEFAULT_KINDS) -> list[Picture]:
    """Return the pictures and videos that files, directories and glob patterns stand for, with their results' names.

    Directories are searched recursively for pictures.SUFFIXES and videos.SUFFIXES in sorted order; hidden files and
    what an earlier run has written to `out` are left out, links to directories are not followed. A file that is named
    itself is taken whatever its suffix: as a picture where Pillow knows it, else as a video. Where a.jpg and a.png
    meet, their results are called a.jpg.png and a.png.png, elsewhere just a.png; a video's frames are in a directory
    that is called like its .mp4 without the suffix. Raises UserError for an input that stands for nothing, for results
    that would still share a name, and for a result of one of `kinds` that would overwrite an input.
    """
    found = {}
    for value in inputs:
        base, paths = _listed(os.path.expanduser(value), out)
        if not paths:
            raise UserError(f"no pictures or videos in {value}; suffixes looked for: "
                            f"{' '.join(image_files.SUFFIXES + video_files.SUFFIXES)}")
        place = base.resolve()
        for path in paths:
            relative = path.relative_to(base)
            # The same file under the same name twice is one picture.
            found.setdefault((place / relative, relative), path)
    if not found:
        raise UserError("no pictures to predict: no input given")
    chosen = [Picture(path, name) for path, name in zip(found.values(), _names(list(found)))]
    sources = {path for path, _ in found}
    # Frames are many, and any file in their directory may be one.
    sources |= {path.parent for path in sources}
    for kind in kinds:
        for picture in chosen:
            results = [picture.result(kind)] + [picture.result(kind, 0).parent] * picture.video
            for result in results:
                if (out / result).resolve() in sources:
                    raise UserError(f"{out / result}, the result of {picture.path}, would overwrite an input; "
                                    "take another --out")
    return chosen


def _listed(value: str, out: Path) -> tuple[Path, list[Path]]:
    """Return the files that one input stands for, and the directory that their results' names are relative to."""
    # Before patterns: names of existing files may hold brackets.
    if os.path.isfile(value):
        return Path(value).parent, [Path(value)]
    if os.path.isdir(value):
        base, paths = Path(value), _walk(value)
    elif glob.has_magic(value):
        parts = Path(value).parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        if ".." in parts[fixed:]:
            raise UserError(f"the pattern {value} has '..' after a wildcard; results would lie outside --out")
        base = Path(*parts[:fixed])
        paths = [Path(path) for path in sorted(glob.glob(value, recursive=True)) if not os.path.isdir(path)]
    else:
        raise UserError(f"no file or directory {value}")
    # --out may lie inside the directory that is predicted.
    place, written = base.resolve(), [(out / kind).resolve() for kind in (*KINDS, "legend.png")]
    written = [path.relative_to(place) for path in written if place in path.parents]
    return base, [path for path in paths if path.suffix.lower() in image_files.SUFFIXES + video_files.SUFFIXES
                  and not any(path.relative_to(base).is_relative_to(result) for result in written)]


def _walk(directory: str) -> list[Path]:
    """Return the files below a directory, sorted, without hidden ones (such as the ._NAME that macOS leaves behind)."""
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}")

    files = []
    # os.walk, since Path.rglob passes over directories it may not list.
    for folder, folders, names in os.walk(directory, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _is_video(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in video_files.SUFFIXES or suffix not in image_files.SUFFIXES and not image_files.is_image(path)


def _names(found: list[tuple[Path, PurePath]]) -> list[PurePath]:
    """Return a result name for each (resolved file, relative path); raises UserError where two stay equal."""
    whole = set()
    suffixes = [".mp4" if _is_video(path) else ".png" for path, _ in found]
    while True:
        names = [relative.with_name(relative.name + suffix) if index in whole else relative.with_suffix(suffix)
                 for index, ((_, relative), suffix) in enumerate(zip(found, suffixes))]
        # A video's frames need a directory of their own.
        taken = [(name, name.with_suffix("")) if name.suffix == ".mp4" else (name,) for name in names]
        times = Counter(path for paths in taken for path in paths)
        # a.jpg's result must not take the name of the directory that a.png/b.jpg's result needs, either.
        folders = {folder for name in names for folder in name.parents}
        clashes = {index for index, paths in enumerate(taken)
                   if any(times[path] > 1 or path in folders for path in paths)}
        if clashes <= whole:
            break
        # Longer names may meet others' in turn, so once more.
        whole |= clashes
    if clashes:
        first = taken[min(clashes)]
        name = next((path for path in first if times[path] > 1), first[0])
        same = [str(path) for (path, _), paths in zip(found, taken) if name in paths]
        raise UserError(f"several results would be called {name}: those of {', '.join(same[:3])}"
                        f"{' ...' if len(same) > 3 else ''}; name the directory above them, or predict them apart")
    return names
