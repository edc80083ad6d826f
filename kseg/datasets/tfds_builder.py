"""tensorflow-datasets builders of pairs of picture and label, one split at a time."""

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image

from kseg.datasets.prepared import VERSION

# Of as many different keys tensorflow-datasets can tell the order.
KEYS = 2 ** 128


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the pairs of one split as they are encoded: "image" JPEG, PNG or BMP, "segmentation_mask" PNG of raw ids,
    "name" the picture's file name."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, data_dir: Path, split: str, examples: Iterable[dict[str, bytes | str]], count: int):
        self.split, self.examples, self.count = split, examples, count
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures with labels for semantic segmentation.",
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3)),
                "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "name": tfds.features.Text(),
            }),
            supervised_keys=("image", "segmentation_mask"),
            # Example i of the files is then pair i of the source.
            disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {self.split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, bytes | str]]]:
        # Far apart, over all the room keys have: examples are then collected in many small files, by their keys, of
        # which one at a time is read to be sorted. Keys of small numbers would share one.
        step = KEYS // self.count
        for index, example in enumerate(self.examples):
            yield index * step, example


class Ade20k(PairsBuilder, skip_registration=True):
    """ADE20K's 150 classes of scene parsing (Zhou et al. 2017); 0 is what has none of them."""


class Voc2012(PairsBuilder, skip_registration=True):
    """Pascal VOC 2012 (Everingham et al. 2012), with the masks of Hariharan et al. 2011 in its split trainaug."""


class Camvid(PairsBuilder, skip_registration=True):
    """CamVid (Brostow et al. 2009) in SegNet's split of 11 classes; 11 is void."""


class Folder(PairsBuilder, skip_registration=True):
    """A data set of one's own."""


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


BUILDERS = {"ade20k": Ade20k, "voc2012": Voc2012, "camvid": Camvid, "folder": Folder}


def write_split(builder: tfds.core.DatasetBuilder, downloads: Path | None = None, manual: Path | None = None) -> None:
    """Let a builder write what it is to write, in TFRecord files, without a word of its own.

    It reads archives in `manual` and extracts them below `downloads`. Raises OSError where it cannot write.
    """
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, manual_dir=manual)
    # The builder would announce a download, and wants a place for it.
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=downloads or nothing, file_format="tfrecord",
                                         download_config=config)
        # What the writer of records raises, such as on a full disk.
        except RuntimeError as error:
            raise OSError(str(error)) from error
