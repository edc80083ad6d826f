"""Find the (image, label) pairs in published archives or extracted trees."""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from kseg.datasets import archive_files, file_lists, layouts, tfds_builder
from kseg.datasets.archive_files import File
from kseg.errors import DataError
from kseg.system.paths import printable
from kseg.system.progress import Progress

ADE20K_ZIP = "ADEChallengeData2016.zip"
VOC_TAR = "VOCtrainval_11-May-2012.tar"
AUG_ZIP = "SegmentationClassAug.zip"
SBD_TGZ = "benchmark.tgz"
CITYSCAPES_ZIPS = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
LISTS = "ImageSets/Segmentation"

# Directory of the masks in benchmark.tgz.
MASKS = "benchmark_RELEASE/dataset/cls"


def read_sbd_archive(path: Path, update: Callable[[int], None]) -> dict[str, File]:
    """Return SBD's masks in benchmark.tgz by image name, as PNG files in memory (60 MB).

    A compressed archive can only be read from its beginning, so all masks are converted in one pass.

    Args:
        path: The archive.
        update: Receives the number of bytes read so far.

    Raises:
        DataError: The archive is damaged or holds no masks.
    """
    masks = {}
    try:
        with path.open("rb") as stored, tarfile.open(fileobj=stored, mode="r|gz") as archive:
            for member in archive:
                member_path = PurePosixPath(member.name)
                if member.isfile() and member_path.suffix == ".mat" and str(member_path.parent) == MASKS:
                    data = archive.extractfile(member).read()
                    masks[member_path.stem] = sbd_mask_file(f"{path}: {member.name}", data)
                update(stored.tell())
    except archive_files.READ_ERRORS as error:
        raise archive_files.damaged_archive(path, error) from None
    if not masks:
        raise DataError(f"{path} holds no {MASKS}/NAME.mat; the published benchmark.tgz of SBD does")
    return masks


def read_sbd_tree(root: Path) -> dict[str, File]:
    """Return SBD's masks in an extracted benchmark_RELEASE/dataset by image name, converted on reading."""

    def file(path: Path) -> File:
        return File(str(path), path.stat().st_size, lambda: sbd_mask_file(str(path), path.read_bytes()).read())

    return {path.stem: file(path) for path in sorted((root / "cls").glob("*.mat"))}


def sbd_mask_file(name: str, matlab: bytes) -> File:
    """Return the PNG file of a mask in MATLAB format.

    Raises DataError if there is no mask.
    """
    png = tfds_builder.png(Image.fromarray(sbd_mask(name, matlab)))
    return File(name, len(png), lambda: png)


def sbd_mask(name: str, matlab: bytes) -> np.ndarray:
    """Return the class ids, uint8 (H, W), in an SBD file.

    They are GTcls.Segmentation of the file, which is in MATLAB format.

    Raises DataError with `name` if there are none, or if SciPy is missing.
    """
    # Only SBD's files need SciPy.
    try:
        import scipy.io
    except ImportError:
        raise DataError(f"{name}: reading SBD's MATLAB files needs SciPy; pip install scipy") from None
    try:
        mask = scipy.io.loadmat(io.BytesIO(matlab))["GTcls"]["Segmentation"][0, 0]
    # The reader raises arbitrary exceptions for a damaged file.
    except Exception as error:
        raise DataError(f"{name}: no mask GTcls.Segmentation ({archive_files.error_text(error)})") from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{name}: GTcls.Segmentation is {mask.dtype} {mask.shape}, not uint8 (height, width)")
    return mask


@dataclass(frozen=True)
class Pair:
    """An image and its label; `name` is the image's file name."""

    name: str
    image: File
    label: File


# The pairs of each split, in order.
Pairs = dict[str, list[Pair]]


