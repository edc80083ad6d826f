"""Small models in BASE/VERSION; a version appears complete, by a rename."""

import atexit
import functools
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import keras
import tensorflow as tf
from keras import ops

from kseg.config import Config
from kseg.config.sections import Data, Export
from kseg.datasets.registry import Dataset
from kseg.exporting import exporter

CLASSES = ("sky", "road", "tree", "car")
PALETTE = ((70, 130, 180), (128, 64, 128), (107, 142, 35), (0, 0, 142))
# (height, width) of predict_map and of the warm-up images, and the most pixels that serving_default decodes.
SIZE = (12, 20)
MAX_PIXELS = 1_000_000


def half_plus_two(base: Path, version: int, add: float = 2.0) -> Path:
    """Write a model of y = x / 2 + add and return its directory.

    serving_default maps x, float [N], to y, float [N]. regress_x_to_y and classify_x_to_y take `inputs`, string [N] of
    serialized tf.train.Examples whose feature x is one float; they return y as `outputs` and `scores`, float [N, 1].
    """
    graph = tf.Graph()
    with graph.as_default():
        examples = tf.compat.v1.placeholder(tf.string, (None,), name="tf_example")
        parsed = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature((), tf.float32, default_value=0.0)})
        # serving_default feeds x; the other signatures compute it.
        x = tf.ensure_shape(tf.identity(parsed["x"]), (None,), name="x")
        half = tf.compat.v1.get_variable("a", initializer=0.5, use_resource=True)
        addend = tf.compat.v1.get_variable("b", initializer=add, use_resource=True)
        # ensure_shape above does not check a fed value, so the rank is checked again here.
        y = tf.add(half * tf.ensure_shape(x, (None,)), addend, name="y")
        column = tf.expand_dims(y, 1)
        info = tf.compat.v1.saved_model.build_tensor_info
        predict, classify, regress = (
            getattr(tf.saved_model, f"{kind}_METHOD_NAME") for kind in ("PREDICT", "CLASSIFY", "REGRESS")
        )
        signatures = {
            "serving_default": ({"x": info(x)}, {"y": info(y)}, predict),
            "regress_x_to_y": ({"inputs": info(examples)}, {"outputs": info(column)}, regress),
            "classify_x_to_y": ({"inputs": info(examples)}, {"scores": info(column)}, classify),
        }
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            temporary = base / f".{version}-{uuid.uuid4().hex}.tmp"
            builder = tf.compat.v1.saved_model.Builder(str(temporary))
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                {name: tf.compat.v1.saved_model.build_signature_def(*parts) for name, parts in signatures.items()},
            )
            builder.save()
    return published(temporary, version)


class Bands(keras.layers.Layer):
    """Scores whose largest is class (red // 64 + shift) % 4; their margin grows with green."""

    def __init__(self, shift: int, **settings):
        super().__init__(**settings)
        self.shift = shift

    def build(self, input_shape):
        # A model without variables would have no variables files.
        self.offset = self.add_weight(name="offset", shape=(), initializer="zeros", trainable=False)

    def call(self, images):
        red, green = images[..., 0], images[..., 1:2]
        ids = (ops.floor(red / 64) + self.shift + self.offset) % len(CLASSES)
        return (4 + green / 64) * ops.one_hot(ops.cast(ids, "int32"), len(CLASSES))

    def get_config(self):
        return super().get_config() | {"shift": self.shift}


def segmentation(base: Path, version: int, shift: int = 0) -> Path:
    """Write an export of kseg.export whose predictions are `ids_of`; the first call takes 3 s."""
    temporary = base / f".{version}-{uuid.uuid4().hex}.tmp"
    shutil.copytree(_exported(shift), temporary)
    return published(temporary, version)


@functools.cache
def _exported(shift: int) -> Path:
    config = Config(
        data=Data(name="folder", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        export=Export(size=SIZE, max_pixels=MAX_PIXELS, warmup_batches=(1, 2)),
    )
    dataset = Dataset(
        name="folder",
        classes=CLASSES,
        palette=PALETTE,
        label_table=tuple(range(256)),
        splits=("val",),
        open_examples=_no_split,
        how_to_get="",
    )
    images = keras.Input((None, None, 3))
    model = keras.Model(images, {"main": Bands(shift)(images)})
    # The directory is kept for the whole process and removed at its end.
    directory = tempfile.mkdtemp(prefix="servable")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return exporter.export(model, config, dataset, Path(directory), version=1, report=_silent)


def ids_of(images, shift: int = 0):
    """Return the class indices of `segmentation`, uint8 [..., H, W], for uint8 RGB images [..., H, W, 3]."""
    return (images[..., 0] // 64 + shift) % len(CLASSES)


def corrupt(base: Path, version: int) -> Path:
    """Write a version whose saved_model.pb is not a SavedModel and return its directory."""
    temporary = base / f".{version}-{uuid.uuid4().hex}.tmp"
    (temporary / "variables").mkdir(parents=True)
    (temporary / "saved_model.pb").write_bytes(b"\xffno protocol buffer")
    return published(temporary, version)


def published(temporary: Path, version: int) -> Path:
    """Rename a complete directory to its version number and return its new path."""
    directory = temporary.parent / str(version)
    os.replace(temporary, directory)
    return directory


def _no_split(directory: Path, split: str):
    raise AssertionError("the dataset of a small servable is never read")


def _silent(line: str) -> None:
    """Ignore a line of the export's report."""
