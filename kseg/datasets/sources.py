"""The pairs of picture and label in the sources users have: extracted trees, or the archives as published."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from kseg.datasets import archive_files, layouts, tfds_builder
from kseg.datasets.archive_files import File
from kseg.errors import DataError
from kseg.system.progress import Progress

ADE20K_ZIP = "ADEChallengeData2016.zip"
VOC_TAR = "VOCtrainval_11-May-2012.tar"
AUG_ZIP = "SegmentationClassAug.zip"
SBD_TGZ = "benchmark.tgz"
CITYSCAPES_ZIPS = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
LISTS = "ImageSets/Segmentation"

# Where benchmark.tgz holds them.
MASKS = "benchmark_RELEASE/dataset/cls"


def read_archive(path: Path, update: Callable[[int], None]) -> dict[str, File]:
    """Return SBD's masks by the names of their pictures, as PNG files in memory (60 MB), from benchmark.tgz.

    A compressed archive is read from its beginning only, so all are converted in one pass; `update` is told how many
    bytes are behind. Raises DataError for an archive that is damaged or holds no masks.
    """
    masks = {}
    try:
        with path.open("rb") as stored, tarfile.open(fileobj=stored, mode="r|gz") as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                if member.isfile() and place.suffix == ".mat" and str(place.parent) == MASKS:
                    masks[place.stem] = png_file(f"{path}: {member.name}", archive.extractfile(member).read())
                update(stored.tell())
    except archive_files.FAULTS as error:
        raise archive_files.damaged(path, error) from None
    if not masks:
        raise DataError(f"{path} holds no {MASKS}/NAME.mat; benchmark.tgz of SBD does")
    return masks


def read_tree(root: Path) -> dict[str, File]:
    """Return the same from an extracted benchmark_RELEASE/dataset, whose masks are converted when they are read."""
    def file(path: Path) -> File:
        return File(str(path), path.stat().st_size, lambda: png_file(str(path), path.read_bytes()).read())

    return {path.stem: file(path) for path in sorted((root / "cls").glob("*.mat"))}


def png_file(where: str, matlab: bytes) -> File:
    """Return a mask's PNG file from the bytes of its MATLAB file; raises DataError where that holds no mask."""
    png = tfds_builder.png(Image.fromarray(segmentation(where, matlab)))
    return File(where, len(png), lambda: png)


def segmentation(where: str, matlab: bytes) -> np.ndarray:
    """Return the uint8 (H, W) class ids that a MATLAB file of SBD holds as GTcls.Segmentation.

    Raises DataError naming `where` if there are none, and where SciPy is missing.
    """
    # Only these files need it.
    try:
        import scipy.io
    except ImportError:
        raise DataError(f"{where}: reading SBD's MATLAB files needs SciPy; pip install scipy") from None
    try:
        mask = scipy.io.loadmat(io.BytesIO(matlab))["GTcls"]["Segmentation"][0, 0]
    # A damaged file makes the reader stumble over anything.
    except Exception as error:
        raise DataError(f"{where}: no mask GTcls.Segmentation in it ({archive_files.reason(error)})") from None
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise DataError(f"{where}: GTcls.Segmentation is {mask.dtype} {mask.shape}, not uint8 (height, width)")
    return mask


@dataclass(frozen=True)
class Pair:
    """A picture and its label; `name` is the picture's file name."""

    name: str
    image: File
    label: File


# The pairs of each split, in order.
Pairs = dict[str, list[Pair]]


