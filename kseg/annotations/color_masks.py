"""Read masks whose colors are the classes."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kseg.annotations.annotated_images import AnnotatedImage, AnnotatedObject, Annotations, Findings, LabelMap, Options
from kseg.datasets.class_list import UNMAPPED, parse_classes
from kseg.errors import DataError
from kseg.images import picture_reader
from kseg.images.image_files import SUFFIXES

# Names of the directory of the masks beside `images`.
MASK_DIRECTORIES = ("masks", "labels", "annotations")


class ColorTable:
    """The class id of each color.

    `colors` are RGB colors with their ids, and `others` is the id of all other colors, UNMAPPED if they are faults.
    """

    def __init__(self, names: Sequence[str], colors: dict[tuple[int, int, int], int], others: int = UNMAPPED):
        self.names, self.others = tuple(names), others
        pairs = sorted((_code(np.array(color, np.uint8)).item(), value) for color, value in colors.items())
        self._codes = np.array([code for code, _ in pairs], np.int32)
        self._ids = np.array([value for _, value in pairs], np.uint8)

    def ids(self, place: str, pixels: np.ndarray) -> np.ndarray:
        """Return the class ids, uint8 (H, W), of colors, uint8 (H, W, 3); raises DataError for an unknown color."""
        codes = _code(pixels)
        index = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        known = self._codes[index] == codes
        if self.others == UNMAPPED and not known.all():
            row, column = np.argwhere(~known)[0]
            color = codes[row, column]
            raise DataError(
                f"{place}: no class has the color #{color:06x} of {np.count_nonzero(codes == color)} pixels, the first "
                f"at row {row}, column {column}; list it in --colors, or write `* ignore` there for all other colors"
            )
        return np.where(known, self._ids[index], np.uint8(self.others))


def read_table(path: Path) -> ColorTable:
    """Return the colors of a file with lines such as `#804080 road`, as in a folder dataset's classes.txt.

    Raises DataError for a file that cannot be read or does not list colors.
    """
    try:
        listed = parse_classes(str(path), path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if not listed.label_colors:
        raise DataError(f"{path} lists no colors; a line is a color and a name, such as `#804080 road`")
    table = listed.label_table
    others = UNMAPPED if listed.other_colors == UNMAPPED else table[listed.other_colors]
    return ColorTable(listed.names, {color: table[value] for color, value in listed.label_colors}, others)


def read_color_masks(path: Path, options: Options, findings: Findings) -> Annotations:
    """Return the annotations of images and masks of the same name.

    Args:
        path: A directory with `images` and `masks`, or with a directory of both for each split; or the masks.
        options: `images` is the directory of the images, if `path` is that of the masks. `colors` lists the classes; by
            default each color that occurs is a class.
        findings: Receives faulty masks.

    Raises:
        DataError: There are no masks, or they have too many colors.
    """
    masks = [
        (split, images, root, file)
        for split, images, root in _directories(path, options)
        for file in _images_below(root)
    ]
    if not masks:
        raise DataError(f"no mask below {path}")
    table = read_table(options.colors) if options.colors else found_colors([file for *_, file in masks])

    def read_images() -> Iterator[AnnotatedImage]:
        for split, images, root, file in masks:
            relative = file.relative_to(root)
            image = _image_of(images / relative)
            try:
                ids = table.ids(str(file), picture_reader.read_picture(file, file).pixels)
            except DataError as error:
                findings.fault(str(error))
                continue
            item = AnnotatedObject(str(file), "", LabelMap(ids))
            yield AnnotatedImage(str(file), relative.with_suffix(image.suffix).as_posix(), image, None, (item,), split)

    return Annotations(table.names, read_images(), len(masks), complete=True)


def found_colors(masks: Sequence[Path]) -> ColorTable:
    """Return a class for each color of the masks, in the order of the colors.

    Raises DataError for more colors than classes are possible.
    """
    codes: set[int] = set()
    for file in masks:
        codes |= set(np.unique(_code(picture_reader.read_picture(file, file).pixels)).tolist())
        if len(codes) > UNMAPPED:
            raise DataError(
                f"the masks have more than {UNMAPPED} colors, up to {file}: masks that were resized or saved as JPEG "
                "have mixed colors; list the right ones with --colors FILE"
            )
    colors = [tuple(code.to_bytes(3)) for code in sorted(codes)]
    names = [f"color-{bytes(color).hex()}" for color in colors]
    return ColorTable(names, {color: index for index, color in enumerate(colors)})


def _code(pixels: np.ndarray) -> np.ndarray:
    """Return colors, uint8 (..., 3), as numbers 0xrrggbb, int32 (...)."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _directories(path: Path, options: Options) -> list[tuple[str, Path, Path]]:
    """Return (split, directory of images, directory of masks)."""
    if options.images:
        return [("", options.images, path)]
    places = (
        [("", path)]
        if (path / "images").is_dir()
        else [(place.parent.name, place.parent) for place in path.glob("*/images")]
    )
    found = []
    for split, place in sorted(places):
        named = [place / name for name in MASK_DIRECTORIES if (place / name).is_dir()]
        if len(named) != 1:
            raise DataError(f"{place} needs one directory of masks beside images: {' or '.join(MASK_DIRECTORIES)}")
        found.append((split, place / "images", named[0]))
    if not found:
        raise DataError(f"{path} has no directory `images`; name it with --images DIR if {path} has the masks")
    return found


def _images_below(directory: Path) -> list[Path]:
    return sorted(file for file in directory.rglob("*") if file.suffix.lower() in SUFFIXES)


def _image_of(path: Path) -> Path:
    """Return the file with a mask's name and any suffix of images, or `path` if there is none."""
    candidates = (path.with_suffix(suffix) for suffix in (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)))
    return next((candidate for candidate in candidates if candidate.is_file()), path)
