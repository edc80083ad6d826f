"""Measure the cost of each stage of the input pipeline, for `python -m kseg.benchmark data`.

For each stage a pipeline that is cut after it runs; all of them take turns for several rounds. The cost of a stage is
the difference to the pipeline that is cut before it.
"""

import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import tensorflow as tf

from kseg.config import Config
from kseg.config.sections import Augment, Train
from kseg.datasets import sources
from kseg.datasets.raw_labels import decode_raw_label
from kseg.datasets.registry import Split
from kseg.errors import ConfigError
from kseg.images.decoding import decode_window
from kseg.input_pipeline import augmentations, batching, kerascv_augmentations

READ, LABEL, CROP, IMAGE, RESIZE, DISTORT, FINISH = STAGES = (
    "read the bytes",
    "decode the label",
    "choose the crop",
    "decode the image",
    "resize",
    "flip and distort",
    "pad, batch",
)

# More steps than any measurement takes.
ENDLESS = 10**6
# Below this fraction of busy cores the pipeline is considered to wait for something else.
BUSY = 0.6


@dataclass(frozen=True)
class Stage:
    """Hold the figures of one stage.

    rate: images/s of the pipeline that is cut after the stage.
    cpu_seconds: CPU seconds per image of that pipeline.
    own_cpu_seconds: CPU seconds per image of the stage alone.
    """

    name: str
    rate: float
    cpu_seconds: float
    own_cpu_seconds: float


@dataclass(frozen=True)
class DataFigures:
    """Hold the results of `measure_data`.

    stages: in the order of the pipeline.
    peak_memory: largest resident memory of the process, bytes, including TensorFlow and all pipelines.
    cores_used, cores: cores that the full pipeline kept busy, and cores of the machine.
    """

    stages: tuple[Stage, ...]
    peak_memory: int
    cores_used: float
    cores: int

    @property
    def dominant(self) -> Stage:
        """The stage with the most CPU time."""
        return max(self.stages, key=lambda stage: stage.own_cpu_seconds)


