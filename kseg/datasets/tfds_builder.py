"""Write (image, label) pairs as record files with tensorflow-datasets, one split at a time."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from kseg.datasets.prepared import VERSION

# Number of distinct keys that tensorflow-datasets can sort.
KEYS = 2**128


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the encoded pairs of one split.

    A record has the features "image" (JPEG, PNG or BMP), "segmentation_mask" (PNG of raw ids) and "name" (the image's
    file name).
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, data_dir: Path, split: str, examples: Iterable[dict[str, bytes | str]], count: int):
        self.split, self.examples, self.count = split, examples, count
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with labels for semantic segmentation.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "segmentation_mask"),
            # Keeps the order of the source, so that example i of the files is pair i.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, bytes | str]]]:
        # The builder collects examples in temporary files by key range and reads one file at a time to sort it. Keys
        # spread over the whole range keep these files small; small consecutive keys would all go to one file.
        step = KEYS // self.count
        for index, example in enumerate(self.examples):
            yield index * step, example


class Ade20k(PairsBuilder, skip_registration=True):
    """ADE20K's 150 classes of scene parsing (Zhou et al. 2017).

    0 marks pixels of none of the classes.
    """


class Voc2012(PairsBuilder, skip_registration=True):
    """Pascal VOC 2012 (Everingham et al. 2012).

    The split trainaug contains the masks of Hariharan et al. 2011.
    """


class Camvid(PairsBuilder, skip_registration=True):
    """CamVid (Brostow et al. 2009) in SegNet's split of 11 classes; 11 is void."""


class Folder(PairsBuilder, skip_registration=True):
    """A user's dataset."""


def png(image: Image.Image) -> bytes:
    """Return an image encoded as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


BUILDERS = {"ade20k": Ade20k, "voc2012": Voc2012, "camvid": Camvid, "folder": Folder}


def write_split(builder: tfds.core.DatasetBuilder, downloads: Path | None = None, manual: Path | None = None) -> None:
    """Run a builder, which writes TFRecord files, and suppress its output.

    It reads archives in `manual` and extracts them below `downloads`. Raises OSError if it cannot write.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual)
    # The builder announces a download even without one, and requires a directory for it.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(
                download_dir=downloads or unused, file_format="tfrecord", download_config=config
            )
        # The record writer raises RuntimeError, for example on a full disk.
        except RuntimeError as error:
            raise OSError(str(error)) from error
