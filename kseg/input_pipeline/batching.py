"""Make training batches and evaluation examples with tf.data.

The order of examples and all random draws are pure functions of (seed, step). A run therefore resumes at any step
without replaying the previous ones, and the same seed gives the same batches on any machine.
"""

from collections.abc import Collection, Iterable

import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import IGNORED, Augment, Train
from kseg.datasets.diagnosis import decode_example, error_summary, require_plain
from kseg.datasets.raw_labels import decode_raw_label
from kseg.datasets.registry import UNMAPPED, Split
from kseg.errors import ConfigError, DataError
from kseg.images.decoding import ONLY_HERE, decode_window, read_image
from kseg.input_pipeline import augmentations, data_service, kerascv_augmentations


def train_batches(
    split: Split,
    config: Config,
    start_step: int = 0,
    worker: tf.distribute.InputContext | None = None,
    skipped: Collection[int] = (),
    compiled: tf.types.experimental.ConcreteFunction | None = None,
) -> tf.data.Dataset:
    """Return the training batches from `start_step` to the last step.

    Args:
        split: The training split.
        config: The config; its sections data, augment and train apply.
        start_step: Step of the first batch.
        worker: The input worker that reads. It reads only its part of each global batch, in batches of one replica; the
            parts of all workers make up the global batch.
        skipped: Indices of examples to skip. The next example of the split that is not skipped replaces each.
        compiled: `compile_example(split, config)`, to compile it only once for several calls.

    Returns:
        A dataset of dicts: "image" uint8 RGB (B, h, w, 3), padded to the crop, for `normalization.normalize_batch`;
        "label" uint8 train ids (B, h, w), 255 ignored; "index" int64 (B,), the index of each example in the split;
        "inside" int32 (B, 4), the (top, left, bottom, right) of each image in the crop.

    Raises:
        DataError: All examples are skipped.
        ConfigError: The global batch is not divisible by the number of workers.
        ServiceError: data.service does not answer.

    Example:
        >>> from kseg.datasets import registry
        >>> from kseg.inference import trained_model
        >>> config = trained_model.read_config(workdir)
        >>> split = registry.open_split(config.data, config.data.train_split)
        >>> batch = next(iter(train_batches(split, config)))
        >>> batch["image"].shape[1:] == (*config.augment.crop, 3), batch["image"].dtype
        (True, tf.uint8)
    """
    batch = config.train.global_batch
    workers, worker_index = (worker.num_input_pipelines, worker.input_pipeline_id) if worker else (1, 0)
    per_worker, remainder = divmod(batch, workers)
    if remainder:
        raise ConfigError(f"train.global_batch={batch} is not divisible by {workers} workers")
    replicas = max(worker.num_replicas_in_sync // workers, 1) if worker else 1
    substitutes = tf.constant(_substitutes(len(split.names), skipped), tf.int64)
    compiled = compiled or compile_example(split, config)

    # Nothing needs AutoGraph, whose conversion takes seconds.
    @tf.autograph.experimental.do_not_convert
    def example(number: tf.Tensor) -> dict:
        return compiled(number // per_worker * batch + worker_index * per_worker + number % per_worker, substitutes)

    def worker_batches(first: tf.Tensor | int, end: tf.Tensor | int) -> tf.data.Dataset:
        """Return the worker's part of the batches of the steps [first, end)."""
        return (
            tf.data.Dataset.range(first * per_worker, end * per_worker)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(per_worker, drop_remainder=True)
        )

    if config.data.service:
        batches = data_service.batches_in_order(
            config.data.service,
            config.data.memory,
            lambda step: worker_batches(step, step + 1),
            start_step,
            config.train.steps,
        )
    else:
        batches = worker_batches(start_step, config.train.steps)
    if replicas > 1:
        batches = batches.rebatch(per_worker // replicas, drop_remainder=True)
    options = tf.data.Options()
    # TensorFlow must not distribute files: each replica's part is cut from the global batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.ram_budget = int(config.data.memory * 2**30)
    return batches.prefetch(2).with_options(options)


def compile_example(split: Split, config: Config) -> tf.types.experimental.ConcreteFunction:
    """Compile the function that reads one training example.

    Args:
        split: The training split.
        config: The config; its sections data, augment and train apply.

    Returns:
        A function from a position in the training order, int64 scalar, and the index that replaces each index of the
        split, int64 (N,), to the element of `train_batches` without its first axis.
    """
    extra = kerascv_augmentations.build_extra_augmentations(config.augment.extra)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((), tf.int64), tf.TensorSpec((None,), tf.int64)])
    def example(position: tf.Tensor, substitutes: tf.Tensor) -> dict:
        index = tf.gather(substitutes, shuffled_index(position, len(split.names), config.train.seed))
        seed = tf.stack([tf.constant(config.train.seed, tf.int32), tf.cast(position, tf.int32)])
        # The service's workers are other processes, which cannot run Python functions of this one.
        image, label = read_augmented(split, index, seed, config.augment, in_python=not config.data.service)
        image, label, inside = finish_example(extra(image, seed), label, split.dataset.label_table, config.augment)
        return {"image": image, "label": label, "index": index, "inside": inside}

    return example.get_concrete_function()


def _substitutes(count: int, skipped: Collection[int]) -> list[int]:
    """Return `count` indices with skipped ones replaced.

    The next index, cyclically, that is not skipped replaces each.
    """
    if len(set(skipped)) >= count:
        raise DataError(f"none of the {count} training examples can be read")
    indices = list(range(count))
    # Two rounds, so that the substitutes of the last indices wrap around to the first ones.
    for index in sorted(skipped, reverse=True) * 2:
        indices[index] = indices[(index + 1) % count]
    return indices


def read_augmented(
    split: Split, index: tf.Tensor, seed: tf.Tensor, augment: Augment, in_python: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return an example's augmented float32 image and raw uint8 label.

    Both have the size of the crop at most, (h, w, 3) and (h, w). Only the crop is decoded.

    `in_python` tells whether the graph runs in this process, which decodes every kind of file.
    """
    image_data, label_data = split.read(index)
    label = decode_raw_label(split.dataset, label_data, in_python)
    size = tf.shape(label)

    def decode(window: tuple) -> tf.Tensor:
        return decode_window(image_data, size, window, in_python, split.value_range)

    return augmentations.augment(decode, label, tf.constant(split.dataset.label_table, tf.uint8), seed, augment)


def finish_example(
    image: tf.Tensor, label: tf.Tensor, table: tuple[int, ...], augment: Augment
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Convert an image to bytes, map its label to train ids, and pad both to the crop.

    The image is placed at augment.pad in the crop. Padding is black and has the label 255. If it is odd, the additional
    row or column is below or to the right.

    Args:
        image: RGB, whole numbers 0..255, (H, W, 3), at most as large as the crop.
        label: Raw uint8 values (H, W).
        table: Train id of each raw value. Evaluating the result fails for an unmapped value.
        augment: The crop and the place of the padding.

    Returns:
        The image, uint8 (h, w, 3), its train ids, uint8 (h, w), and its place (top, left, bottom, right), int32 (4,).
    """
    crop, size = augment.crop, tf.shape(label)
    first = [(crop[axis] - size[axis]) // 2 if augment.pad == "center" else 0 for axis in (0, 1)]
    sides = [[first[axis], crop[axis] - size[axis] - first[axis]] for axis in (0, 1)]
    image, label = tf.pad(tf.cast(image, tf.uint8), [*sides, [0, 0]]), tf.pad(label, sides)
    first = tf.stack(first)
    label, known = _train_ids(tf.ensure_shape(label, crop), first, first + size, table)
    with tf.control_dependencies([tf.debugging.Assert(known, ["label value outside the table"])]):
        return tf.ensure_shape(image, (*crop, 3)), tf.identity(label), tf.concat([first, first + size], 0)


# XLA fuses the operations on a pixel into one pass.
@tf.function(jit_compile=True, autograph=False)
def _train_ids(
    label: tf.Tensor, first: tf.Tensor, end: tf.Tensor, table: tuple[int, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
    rows, columns = (
        (tf.range(length) >= first[axis]) & (tf.range(length) < end[axis]) for axis, length in enumerate(label.shape)
    )
    label = tf.gather(tf.constant(table, tf.uint8), tf.cast(label, tf.int32))
    label = tf.where(rows[:, None] & columns, label, tf.constant(IGNORED, tf.uint8))
    return label, tf.reduce_all(tf.not_equal(label, UNMAPPED))


def eval_examples(split: Split, indices: np.ndarray | None = None) -> tf.data.Dataset:
    """Return examples of a split at their own size.

    Args:
        split: The split.
        indices: Indices of the examples (N,), by default all in order. -1 gives one black, ignored pixel.

    Returns:
        A dataset of dicts: "image" uint8 RGB (H, W, 3), "label" uint8 train ids (H, W), "index" int64 scalar.

    Example:
        >>> from kseg.config.sections import Data
        >>> from kseg.datasets import registry
        >>> split = registry.open_split(Data(name="shapes", directory=str(data)), "val")
        >>> example = next(iter(eval_examples(split)))
        >>> example["image"].shape[:2] == example["label"].shape, example["image"].dtype
        (True, tf.uint8)
    """
    indices = np.arange(len(split.names)) if indices is None else indices

    @tf.autograph.experimental.do_not_convert
    def example(index: tf.Tensor) -> dict:
        image, label = tf.cond(
            index < 0,
            lambda: (tf.zeros((1, 1, 3), tf.uint8), tf.fill((1, 1), tf.constant(IGNORED, tf.uint8))),
            lambda: read_example(split, index),
        )
        return {
            "image": tf.ensure_shape(image, (None, None, 3)),
            "label": tf.ensure_shape(label, (None, None)),
            "index": index,
        }

    dataset = tf.data.Dataset.from_tensor_slices(indices.astype(np.int64))
    return dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)


def shuffled_index(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Return the index of the example at a position of the training order, int64 scalars.

    Every `count` consecutive positions, one epoch, are a permutation of all `count` examples, different in each epoch.
    """
    epoch, offset = position // count, position % count
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(offset, tf.cast(seeds, tf.int32), tf.constant(count - 1, tf.int64))


def batch_indices(count: int, train: Train, step: int, skipped: Collection[int] = ()) -> list[int]:
    """Return the indices of a step's batch among `count` training examples, with `skipped` ones replaced."""
    substitutes = _substitutes(count, skipped)
    first = step * train.global_batch
    return [
        substitutes[int(shuffled_index(tf.constant(position, tf.int64), count, train.seed))]
        for position in range(first, first + train.global_batch)
    ]


def read_example(split: Split, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return one example's image and train ids in a graph.

    The image is uint8 (H, W, 3), the train ids are uint8 (H, W).

    Evaluating them fails for a faulty example; `find_faulty_example` returns the complete message.
    """
    image_data, label_data = split.read(index)
    image = read_image(image_data, split.value_range, in_python=True)
    label = decode_raw_label(split.dataset, label_data, in_python=True)
    same = tf.reduce_all(tf.equal(tf.shape(image)[:2], tf.shape(label)))
    label = tf.gather(tf.constant(split.dataset.label_table, tf.uint8), tf.cast(label, tf.int32))
    known = tf.reduce_all(tf.not_equal(label, UNMAPPED))
    with tf.control_dependencies(
        [
            tf.debugging.Assert(same, ["image and label differ in size: example", index]),
            tf.debugging.Assert(known, ["label value outside the table: example", index]),
        ]
    ):
        return tf.identity(image), tf.identity(label)


def find_faulty_example(split: Split, indices: Iterable[int], error: Exception) -> tuple[int | None, DataError]:
    """Return the first faulty example and its fault.

    Without one, return None and the original error.
    """
    refused_elsewhere = ONLY_HERE in str(error)
    for index in indices:
        try:
            decode_example(split, index)
            if refused_elsewhere:
                require_plain(split, index)
        except DataError as fault:
            return index, fault
    return None, DataError(f"reading {split.name} failed: {error_summary(error)}")


def reading_error(split: Split, indices: Iterable[int], error: Exception) -> DataError:
    """Return the DataError of the first faulty example.

    Without one, it reports the original error.
    """
    return find_faulty_example(split, indices, error)[1]