def measure_data(
    split: Split, config: Config, batches: int = 16, rounds: int = 5, report: Callable[[str], None] = print
) -> DataFigures:
    """Measure the training pipeline in this process.

    The figures are medians over the rounds; `data.service` is ignored.

    Args:
        split: the training split.
        config: the config of the pipeline.
        batches: number of batches of each stage in a round.
        rounds: number of rounds.
        report: receives progress lines.

    Raises:
        DataError: An example cannot be read; names the file.
        ConfigError: `batches` or `rounds` is below 1.
    """
    for name, value in (("batches", batches), ("rounds", rounds)):
        if not 1 <= value <= ENDLESS // 2:
            raise ConfigError(f"{name} is {value}; it must be from 1 to {ENDLESS // 2}")
    config = replace(config, data=replace(config.data, service=""), train=replace(config.train, steps=ENDLESS))
    cut = cut_pipelines(split, config)
    wall: dict[str, list[float]] = {name: [] for name in cut}
    cpu: dict[str, list[float]] = {name: [] for name in cut}
    # The first round is not counted: it loads the files into the page cache and compiles functions.
    for number in range(rounds + 1):
        for name, examples in cut.items():
            images = 1 if name != FINISH else config.train.global_batch
            seconds, cpu_seconds = _consume(split, config, examples, batches * config.train.global_batch // images)
            if number:
                wall[name].append(seconds / images)
                cpu[name].append(cpu_seconds / images)
        report(f"round {number} of {rounds}" if number else "warmed up")
    totals = {name: statistics.median(values) for name, values in cpu.items()}
    # A nearly free stage may have been measured with a negative cost.
    totals = dict(zip(totals, itertools.accumulate(totals.values(), max)))
    before = dict(zip(totals, [0.0, *totals.values()]))
    rates = {name: 1 / statistics.median(values) for name, values in wall.items()}
    stages = tuple(Stage(name, rates[name], totals[name], totals[name] - before[name]) for name in cut)
    return DataFigures(
        stages,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        rates[FINISH] * totals[FINISH],
        os.cpu_count(),
    )


def cut_pipelines(split: Split, config: Config) -> dict[str, tf.data.Dataset]:
    """Return, by stage, the training pipeline that ends with it.

    Its elements are single examples; those of the last stage are batches.
    """
    table = tf.constant(split.dataset.label_table, tf.uint8)
    extra = kerascv_augmentations.build_extra_augmentations(config.augment.extra)
    whole = batching.train_batches(split, config)
    plain = replace(config.augment, flip=0.0, photometric=False)

    def read(position: tf.Tensor) -> tuple:
        return split.read(batching.shuffled_index(position, len(split.names), config.train.seed))

    def augmented(position: tf.Tensor, augment: Augment, decode: Callable) -> dict:
        encoded, label = read(position)
        seed, parts = tf.stack([config.train.seed, tf.cast(position, tf.int32)]), []
        label = decode_raw_label(split.dataset, label, in_python=True)

        def decode_part(window: tuple) -> tf.Tensor:
            # The last argument is True as in training without a data service.
            parts.append(decode(encoded, tf.shape(label), window, True))
            return parts[-1]

        image, cropped = augmentations.augment(decode_part, label, table, seed, augment)
        return {IMAGE: (parts[0], cropped), RESIZE: (image, cropped), DISTORT: (extra(image, seed), cropped)}

    # tf.data prunes results that a function does not return, but not assertions about an image.
    functions = {
        READ: read,
        LABEL: lambda position: decode_raw_label(split.dataset, read(position)[1], in_python=True),
        CROP: lambda position: augmented(position, plain, _no_image)[IMAGE],
        IMAGE: lambda position: augmented(position, plain, decode_window)[IMAGE],
        RESIZE: lambda position: augmented(position, plain, decode_window)[RESIZE],
        DISTORT: lambda position: augmented(position, config.augment, decode_window)[DISTORT],
    }
    positions = tf.data.Dataset.range(config.train.steps * config.train.global_batch)
    # AutoGraph would convert all the functions, which takes seconds; none of them needs it.
    functions = {name: tf.autograph.experimental.do_not_convert(function) for name, function in functions.items()}
    return {
        name: positions.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(config.train.global_batch)
        .with_options(whole.options())
        for name, function in functions.items()
    } | {FINISH: whole}


def _no_image(encoded: tf.Tensor, size: tf.Tensor, window: tuple, in_python: bool) -> tf.Tensor:
    """Return an empty image instead of the result of `decode_window`."""
    return tf.zeros((0, 0, 3), tf.uint8)


def _consume(split: Split, config: Config, examples: tf.data.Dataset, count: int) -> tuple[float, float]:
    """Return the wall time and the CPU time of all threads, in seconds per element, of `count` elements.

    Half as many elements are consumed first because the buffers of the pipeline may be full. Raises DataError if an
    example cannot be read.
    """
    iterator = iter(examples)
    try:
        for _ in range(count // 2 + 1):
            next(iterator)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            next(iterator)
        return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
    except tf.errors.OpError as error:
        raise batching.reading_error(split, _first_indices(len(split.names), config.train), error) from None


def _first_indices(count: int, train: Train) -> Iterator[int]:
    """Yield the indices of the first epoch of `count` training examples in training order."""
    ordered = itertools.chain.from_iterable(batching.batch_indices(count, train, step) for step in itertools.count())
    return itertools.islice(ordered, count)


def data_table(figures: DataFigures) -> str:
    """Format the figures as a table with one line per stage."""
    whole = figures.stages[-1].cpu_seconds
    lines = [f"{'up to this stage':24}{'images/s':>10}{'CPU ms/image':>14}{'its own':>9}{'fraction':>10}"]
    lines += [
        f"{stage.name:24}{stage.rate:10.1f}{1000 * stage.cpu_seconds:14.2f}{1000 * stage.own_cpu_seconds:9.2f}"
        f"{stage.own_cpu_seconds / whole:10.0%}"
        for stage in figures.stages
    ]
    return "\n".join([*lines, f"peak memory of the process {figures.peak_memory / 2**20:.0f} MiB"])


def input_advice(figures: DataFigures, split: Split) -> str:
    """Return a sentence about the dominant stage and a possible remedy."""
    stage, whole = figures.dominant, figures.stages[-1].cpu_seconds
    line = f"{stage.name} takes {stage.own_cpu_seconds / whole:.0%} of the time; "
    if figures.cores_used < BUSY * figures.cores:
        return line + (
            f"only {figures.cores_used:.1f} of {figures.cores} cores are used: the pipeline waits for its "
            "storage, or other processes use the cores"
        )
    name = split.dataset.name
    if stage.name in (LABEL, IMAGE) and name in sources.SOURCES and not split.is_pixels:
        return line + f"`python -m kseg.data prepare {name} --fast` stores pixels that need no decoding"
    return line + "all cores are busy: more cores would help, on this host or, with data.service, on others"
