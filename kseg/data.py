"""Batches for training and examples for evaluation, through tf.data.

    python -m kseg.data check NAME [--directory DIR] [--split SPLIT ...]
    python -m kseg.data show NAME --out grid.png [--directory DIR] [--config NAME]
    python -m kseg.data prepare NAME --source DIR [--directory OUT] [--split SPLIT ...] [--subset]

The order of examples and every random draw are pure functions of (seed, step): a run continues at any step without
replaying what came before, and the same seed gives the same batches on any machine.
"""

import argparse
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow as tf

from kseg import augmentations, commands, datasets, extra_augmentations
from kseg.config import Config, Data
from kseg.datasets import IGNORED, UNMAPPED, Dataset, Split
from kseg.errors import ConfigError, DataError
from kseg.inference import normalise

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE = 0, 3


def train_batches(config: Config, start_step: int = 0,
                  worker: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Return the global batches from `start_step` to the last step of training, or one input worker's share of each.

    Each is a dict: "image" float32 (B, h, w, 3), normalised and padded to the crop; "label" uint8 train ids (B, h, w),
    255 ignored; "index" int64 (B,), the example's place in its split. A worker reads its share only; all workers' make
    up the global batch. Raises DataError as `open_split` does, ConfigError where the batch cannot be shared evenly.
    """
    dataset = datasets.find(config.data)
    split = datasets.open_split(config.data, config.data.train_split)
    batch = config.train.global_batch
    extra = extra_augmentations.build(config.augment.extra)
    workers, place = (worker.num_input_pipelines, worker.input_pipeline_id) if worker else (1, 0)
    share, rest = divmod(batch, workers)
    if rest:
        raise ConfigError(f"train.global_batch {batch} cannot be shared evenly by {workers} workers")

    def example(position: tf.Tensor) -> dict:
        index = shuffled(position, len(split.names), config.train.seed)
        image, label = read_example(dataset, split, index)
        seed = tf.stack([tf.constant(config.train.seed, tf.int32), tf.cast(position, tf.int32)])
        image, label = augmentations.augment(image, label, seed, config.augment)
        image, label = padded(extra(image, seed), label, config)
        return {"image": image, "label": label, "index": index}

    own = tf.data.Dataset.range(start_step * share, config.train.steps * share)
    batches = own.map(lambda number: example(number // share * batch + place * share + number % share),
                      num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(share, drop_remainder=True)
    options = tf.data.Options()
    # The order is ours: every replica's share is cut from the global batch, never from the list of files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return batches.prefetch(2).with_options(options)


def padded(image: tf.Tensor, label: tf.Tensor, config: Config) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the normalised image, float32 (h, w, 3), and uint8 train ids (h, w), padded to the crop h, w.

    The picture, RGB 0..255 and at most as large, stands at augment.pad; around it are augment.pad_colour and label 255.
    With an odd rest, the odd row and column are below and to the right.
    """
    height, width = config.augment.crop
    rest = (height - tf.shape(label)[0], width - tf.shape(label)[1])
    before = [side // 2 if config.augment.pad == "centre" else 0 for side in rest]
    sides = [[first, side - first] for first, side in zip(before, rest)]
    # 0 is black before normalisation and the mean after it.
    if config.augment.pad_colour == "black":
        image = normalise(tf.pad(image, [*sides, [0, 0]]), config)
    else:
        image = tf.pad(normalise(image, config), [*sides, [0, 0]])
    label = tf.pad(label, sides, constant_values=IGNORED)
    return tf.ensure_shape(image, (height, width, 3)), tf.ensure_shape(label, (height, width))


def eval_examples(config: Config, split_name: str) -> tf.data.Dataset:
    """Return every example of a split in order at its own size: "image" uint8 (H, W, 3), "label" uint8, "index"."""
    dataset = datasets.find(config.data)
    split = datasets.open_split(config.data, split_name)

    def example(index: tf.Tensor) -> dict:
        image, label = read_example(dataset, split, index)
        return {"image": image, "label": label, "index": index}

    indices = tf.data.Dataset.range(len(split.names))
    return indices.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)


def shuffled(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Return which of `count` examples stands at a position of the endless training order.

    Every stretch of `count` positions is one permutation of the whole split, another for each stretch.
    """
    epoch, place = position // count, position % count
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(place, tf.cast(seeds, tf.int32), tf.constant(count - 1, tf.int64))


def batch_indices(config: Config, step: int) -> list[int]:
    """Return the places in the training split of the examples in one step's batch."""
    count = len(datasets.open_split(config.data, config.data.train_split).names)
    first = step * config.train.global_batch
    return [int(shuffled(tf.constant(position, tf.int64), count, config.train.seed))
            for position in range(first, first + config.train.global_batch)]


def read_example(dataset: Dataset, split: Split, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the uint8 image (H, W, 3) and uint8 train ids (H, W) of one example, in a graph.

    What is wrong with an example fails here in few words; `explain` says it in full.
    """
    image_data, label_data = split.read(index)
    image, label = decode_image(image_data), decode_label(label_data)
    same = tf.reduce_all(tf.equal(tf.shape(image)[:2], tf.shape(label)))
    label = tf.gather(tf.constant(dataset.label_table, tf.uint8), tf.cast(label, tf.int32))
    known = tf.reduce_all(tf.not_equal(label, UNMAPPED))
    with tf.control_dependencies([tf.debugging.Assert(same, ["image and label differ in size: example", index]),
                                  tf.debugging.Assert(known, ["label value outside the table: example", index])]):
        return tf.identity(image), tf.identity(label)


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Return the uint8 RGB picture (H, W, 3) of an encoded JPEG, PNG or BMP."""
    image = tf.cond(
        tf.io.is_jpeg(data),
        # The accurate transform is what other readers use; the default one differs by a few grey levels.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False))
    return tf.ensure_shape(image, (None, None, 3))


def decode_label(data: tf.Tensor) -> tf.Tensor:
    """Return the raw uint8 ids (H, W) of a label PNG: 8-bit grey, or palette indices (never their colours)."""
    header = tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8)
    header = tf.ensure_shape(header, (26,))
    kind, depth = header[25], header[24]
    # Both decoders below would read a JPEG too, whose values are not ids.
    png = tf.reduce_all(tf.equal(header[:8], tf.constant(list(PNG_SIGNATURE), tf.uint8)))
    grey = tf.equal(kind, GREY) & tf.equal(depth, 8)
    with tf.control_dependencies([tf.debugging.Assert(
            png & (grey | tf.equal(kind, PALETTE)), ["a label must be an 8-bit grey or a palette PNG"])]):
        # TensorFlow would turn palette indices into the luminance of their colours.
        label = tf.cond(grey, lambda: tf.io.decode_png(data, channels=1)[..., 0],
                        lambda: tf.numpy_function(_palette_indices, [data], tf.uint8))
    return tf.ensure_shape(label, (None, None))


def _palette_indices(data: bytes | np.ndarray) -> np.ndarray:
    # Bytes inside a graph; outside, TensorFlow hands over an array of one such object.
    return np.array(PIL.Image.open(io.BytesIO(np.asarray(data, object).item())), np.uint8)


def examine(dataset: Dataset, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one example's uint8 image (H, W, 3) and *raw* uint8 label (H, W).

    Raises DataError naming the file, the value and the choices where either cannot be used.
    """
    image, label = decode_pair(split, index)
    fault = unmapped(dataset, np.bincount(label.ravel(), minlength=256))
    if fault:
        raise DataError(f"{split.label_names[index]}: {fault}")
    return image, label


def decode_pair(split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one example's image and raw label as `examine` does, whatever values the label holds.

    Raises DataError naming the file that is missing, damaged, of the wrong kind, or does not fit the other in size.
    """
    image_name, label_name = split.names[index], split.label_names[index]
    try:
        image_data, label_data = split.read(tf.constant(index, tf.int64))
    except tf.errors.OpError as error:
        raise DataError(f"{image_name} or its label {label_name} cannot be read: {_reason(error)}") from None
    try:
        image = decode_image(image_data).numpy()
    except tf.errors.OpError as error:
        raise DataError(f"{image_name}: not a readable JPEG, PNG or BMP ({_reason(error)})") from None
    header = label_data.numpy()[:26]
    if len(header) < 26 or header[:8] != PNG_SIGNATURE:
        raise DataError(f"{label_name}: not a PNG file")
    if header[25] != PALETTE and (header[25], header[24]) != (GREY, 8):
        kinds = {0: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}
        raise DataError(f"{label_name}: {header[24]}-bit {kinds.get(header[25], header[25])} PNG; "
                        "a label must be 8-bit grey or palette, one class id a pixel")
    try:
        label = decode_label(label_data).numpy()
    # Pillow, which reads palettes, raises whatever a damaged file makes it stumble over.
    except Exception as error:
        raise DataError(f"{label_name}: damaged PNG ({_reason(error)})") from None
    if image.shape[:2] != label.shape:
        raise DataError(f"{label_name} is {label.shape[1]}x{label.shape[0]}, "
                        f"its image {image_name} {image.shape[1]}x{image.shape[0]}")
    return image, label


def unmapped(dataset: Dataset, counts: np.ndarray) -> str:
    """Return what is wrong with a label of which `counts` (256,) pixels have each raw value; nothing: empty text."""
    values = [value for value, count in enumerate(counts) if count and dataset.label_table[value] == UNMAPPED]
    if not values:
        return ""
    named = ", ".join(f"{value} ({counts[value]} pixel{'s' if counts[value] > 1 else ''})" for value in values[:5])
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    known = _ranges([raw for raw, train_id in enumerate(dataset.label_table) if train_id != UNMAPPED])
    verb = "values {} are no label values" if len(values) > 1 else "value {} is no label value"
    return f"{verb.format(named + more)} of {dataset.name}; those are {known}"


def explain(config: Config, split_name: str, indices: Iterable[int], error: Exception) -> DataError:
    """Return the DataError that says which of some examples made reading fail, or the original words if none does."""
    dataset, split = datasets.find(config.data), datasets.open_split(config.data, split_name)
    try:
        for index in indices:
            examine(dataset, split, index)
    except DataError as found:
        return found
    return DataError(f"reading {split_name} failed: {_reason(error)}")


def explained(config: Config, split_name: str, examples: tf.data.Dataset) -> Iterator[dict]:
    """Yield the elements of `eval_examples`; an unreadable one raises DataError naming its file."""
    iterator, index = iter(examples), 0
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise explain(config, split_name, [index], error) from None
        yield element
        index += 1


def _reason(error: Exception) -> str:
    text = str(getattr(error, "message", error)) or type(error).__name__
    return text.splitlines()[0][:200]


def _ranges(values: list[int]) -> str:
    """Return sorted numbers as text, runs as first-last."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def main(arguments: list[str] | None = None) -> int:
    # They build on this module.
    from kseg import inspections, prepare

    parser = argparse.ArgumentParser(prog="python -m kseg.data", description="Prepares a data set and looks at it.")
    names = f"data sets: {', '.join(sorted(datasets.DATASETS))}"
    parsers = parser.add_subparsers(dest="command", required=True)
    checking = parsers.add_parser("check", help="read every file and count the label values", epilog=names)
    showing = parsers.add_parser("show", help="draw augmented training samples", epilog=names)
    for command in (checking, showing):
        command.add_argument("name", metavar="NAME", help="a data set's name")
        command.add_argument("--directory", default="", metavar="DIR",
                             help="where it lies (default: $KSEG_DATA/NAME, else data/NAME)")
    checking.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these splits (default: all)")
    showing.add_argument("--split", metavar="SPLIT", help="which split (default: the training split)")
    showing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file to write")
    showing.add_argument("--count", type=int, default=8, help="how many samples (default 8)")
    showing.add_argument("--step", type=int, default=0, help="the training step to start at (default 0)")
    commands.add_config_arguments(showing)
    prepare.add_parser(parsers)
    values = parser.parse_args(arguments)
    if values.command == "prepare":
        prepare.prepare(Data(name=values.name, directory=values.directory), values.source, values.split, values.subset)
        return 0
    if values.command == "check":
        inspections.check(Data(name=values.name, directory=values.directory), values.split)
        return 0
    given = {"directory": values.directory, "train_split": values.split}
    given = {key: value for key, value in given.items() if value}
    if values.config:
        config = commands.load_config(values)
        if config.data.name != values.name:
            raise ConfigError(f"config {values.config} is for {config.data.name}, not for {values.name}; "
                              f"add --set data.name={values.name} if that is meant")
        config = replace(config, data=replace(config.data, **given))
    else:
        config = inspections.plain_config(Data(name=values.name, **given), values.overrides)
    inspections.show(config, values.count, values.step, values.out)
    return 0


if __name__ == "__main__":
    commands.run(main)
