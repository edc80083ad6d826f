"""Make training batches and evaluation examples with tf.data.

The order of examples and every random draw are pure functions of (seed, step): a run resumes at any step without
replaying what came before, and the same seed gives the same batches on any machine.
"""

from collections.abc import Collection, Iterable

import numpy as np
import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import IGNORED, Augment, Train
from kseg.datasets.diagnosis import decode_example, fault_text
from kseg.datasets.registry import UNMAPPED, Split
from kseg.errors import ConfigError, DataError
from kseg.images.decoding import decode_image, decode_label, decode_window
from kseg.images.resizing import normalize
from kseg.input_pipeline import augmentations, data_service, kerascv_augmentations


def train_batches(split: Split, config: Config, start_step: int = 0, worker: tf.distribute.InputContext | None = None,
                  left_out: Collection[int] = ()) -> tf.data.Dataset:
    """Return the global batches from `start_step` to the last step of training, or one input worker's share of each.

    Each is a dict: "image" float32 (B, h, w, 3), normalised and padded to the crop; "label" uint8 train ids (B, h, w),
    255 ignored; "index" int64 (B,), the example's place in its split. A worker reads its share only, in batches for one
    replica each; all workers' make up the global batch. Where an example in `left_out` would stand, the next one in the
    split does that is not. Raises DataError where none is left, ConfigError where the batch cannot be shared evenly,
    ServiceError where data.service does not answer.
    """
    batch = config.train.global_batch
    extra = kerascv_augmentations.build_extra_augmentations(config.augment.extra)
    workers, place = (worker.num_input_pipelines, worker.input_pipeline_id) if worker else (1, 0)
    share, rest = divmod(batch, workers)
    if rest:
        raise ConfigError(f"train.global_batch {batch} cannot be shared evenly by {workers} workers")
    replicas = max(worker.num_replicas_in_sync // workers, 1) if worker else 1
    stand_ins = tf.constant(_stand_ins(len(split.names), left_out), tf.int64)

    def example(position: tf.Tensor) -> dict:
        index = tf.gather(stand_ins, shuffled_index(position, len(split.names), config.train.seed))
        seed = tf.stack([tf.constant(config.train.seed, tf.int32), tf.cast(position, tf.int32)])
        # The service's workers are other processes, which cannot run a Python function.
        image, label = read_augmented(split, index, seed, config.augment, shorten=not config.data.service)
        image, label = finish_example(extra(image, seed), label, split.dataset.label_table, config.augment,
                                      config.data.mean, config.data.std)
        return {"image": image, "label": label, "index": index}

    def own(first: tf.Tensor | int, end: tf.Tensor | int) -> tf.data.Dataset:
        """Return the worker's share of the batches of some steps."""
        return tf.data.Dataset.range(first * share, end * share).map(
            lambda number: example(number // share * batch + place * share + number % share),
            num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(share, drop_remainder=True)

    if config.data.service:
        batches = data_service.batches_in_order(config.data.service, config.data.memory,
                                                lambda step: own(step, step + 1), start_step, config.train.steps)
    else:
        batches = own(start_step, config.train.steps)
    if replicas > 1:
        batches = batches.rebatch(share // replicas, drop_remainder=True)
    options = tf.data.Options()
    # The order is ours: every replica's share is cut from the global batch, never from the list of files.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.ram_budget = int(config.data.memory * 2**30)
    return batches.prefetch(2).with_options(options)


def _stand_ins(count: int, left_out: Collection[int]) -> list[int]:
    """Return for each of `count` examples itself, or where it is left out the next one, round the end, that is not."""
    if len(set(left_out)) >= count:
        raise DataError(f"none of the {count} training examples can be read")
    places = list(range(count))
    for index in sorted(left_out, reverse=True) * 2:
        places[index] = places[(index + 1) % count]
    return places


def read_augmented(split: Split, index: tf.Tensor, seed: tf.Tensor, augment: Augment,
                   shorten: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Return an example's image and raw label as `augmentations.augment` does, decoding no more than it asks for.

    `shorten` lets `decode_window` use its Python function.
    """
    image_data, label_data = split.read(index)
    label = decode_label(label_data)
    size = tf.shape(label)
    return augmentations.augment(lambda window: decode_window(image_data, size, window, shorten), label,
                                 tf.constant(split.dataset.label_table, tf.uint8), seed, augment)


def finish_example(image: tf.Tensor, label: tf.Tensor, table: tuple[int, ...], augment: Augment,
                   mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the normalised image, float32 (h, w, 3), and uint8 train ids (h, w), padded to the crop h, w.

    The picture, RGB 0..255 and at most as large, stands at augment.pad; around it are augment.pad_color and label 255.
    With an odd rest, the odd row and column are below and to the right. A raw value of the label that `table` does not
    know fails.
    """
    crop, size = augment.crop, tf.shape(label)
    first = [(crop[axis] - size[axis]) // 2 if augment.pad == "center" else 0 for axis in (0, 1)]
    sides = [[first[axis], crop[axis] - size[axis] - first[axis]] for axis in (0, 1)]
    image, label = tf.pad(image, [*sides, [0, 0]]), tf.pad(label, sides)
    image, label, known = _finish(tf.ensure_shape(image, (*crop, 3)), tf.ensure_shape(label, crop), tf.stack(first),
                                  size, table, augment, mean, std)
    with tf.control_dependencies([tf.debugging.Assert(known, ["label value outside the table"])]):
        return tf.identity(image), tf.identity(label)


# Compiled, all that is done to each pixel is done in one pass.
@tf.function(jit_compile=True)
def _finish(image: tf.Tensor, label: tf.Tensor, first: tf.Tensor, size: tf.Tensor, table: tuple[int, ...],
            augment: Augment, mean: tuple[float, ...],
            std: tuple[float, ...]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    rows, columns = ((tf.range(augment.crop[axis]) >= first[axis])
                     & (tf.range(augment.crop[axis]) < first[axis] + size[axis]) for axis in (0, 1))
    inside = rows[:, None] & columns
    label = tf.gather(tf.constant(table, tf.uint8), tf.cast(label, tf.int32))
    label = tf.where(inside, label, tf.constant(IGNORED, tf.uint8))
    image = normalize(image, mean, std)
    # 0 is black before normalisation and the mean after it.
    if augment.pad_color == "mean":
        image = tf.where(inside[..., None], image, 0.0)
    return image, label, tf.reduce_all(tf.not_equal(label, UNMAPPED))


def eval_examples(split: Split, indices: np.ndarray | None = None) -> tf.data.Dataset:
    """Return examples of a split in order at their own size: "image" uint8 (H, W, 3), "label" uint8 (H, W), "index".

    All of them, or those at `indices` (N,), where -1 stands for no example: one black pixel that is ignored.
    """
    indices = np.arange(len(split.names)) if indices is None else indices

    def example(index: tf.Tensor) -> dict:
        image, label = tf.cond(
            index < 0, lambda: (tf.zeros((1, 1, 3), tf.uint8), tf.fill((1, 1), tf.constant(IGNORED, tf.uint8))),
            lambda: read_example(split, index))
        return {"image": tf.ensure_shape(image, (None, None, 3)), "label": tf.ensure_shape(label, (None, None)),
                "index": index}

    places = tf.data.Dataset.from_tensor_slices(indices.astype(np.int64))
    return places.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(4)


def shuffled_index(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Return which of `count` examples stands at a position of the endless training order.

    Every stretch of `count` positions is one permutation of the whole split, another for each stretch.
    """
    epoch, place = position // count, position % count
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(place, tf.cast(seeds, tf.int32), tf.constant(count - 1, tf.int64))


def batch_indices(count: int, train: Train, step: int, left_out: Collection[int] = ()) -> list[int]:
    """Return which of `count` training examples are in one step's batch, made without those in `left_out`."""
    stand_ins = _stand_ins(count, left_out)
    first = step * train.global_batch
    return [stand_ins[int(shuffled_index(tf.constant(position, tf.int64), count, train.seed))]
            for position in range(first, first + train.global_batch)]


def read_example(split: Split, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the uint8 image (H, W, 3) and uint8 train ids (H, W) of one example, in a graph.

    What is wrong with an example fails here in few words; `explain` says it in full.
    """
    image_data, label_data = split.read(index)
    image, label = decode_image(image_data), decode_label(label_data)
    same = tf.reduce_all(tf.equal(tf.shape(image)[:2], tf.shape(label)))
    label = tf.gather(tf.constant(split.dataset.label_table, tf.uint8), tf.cast(label, tf.int32))
    known = tf.reduce_all(tf.not_equal(label, UNMAPPED))
    with tf.control_dependencies([tf.debugging.Assert(same, ["image and label differ in size: example", index]),
                                  tf.debugging.Assert(known, ["label value outside the table: example", index])]):
        return tf.identity(image), tf.identity(label)


def find_faulty_example(split: Split, indices: Iterable[int],
                        error: Exception) -> tuple[int | None, DataError]:
    """Return which of some examples made reading fail and what is wrong with it; none: None and the original words."""
    for index in indices:
        try:
            decode_example(split, index)
        except DataError as found:
            return index, found
    return None, DataError(f"reading {split.name} failed: {fault_text(error)}")


def reading_error(split: Split, indices: Iterable[int], error: Exception) -> DataError:
    """Return the DataError that says which of some examples made reading fail, or the original words if none does."""
    return find_faulty_example(split, indices, error)[1]