def open_folder(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of a tree `SPLIT/images` beside `SPLIT/labels`."""
    def file(path: str) -> File:
        return File(path, Path(path).stat().st_size, Path(path).read_bytes)

    found = {}
    for split in splits:
        pairs = layouts.open_folder_split(source, split)
        found[split] = [Pair(Path(image).name, file(image), file(label))
                        for image, label in zip(pairs.names, pairs.label_names, strict=True)]
    return found


def open_ade20k(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of an extracted ADEChallengeData2016 tree, or of the directory around it, or of its archive."""
    root = _tree(source, ("ADEChallengeData2016",), "images")
    if root:
        found = archive_files.tree_files(root, ("images", "annotations"))
    else:
        root = _archive(source, ADE20K_ZIP, "images in it or in ADEChallengeData2016")
        report(f"reading {root}")
        found = archive_files.zip_files(root, "ADEChallengeData2016/")
    parts = {"train": "training", "val": "validation"}
    return {split: _paired(root, split, ".jpg",
                           _below(root, found, f"images/{parts[split]}", ".jpg"),
                           _below(root, found, f"annotations/{parts[split]}", ".png")) for split in splits}


def open_cityscapes(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of an extracted Cityscapes tree, or of its two archives; labels are labelIds."""
    roots = cityscapes_roots(source)
    if len(set(roots)) == 1:
        found = archive_files.tree_files(source, ("leftImg8bit", "gtFine"))
    else:
        report(f"reading {roots[0]} and {roots[1]}")
        found = archive_files.zip_files(roots[0]) | archive_files.zip_files(roots[1])

    def by_frame(root: Path, part: str, split: str, suffix: str) -> dict[str, File]:
        frames = {path.rsplit("/", 1)[1].removesuffix(suffix): file for path, file in found.items()
                  if path.startswith(f"{part}/{split}/") and path.endswith(suffix) and path.count("/") == 3}
        if not frames:
            raise DataError(f"no {part}/{split}/CITY/FRAME{suffix} in {root}")
        return frames

    return {split: _paired(source, split, "_leftImg8bit.png",
                           by_frame(roots[0], "leftImg8bit", split, "_leftImg8bit.png"),
                           by_frame(roots[1], "gtFine", split, "_gtFine_labelIds.png")) for split in splits}


def cityscapes_roots(source: Path) -> tuple[Path, Path]:
    """Return twice the extracted tree that `source` is, or the paths of its archives of pictures and of labels."""
    if all((source / part).is_dir() for part in ("leftImg8bit", "gtFine")):
        return source, source
    first, second = (_archive(source, name, "leftImg8bit and gtFine in it") for name in CITYSCAPES_ZIPS)
    return first, second


def open_voc2012(source: Path, splits: Sequence[str], report: Callable[[str], None]) -> Pairs:
    """Return the pairs of VOC 2012 from an extracted tree, or the directories around it, or its archive.

    The split trainaug adds, for names without an official label, the masks of SegmentationClassAug or of SBD, see
    `_augmented`. Its names are those of trainaug.txt where the tree has one; else, as everybody derives them, all that
    have a mask or stand in train.txt, without those of val.txt.
    """
    tree = _tree(source, ("VOC2012", "VOCdevkit/VOC2012"), LISTS)
    if tree:
        root, found = tree, archive_files.tree_files(
            tree, ("JPEGImages", "SegmentationClass", "SegmentationClassAug", LISTS))
    else:
        root = _archive(source, VOC_TAR, f"{LISTS} in it, in VOC2012 or in VOCdevkit/VOC2012")
        report(f"reading {root}")
        found = archive_files.tar_files(root, "VOCdevkit/VOC2012/")
    images = _below(root, found, "JPEGImages", ".jpg")
    official = _below(root, found, "SegmentationClass", ".png")
    lists = {name: _names(root, found, name) for name in ("train", "val", "trainaug")
             if name != "trainaug" or f"{LISTS}/trainaug.txt" in found}
    pairs = {}
    for split in splits:
        labels = official
        if split == "trainaug":
            labels = _augmented(source, found, report) | official
            derived = (labels.keys() - official.keys() | set(lists["train"])) - set(lists["val"])
            lists.setdefault("trainaug", sorted(derived))
        missing = [f"without {kind}: {layouts.first_three(absent)}" for kind, absent in (
            ("image", set(lists[split]) - images.keys()), ("label", set(lists[split]) - labels.keys())) if absent]
        if missing:
            raise DataError(f"{root}: {split}.txt names examples {'; '.join(missing)}")
        pairs[split] = [Pair(f"{name}.jpg", images[name], labels[name]) for name in sorted(lists[split])]
    return pairs


def _augmented(source: Path, found: dict[str, File], report: Callable[[str], None]) -> dict[str, File]:
    """Return the first masks there are: of SegmentationClassAug in the tree, beside it or as .zip; of SBD.

    SBD is its archive or its extracted tree.
    """
    masks = archive_files.below(found, "SegmentationClassAug", ".png") or archive_files.below(
        archive_files.tree_files(source, ("SegmentationClassAug",)), "SegmentationClassAug", ".png")
    if masks:
        return masks
    if (source / AUG_ZIP).is_file():
        report(f"reading {source / AUG_ZIP}")
        return _below(source / AUG_ZIP, archive_files.zip_files(source / AUG_ZIP), "SegmentationClassAug", ".png")
    if (source / SBD_TGZ).is_file():
        path = source / SBD_TGZ
        report(f"reading {path}")
        # One more than whole ones: the last is told when all is read.
        total = (path.stat().st_size >> 20) + 1
        progress = Progress(total, f"MiB of {path.name}", report)
        masks = read_archive(path, lambda done: progress.update(done >> 20))
        progress.update(total)
        return masks
    masks = read_tree(source / Path(MASKS).parent)
    if masks:
        return masks
    raise DataError(f"no masks for trainaug: neither a directory SegmentationClassAug beside SegmentationClass or in "
                    f"{source}, nor {AUG_ZIP}, {SBD_TGZ} or {MASKS} in {source}; without them prepare "
                    "--split train val")


def _names(root: Path, found: dict[str, File], split: str) -> list[str]:
    """Return the names that a list of VOC holds; raises DataError where it is missing, empty or repeats itself."""
    file = found.get(f"{LISTS}/{split}.txt")
    if file is None:
        raise DataError(f"no {LISTS}/{split}.txt in {root}")
    names = file.read().decode(errors="replace").split()
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise DataError(f"{file} names {layouts.first_three(repeated)} twice" if names else f"{file} is empty")
    return names


def _paired(root: Path, split: str, suffix: str, images: dict[str, File], labels: dict[str, File]) -> list[Pair]:
    """Return the pairs of files of one name; raises DataError naming what has no partner."""
    try:
        layouts.pair_up(split, images, labels)
    except DataError as error:
        raise DataError(f"{root}: {error}") from None
    return [Pair(name + suffix, images[name], labels[name]) for name in sorted(images)]


def _below(root: Path, found: dict[str, File], directory: str, suffix: str) -> dict[str, File]:
    """Return `archive_files.below`, whose emptiness means another source than the one awaited: a DataError."""
    chosen = archive_files.below(found, directory, suffix)
    if not chosen:
        raise DataError(f"no {directory}/NAME{suffix} in {root}; {len(found)} other files are there")
    return chosen


def _tree(source: Path, names: tuple[str, ...], holds: str) -> Path | None:
    """Return the first of a directory and the names below it in which `holds` is a directory."""
    places = (source, *(source / name for name in names))
    return next((place for place in places if (place / holds).is_dir()), None)


def _archive(source: Path, name: str, tree: str) -> Path:
    """Return the path of an archive in `source`; raises DataError where neither it nor an extracted tree is there."""
    if not (source / name).is_file():
        raise DataError(f"no {name} in {source}, nor an extracted tree ({tree})")
    return source / name


SOURCES: dict[str, Callable[[Path, Sequence[str], Callable[[str], None]], Pairs]] = {
    "ade20k": open_ade20k, "cityscapes": open_cityscapes, "voc2012": open_voc2012, "camvid": open_folder,
    "folder": open_folder}
