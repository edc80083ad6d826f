"""Convert annotations of another tool into a folder dataset."""

import contextlib
import io
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kseg.annotations.annotated_images import FINDINGS, AnnotatedImage, Annotations, Findings, Options
from kseg.annotations.folder_writer import FolderWriter, class_lines, new_directory
from kseg.annotations.kinds import KINDS
from kseg.annotations.rasterization import draw_objects
from kseg.annotations.splits import name_hash, split_of
from kseg.config.sections import IGNORED
from kseg.datasets.class_list_faults import is_ignored
from kseg.errors import DataError, unknown
from kseg.images import picture_reader
from kseg.images.image_files import SUFFIXES
from kseg.system import atomic_files
from kseg.system.paths import printable
from kseg.system.progress import Progress

FAULTS_LISTED = 10
# Places that the summary lists of each kind; conversion.json has all of them.
PLACES_LISTED = 2
# Value of `background` by which pixels without an object are ignored.
IGNORE = "ignore"


@dataclass(frozen=True)
class Conversion:
    """Name what to convert, and how.

    Attributes:
        kind: A key of KINDS.
        sources: Path of the annotations of each split; the split "" takes the format's own, or one by hash.
        options: What the readers need.
        background: Class of pixels without an object, or "ignore".
        skip_missing: Whether a missing image is skipped; otherwise it is a fault.
        val_fraction: Fraction of the images for the split val, where neither `sources` nor the format names splits.
        seed: Seed of that choice.
    """

    kind: str
    sources: dict[str, Path]
    options: Options = Options()
    background: str = "background"
    skip_missing: bool = False
    val_fraction: float = 0.1
    seed: int = 0


def convert(conversion: Conversion, out: Path, report: Callable[[str], None] = print) -> dict[str, int]:
    """Write a folder dataset and report what was changed and skipped.

    Args:
        conversion: What to convert and how.
        out: The directory to write, which must not exist.
        report: Receives progress and the summary.

    Returns:
        The number of images of each split.

    Raises:
        DataError: `out` exists, the annotations cannot be read, or they have faults; then no dataset is written, and
            the message lists the first ten faults.
    """
    if conversion.kind not in KINDS:
        raise DataError(unknown("kind of annotations", conversion.kind, KINDS))
    findings = Findings()
    with new_directory(out) as temporary:
        read = {split: _read(conversion, path, findings) for split, path in conversion.sources.items()}
        names, ids = class_ids(read, conversion.background)
        class_lines(names)
        background = IGNORED if conversion.background == IGNORE else ids.get(conversion.background, IGNORED)
        writer = _Writer(conversion, ids, background, findings, FolderWriter(temporary))
        progress = Progress(sum(annotations.count for annotations in read.values()), "images", report)
        done = 0
        for split, annotations in read.items():
            for image in annotations.images:
                writer.write(image, split)
                done += 1
                progress.update(done)
        _require_no_faults(conversion, findings)
        writer.require_validation_image()
        folder = writer.folder
        if not folder.counts:
            raise DataError(f"no image of {', '.join(map(str, conversion.sources.values()))} was converted")
        record = {"kind": conversion.kind, "sources": {name: str(path) for name, path in conversion.sources.items()}}
        record |= {"background": conversion.background, "images": folder.counts, "findings": findings.entries}
        text = json.dumps(record, indent=2, ensure_ascii=False)
        atomic_files.write_text(temporary / "conversion.json", printable(text) + "\n")
        folder.finish(names)
    for line in summary(names, folder.counts, findings):
        report(printable(line))
    report(
        f"wrote {printable(str(out))}; conversion.json in it lists what was changed and skipped. Next:\n"
        f"  kseg data check folder --directory {shlex.quote(printable(str(out)))}"
    )
    return folder.counts