def open_folder(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of a tree with `SPLIT/images` and `SPLIT/labels`."""

    def file(path: str) -> File:
        return File(path, Path(path).stat().st_size, Path(path).read_bytes)

    pairs, notes = {}, list(layouts.folder_notes(source))
    for split in splits:
        examples = layouts.folder_examples(source, split)
        notes += examples.notes
        pairs[split] = [
            Pair(Path(image).name, file(image), file(label))
            for image, label in zip(examples.names, examples.label_names, strict=True)
        ]
    for note in notes:
        report(printable(f"warning: {note}"))
    return pairs


def open_ade20k(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of an extracted ADEChallengeData2016 tree, its parent directory, or its archive."""
    root = _tree(source, ("ADEChallengeData2016",), "images")
    if root:
        files = archive_files.tree_files(root, ("images", "annotations"))
    else:
        root = _archive(source, ADE20K_ZIP, "images in it or in ADEChallengeData2016")
        report(f"reading {root}")
        files = archive_files.zip_files(root, "ADEChallengeData2016/")
    parts = {"train": "training", "val": "validation"}
    return {
        split: _paired(
            root,
            split,
            ".jpg",
            _require_files(root, files, f"images/{parts[split]}", ".jpg"),
            _require_files(root, files, f"annotations/{parts[split]}", ".png"),
        )
        for split in splits
    }


def open_cityscapes(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of an extracted Cityscapes tree or its two archives.

    Labels are labelIds.
    """
    roots = cityscapes_roots(source)
    if len(set(roots)) == 1:
        files = archive_files.tree_files(source, ("leftImg8bit", "gtFine"))
    else:
        report(f"reading {roots[0]} and {roots[1]}")
        files = archive_files.zip_files(roots[0]) | archive_files.zip_files(roots[1])

    def by_frame(root: Path, part: str, split: str, suffix: str) -> dict[str, File]:
        frames = {
            path.rsplit("/", 1)[1].removesuffix(suffix): file
            for path, file in files.items()
            if path.startswith(f"{part}/{split}/")
            and path.endswith(suffix)
            and path.count("/") == 3
            and not path.rsplit("/", 1)[1].startswith(".")
        }
        if not frames:
            raise DataError(f"no {part}/{split}/CITY/FRAME{suffix} in {root}")
        return frames

    return {
        split: _paired(
            source,
            split,
            "_leftImg8bit.png",
            by_frame(roots[0], "leftImg8bit", split, "_leftImg8bit.png"),
            by_frame(roots[1], "gtFine", split, "_gtFine_labelIds.png"),
        )
        for split in splits
    }


def cityscapes_roots(source: Path) -> tuple[Path, Path]:
    """Return the locations of the images and of the labels.

    They are twice the extracted tree, or the two archives.
    """
    if all((source / part).is_dir() for part in ("leftImg8bit", "gtFine")):
        return source, source
    images, labels = (_archive(source, name, "leftImg8bit and gtFine in it") for name in CITYSCAPES_ZIPS)
    return images, labels


def open_voc2012(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of VOC 2012's extracted tree or archive.

    For names without an official label, the split trainaug takes the masks of SegmentationClassAug or of SBD, see
    `_augmented_masks`. Its names are those of trainaug.txt if the tree has one. Otherwise they are derived as usual:
    all names that have a mask or occur in train.txt, without those in val.txt.
    """
    tree = _tree(source, ("VOC2012", "VOCdevkit/VOC2012"), LISTS)
    if tree:
        root, files = (
            tree,
            archive_files.tree_files(tree, ("JPEGImages", "SegmentationClass", "SegmentationClassAug", LISTS)),
        )
    else:
        root = _archive(source, VOC_TAR, f"{LISTS} in it, in VOC2012 or in VOCdevkit/VOC2012")
        report(f"reading {root}")
        files = archive_files.tar_files(root, "VOCdevkit/VOC2012/")
    images = _require_files(root, files, "JPEGImages", ".jpg")
    official = _require_files(root, files, "SegmentationClass", ".png")
    needed = {*splits, "train", "val"} if "trainaug" in splits else set(splits)
    lists = {
        name: _read_list(root, files, name) for name in needed if name != "trainaug" or f"{LISTS}/trainaug.txt" in files
    }
    pairs = {}
    for split in splits:
        labels = official
        if split == "trainaug":
            labels = _augmented_masks(source, files, report) | official
            derived = (labels.keys() - official.keys() | set(lists["train"])) - set(lists["val"])
            lists.setdefault("trainaug", sorted(derived))
        missing = [
            f"without {kind}: {file_lists.first_three(absent)}"
            for kind, absent in (
                ("image", set(lists[split]) - images.keys()),
                ("label", set(lists[split]) - labels.keys()),
            )
            if absent
        ]
        if missing:
            raise DataError(f"{root}: {split}.txt lists examples {'; '.join(missing)}")
        pairs[split] = [Pair(f"{name}.jpg", images[name], labels[name]) for name in sorted(lists[split])]
    return pairs


def _augmented_masks(source: Path, files: dict[str, File], report: Callable[[str], None]) -> dict[str, File]:
    """Return the additional masks of the split trainaug by name, from the first available source.

    Sources in order: SegmentationClassAug in the VOC tree, beside the tree, or as .zip; SBD's archive; SBD's extracted
    tree.
    """
    masks = archive_files.files_in(files, "SegmentationClassAug", ".png") or archive_files.files_in(
        archive_files.tree_files(source, ("SegmentationClassAug",)), "SegmentationClassAug", ".png"
    )
    if masks:
        return masks
    if (source / AUG_ZIP).is_file():
        report(f"reading {source / AUG_ZIP}")
        return _require_files(
            source / AUG_ZIP, archive_files.zip_files(source / AUG_ZIP), "SegmentationClassAug", ".png"
        )
    if (source / SBD_TGZ).is_file():
        path = source / SBD_TGZ
        report(f"reading {path}")
        # The extra MiB keeps the progress below its total until all masks are converted.
        total = (path.stat().st_size >> 20) + 1
        progress = Progress(total, f"MiB of {path.name}", report)
        masks = read_sbd_archive(path, lambda done: progress.update(done >> 20))
        progress.update(total)
        return masks
    masks = read_sbd_tree(source / Path(MASKS).parent)
    if masks:
        return masks
    raise DataError(
        f"no masks for trainaug: neither a directory SegmentationClassAug beside SegmentationClass or in "
        f"{source}, nor {AUG_ZIP}, {SBD_TGZ} or {MASKS} in {source}; without them, use "
        "--split train val"
    )


def _read_list(root: Path, files: dict[str, File], split: str) -> list[str]:
    """Return the names in a list of VOC.

    Raises DataError if it is missing or empty or repeats a name.
    """
    file = files.get(f"{LISTS}/{split}.txt")
    if file is None:
        raise DataError(f"no {LISTS}/{split}.txt in {root}")
    return file_lists.listed_names(str(file), file.read())


def _paired(root: Path, split: str, suffix: str, images: dict[str, File], labels: dict[str, File]) -> list[Pair]:
    """Return the pairs of files with the same key.

    Raises DataError naming the files without a counterpart.
    """
    try:
        pairs = layouts.pair_up(split, images, labels)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    return [Pair(name + suffix, *pair) for name, pair in zip(sorted(images), pairs, strict=True)]


def _require_files(root: Path, files: dict[str, File], directory: str, suffix: str) -> dict[str, File]:
    """Return the files of a directory by name; raises DataError if there are none."""
    chosen = archive_files.files_in(files, directory, suffix)
    if not chosen:
        raise DataError(f"no {directory}/NAME{suffix} in {root}, which holds {len(files)} other files")
    return chosen


def _tree(source: Path, names: tuple[str, ...], subdirectory: str) -> Path | None:
    """Return the first of `source` and `source/NAME` that contains a subdirectory."""
    candidates = (source, *(source / name for name in names))
    return next((candidate for candidate in candidates if (candidate / subdirectory).is_dir()), None)


def _archive(source: Path, name: str, tree: str) -> Path:
    """Return the path of an archive in `source`; raises DataError if it is missing.

    `tree` describes the extracted tree that was not found either.
    """
    if not (source / name).is_file():
        raise DataError(f"no {name} in {source}, nor an extracted tree ({tree})")
    return source / name


SOURCES: dict[str, Callable[[Path, Sequence[str], Callable[[str], None]], Pairs]] = {
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "voc2012": open_voc2012,
    "camvid": open_folder,
    "folder": open_folder,
}
