"""Prediction for files, directories and patterns: class ids and overlays at each picture's own size.

    python -m kseg.predict holiday.jpg photos 'scans/**/*.tif' --workdir runs/camvid --out predicted
    python -m kseg.predict photos --config encnet_camvid --weights FILE --out predicted

    OUT/ids/REL.png        class ids, 8-bit grey; REL is the path below the directory, or below the pattern's fixed part
    OUT/overlay/REL.png    the picture mixed with the classes' colours
    OUT/legend.png         the colours
"""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kseg import commands, pictures
from kseg.errors import DataError, UserError
from kseg.progress import Progress

if TYPE_CHECKING:
    from kseg.datasets import Dataset

# To the line's start, and the rest of it away.
CLEAR_LINE = "\r\x1b[K"


class Picture(NamedTuple):
    """A file to predict, and the path below OUT/ids and OUT/overlay that its results get."""

    path: Path
    name: PurePath


class Failure(NamedTuple):
    """A file that could not be read, and the message that names it."""

    path: Path
    message: str


def find_pictures(inputs: Sequence[str | Path], out: Path) -> list[Picture]:
    """Return the pictures that files, directories and glob patterns stand for, each with its own result name.

    Directories are searched recursively for pictures.SUFFIXES in sorted order; hidden files and what an earlier run has
    written to `out` are left out, links to directories are not followed. A file that is named itself is taken whatever
    its suffix. Where a.jpg and a.png meet, their results are called a.jpg.png and a.png.png, elsewhere just a.png.
    Raises UserError for an input that stands for nothing, for results that would still share a name, and for a result
    that would overwrite an input.
    """
    found = {}
    for value in inputs:
        base, paths = _listed(os.path.expanduser(value), out)
        if not paths:
            raise UserError(f"no pictures in {value}; suffixes looked for: {' '.join(pictures.SUFFIXES)}")
        place = base.resolve()
        for path in paths:
            relative = path.relative_to(base)
            # The same file under the same name twice is one picture.
            found.setdefault((place / relative, relative), path)
    if not found:
        raise UserError("no pictures to predict: no input given")
    chosen = [Picture(path, name) for path, name in zip(found.values(), _names(list(found)))]
    sources = {path for path, _ in found}
    for kind in ("ids", "overlay"):
        place = (out / kind).resolve()
        for path, name in chosen:
            if place / name in sources:
                raise UserError(f"{out / kind / name}, the result of {path}, would overwrite an input; "
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
    place, written = base.resolve(), [(out / kind).resolve() for kind in ("ids", "overlay", "legend.png")]
    written = [path.relative_to(place) for path in written if place in path.parents]
    return base, [path for path in paths if path.suffix.lower() in pictures.SUFFIXES
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


def _names(found: list[tuple[Path, PurePath]]) -> list[PurePath]:
    """Return a result name for each (resolved file, relative path); raises UserError where two stay equal."""
    whole = set()
    while True:
        names = [relative.with_name(relative.name + ".png") if index in whole else relative.with_suffix(".png")
                 for index, (_, relative) in enumerate(found)]
        times = Counter(names)
        # a.jpg's result must not take the name of the directory that a.png/b.jpg's result needs, either.
        folders = {folder for name in names for folder in name.parents}
        clashes = {index for index, name in enumerate(names) if times[name] > 1 or name in folders}
        if clashes <= whole:
            break
        # Longer names may meet others' in turn, so once more.
        whole |= clashes
    if clashes:
        name = names[min(clashes)]
        same = [str(path) for (path, _), other in zip(found, names) if other == name]
        raise UserError(f"several results would be called {name}: those of {', '.join(same[:3])}"
                        f"{' ...' if len(same) > 3 else ''}; name the directory above them, or predict them apart")
    return names


def predict(predictor: Callable[[np.ndarray], np.ndarray], inputs: Sequence[str | Path], out: Path, dataset: "Dataset",
            report: Callable[[str], None] = print) -> list[Failure]:
    """Write ids, overlays and the legend for all inputs to `out`, and return the files that could not be read.

    `predictor` takes a uint8 RGB picture (H, W, 3) and returns its uint8 class ids (H, W). A file that cannot be read
    is named on stderr and left out. Existing results are overwritten, each at once. Raises UserError as `find_pictures`
    does, before anything is written, and where `out` cannot be written.
    """
    out = Path(out)
    chosen = find_pictures(inputs, out)
    pictures.save(pictures.legend(dataset.classes, dataset.palette), out / "legend.png")
    failures = []
    progress = Progress(len(chosen), "images", report)
    for done, (path, name) in enumerate(chosen, 1):
        try:
            image = pictures.read_image(path)
        except DataError as error:
            failures.append(Failure(path, str(error)))
            # A progress line may stand half-written on a terminal.
            print(f"{CLEAR_LINE if sys.stderr.isatty() else ''}skipped: {error}", file=sys.stderr)
        else:
            _write_results(predictor, image, path, out, name, dataset.palette)
        progress.update(done)
    if failures:
        names = ", ".join(str(failure.path) for failure in failures[:5])
        more = f" and {len(failures) - 5} more" if len(failures) > 5 else ""
        print(f"{len(failures)} of {len(chosen)} files failed: {names}{more}", file=sys.stderr)
    report(f"wrote results of {len(chosen) - len(failures)} images to {out}")
    return failures


def _write_results(predictor: Callable[[np.ndarray], np.ndarray], image: np.ndarray, path: Path, out: Path,
                   name: PurePath, palette: Sequence[tuple[int, int, int]]) -> None:
    try:
        ids = predictor(image)
        mixed = pictures.overlay(image, ids, palette)
    except Exception as error:
        # Such as memory that one huge picture used up: which one is half of the answer.
        error.add_note(f"while predicting {path}, {image.shape[1]} x {image.shape[0]} pixels")
        raise
    pictures.save(ids, out / "ids" / name)
    pictures.save(mixed, out / "overlay" / name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.predict", description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+", metavar="INPUT",
                        help="a file, a directory (searched recursively), or a quoted pattern like 'photos/**/*.jpg'")
    commands.add_model_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True,
                        help="where ids/, overlay/ and legend.png are written; existing files are overwritten")
    values = parser.parse_args(arguments)
    # Once here already: a wrong name is told before the time that loading a model takes.
    find_pictures(values.inputs, values.out)
    # TensorFlow, which this brings, takes seconds that --help shall not.
    from kseg.inference import predictor

    model, config, dataset = commands.load_model(values)
    return 1 if predict(predictor(model, config), values.inputs, values.out, dataset) else 0


if __name__ == "__main__":
    commands.run(main)