def class_ids(read: dict[str, Annotations], background: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names in id order, and the id of each name that annotations may use.

    Names that mean ignore, such as void, get 255. The background is added as id 0 if pixels without an object need a
    class that the annotations lack.

    Raises:
        DataError: Splits have different classes.
    """
    (first, annotations), *others = read.items()
    for split, other in others:
        if other.classes != annotations.classes:
            raise DataError(
                f"{split} has other classes than {first or 'train'}: {_difference(annotations, other)}; "
                "name the classes of both with --classes FILE"
            )
    names = [name for name in annotations.classes if not is_ignored(name)]
    if background != IGNORE and not annotations.complete and background not in names:
        names.insert(0, background)
    ids = {name: index for index, name in enumerate(names)}
    return tuple(names), ids | {name: IGNORED for name in annotations.classes if is_ignored(name)}


def _difference(first: Annotations, second: Annotations) -> str:
    absent = [repr(name) for name in first.classes if name not in second.classes]
    added = [repr(name) for name in second.classes if name not in first.classes]
    parts = [f"{', '.join(absent[:5])} missing"] * bool(absent) + [f"{', '.join(added[:5])} added"] * bool(added)
    return "; ".join(parts) or "another order"


def summary(names: Sequence[str], counts: dict[str, int], findings: Findings) -> list[str]:
    """Return the lines that tell what was written, changed and skipped."""
    images = ", ".join(f"{split} {count}" for split, count in sorted(counts.items()))
    lines = [f"images: {images}", f"classes: {', '.join(f'{index} {name}' for index, name in enumerate(names))}"]
    for kind, text in FINDINGS.items():
        places = findings.entries.get(kind, [])
        if places:
            more = [f"and {len(places) - PLACES_LISTED} more"] * (len(places) > PLACES_LISTED)
            pixels = f", {findings.overlapped_pixels} pixels" if kind == "overlap" else ""
            lines.append(f"{text}: {len(places)}{pixels}: {'; '.join([*places[:PLACES_LISTED], *more])}")
    return lines


def _read(conversion: Conversion, path: Path, findings: Findings) -> Annotations:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    return KINDS[conversion.kind](path, conversion.options, findings)


def _require_no_faults(conversion: Conversion, findings: Findings) -> None:
    faults = findings.faults
    if not faults:
        return
    more = len(faults) - FAULTS_LISTED
    listed = [f"  {fault}" for fault in faults[:FAULTS_LISTED]] + [f"  and {more} more"] * (more > 0)
    raise DataError(
        printable(
            f"the {conversion.kind} annotations have {len(faults)} fault{'s' * (len(faults) > 1)}, and nothing was "
            "written:\n" + "\n".join(listed)
        )
    )


@dataclass
class _Writer:
    """Draw images and write them, and collect the faults of each."""

    conversion: Conversion
    ids: dict[str, int]
    background: int
    findings: Findings
    folder: FolderWriter

    def __post_init__(self):
        # The image of the split train with the smallest hash, and its suffix.
        self._nearest = None

    def write(self, image: AnnotatedImage, split: str) -> None:
        """Write an image with its label, or add a fault."""
        try:
            self._write(image, split)
        except DataError as error:
            self.findings.fault(str(error))

    def _write(self, image: AnnotatedImage, split: str) -> None:
        if isinstance(image.file, Path) and not image.file.is_file():
            missing = f"{image.place}: the image {image.file} is missing"
            if self.conversion.skip_missing:
                self.findings.add("missing", missing)
            else:
                self.findings.fault(f"{missing}; name its directory with --images, or skip it with --missing skip")
            return
        suffix = _suffix(image)
        label = draw_upright(image, self.ids, self.background, self.findings)
        own = split or image.split
        target = split_of(image.name, own, self.conversion.val_fraction, self.conversion.seed)
        self.folder.add(target, image.name, suffix, image.file, label)
        if not own and target == "train":
            nearest = name_hash(image.name, self.conversion.seed), image.name, suffix
            self._nearest = min(self._nearest or nearest, nearest)

    def require_validation_image(self) -> None:
        """Move the image whose hash comes next to val if the hashes of a few images chose none."""
        if self.conversion.val_fraction and "val" not in self.folder.counts and self._nearest:
            if self.folder.counts["train"] > 1:
                self.folder.move(*self._nearest[1:], "train", "val")


def draw_upright(image: AnnotatedImage, ids: dict[str, int], background: int, findings: Findings) -> np.ndarray:
    """Return the label of the upright image, uint8 (H, W).

    With an EXIF orientation, the stated size tells whether the objects were drawn on the upright or on the stored
    image. If both have this size, browsers and annotation tools show the upright one.

    Raises:
        DataError: The image cannot be read, or has another size than the annotations state.
    """
    name = str(image.file) if isinstance(image.file, Path) else image.name
    size, orientation = read_size(image.file, name)
    stored = size[::-1] if orientation >= 5 else size
    if orientation != 1:
        findings.add("turned", f"{image.place}: {name}")
    if image.size in (None, size):
        return draw_objects(image, size, ids, background, findings)
    if image.size == stored:
        label = draw_objects(image, stored, ids, background, findings)
        return np.ascontiguousarray(picture_reader.upright(label, orientation))
    raise DataError(
        f"{image.place}: {image.name} has {image.size[1]}x{image.size[0]} pixels in the annotations, and "
        f"{size[1]}x{size[0]} in {name}"
    )


def read_size(file: Path | bytes, name: str) -> tuple[tuple[int, int], int]:
    """Return the (height, width) of the upright image and its EXIF orientation; raises DataError if it is damaged."""
    return picture_reader.read_size(file, name), picture_reader.read_orientation(file)


def _suffix(image: AnnotatedImage) -> str:
    """Return the suffix of the image file to write; raises DataError for files that kseg does not read."""
    if isinstance(image.file, bytes):
        with contextlib.suppress(OSError, ValueError, SyntaxError), Image.open(io.BytesIO(image.file)) as opened:
            suffix = {"JPEG": ".jpg", "TIFF": ".tif"}.get(opened.format, f".{opened.format.lower()}")
            if suffix in SUFFIXES:
                return suffix
        raise DataError(f"{image.place}: {image.name} is no image that kseg reads")
    if image.file.suffix.lower() not in SUFFIXES:
        raise DataError(f"{image.place}: {image.file} has none of the suffixes {', '.join(SUFFIXES)}")
    return image.file.suffix
