"""The masks of SBD (Hariharan et al. 2011) as PNG files of class ids, out of its MATLAB files."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from kseg.datasets import archive_files, tfds_builder
from kseg.datasets.archive_files import File
from kseg.errors import DataError

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
