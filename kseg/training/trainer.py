"""Start, resume and finish a training run."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from kseg import config as configs
from kseg import models
from kseg.config import Config
from kseg.config.sections import Train
from kseg.datasets import labeled_pixels, plausibility, registry
from kseg.distributed import devices, hosts
from kseg.errors import ConfigError, DataError
from kseg.input_pipeline import batch_reader
from kseg.system import signals
from kseg.tracking import trackers
from kseg.training import (
    checkpoints,
    data_changes,
    fingerprint,
    losses,
    optimizers,
    profiler,
    single_values,
    working_directory,
)
from kseg.training.ema import ExponentialMovingAverage
from kseg.training.loop import Loop
from kseg.training.recorder import Recorder, read_best
from kseg.training.step import Steps
from kseg.weights import downloads, file_classes, keras_files, loading

SIGNAL_ANSWER = (
    f"saving after the current step; Ctrl-C again, after {signals.REPEAT:g} seconds or more, stops without saving"
)


def prepare_strategy(train: Train, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Seed all random generators, claim the devices and return the strategy to train under.

    Call it before any other operation of TensorFlow. With several hosts it waits for all of them.

    Args:
        train: the section `train` of a config.
        cpu_replicas: number of virtual devices into which a CPU is split if there is no GPU.

    Raises:
        ConfigError: The global batch cannot be divided evenly, or `cpu_replicas` or TF_CONFIG is invalid.
        HostLost: Another host did not start.
    """
    devices.require_tensorflow()
    keras.utils.set_random_seed(train.seed)
    devices.set_tensor_float_32(train.tensor_float_32)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = hosts.claim_hosts(cpu_replicas)
    require_divisible_batch(train, strategy)
    require_one_replica_for_xla(train, strategy)
    return strategy


def require_one_replica_for_xla(train: Train, strategy: tf.distribute.Strategy) -> None:
    """Raise ConfigError if train.jit_compile is set and several replicas train."""
    if train.jit_compile and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            f"train.jit_compile=true needs a single replica, but {strategy.num_replicas_in_sync} train: "
            "XLA cannot compile a step that exchanges values with other replicas. "
            "Continue with train.jit_compile=false, or with one device (CUDA_VISIBLE_DEVICES=0)."
        )


def require_divisible_batch(train: Train, strategy: tf.distribute.Strategy) -> None:
    """Raise ConfigError unless the global batch is divisible by replicas * train.accumulate."""
    replicas, parts = strategy.num_replicas_in_sync, train.accumulate
    if train.global_batch % (replicas * parts):
        divisor = f"{replicas} replica{'s' * (replicas > 1)}"
        divisor += f" with {parts} parts each (train.accumulate)" if parts > 1 else ""
        raise ConfigError(
            f"train.global_batch={train.global_batch} cannot be divided among {divisor}; set a multiple "
            f"of {replicas * parts}"
        )


def batch_line(train: Train, replicas: int) -> str:
    """Return a sentence about the size of the batch of each replica."""
    size = train.global_batch // replicas
    return f"global batch {train.global_batch} = {replicas} replica{'s' * (replicas > 1)} x {size}"


def train(
    config: Config,
    workdir: Path,
    strategy: tf.distribute.Strategy,
    report: Callable[[str], None] = print,
    profiled: tuple[int, int] | None = None,
) -> dict:
    """Train a model to the last step, resuming from the newest checkpoint if there is one.

    Args:
        config: the config of the run.
        workdir: the directory for everything that the run writes; created if it does not exist. All hosts must see it.
            A run can be resumed on another number of hosts or devices.
        strategy: the result of `prepare_strategy`. With several hosts all of them must call `train`.
        report: receives the lines of the log; with several hosts only the first one reports.
        profiled: the first and the last step, counted from 1, to record for TensorBoard's profiler.

    Returns:
        {"step": number of steps taken, "best_mIoU": fraction, "best_step": step of the best validation}.

    Raises:
        UserError: The config, the data or the working directory is unusable.
        NonFiniteLoss: The loss was not finite more than train.nonfinite_batches times.
        HostLost: Another host was lost.
        Stopped: The process received SIGTERM or SIGINT; the state has been saved.

    Example:
        >>> from kseg import config as configs
        >>> settings = configs.load("encnet_shapes", [
        ...     f"data.directory={data}", "model.width=4", "model.channels=8", "model.auxiliary_channels=4",
        ...     "augment.crop=64,64", "train.global_batch=2", "train.steps=2"])
        >>> strategy = prepare_strategy(settings.train)
        >>> result = train(settings, workdir, strategy, report=lambda line: None)
        >>> result["step"], result["best_step"]
        (2, 2)
    """
    models.require_known(config.model)
    chief = hosts.is_chief(strategy)
    if not chief:
        report = discard_line
    train_split = registry.open_split(config.data, config.data.train_split)
    val_split = registry.open_split(config.data, config.data.val_split)
    dataset = train_split.dataset
    for split in (train_split, val_split):
        labeled_pixels.require_labeled_pixels(split)
    if chief:
        plausibility.report_notes((train_split, val_split), report)
    if hosts.num_hosts(strategy) > 1:
        if config.data.unreadable == "skip":
            # Every host keeps its own list of unreadable examples, and they would train on parts of different batches.
            raise ConfigError(
                "data.unreadable=skip works on a single host only; `python -m kseg.data check` lists "
                "unreadable examples"
            )
        hosts.require_agreement(strategy, fingerprint.run_facts(config, (train_split, val_split)))
    with contextlib.ExitStack() as stack:
        # The lock is released on exit because the process may continue after this function.
        hosts.on_chief(strategy, lambda: stack.enter_context(working_directory.open_workdir(workdir, config, dataset)))
        tracked = hosts.on_chief(strategy, lambda: stack.enter_context(trackers.start(config, workdir, report)))
        if tracked:
            tracked.log_artifacts([workdir / "config.json"])
        report(devices.device_line())
        report(batch_line(config.train, strategy.num_replicas_in_sync))
        with strategy.scope():
            model, optimizer, ema = build_training(config, len(dataset.classes), report)
            if config.init.weights:
                layers = loading.loaded_classifiers(model, config.init.skip)
                if note := file_classes.order_note(config.init.weights, dataset.classes, layers):
                    report(f"warning: {note}")
        steps = Steps(model, optimizer, config, strategy, ema)
        checkpoint = checkpoints.tracked_checkpoint(model, optimizer, ema, steps.variables)
        step = checkpoints.restore_newest(workdir, checkpoint, report)
        hosts.require_agreement(strategy, {"checkpoint to resume from": f"step {step}"})
        if step:
            report(f"resuming after step {step} of {config.train.steps}")
        hosts.on_chief(strategy, lambda: working_directory.trim_metrics(workdir, step))
        hosts.on_chief(
            strategy,
            lambda: data_changes.report_changes(
                workdir, (train_split, val_split), read_best(workdir), step > 0, report
            ),
        )
        recorder = stack.enter_context(
            Recorder(config, workdir, val_split, model, ema, strategy, report, tracked or trackers.Trackers())
        )
        profile = stack.enter_context(profiler.Profile(profiled, workdir if chief else None, report))
        reader = batch_reader.BatchReader(config, train_split, workdir, strategy, report)
        # Before this point a signal terminates the process, because there is nothing to save.
        received = stack.enter_context(signals.Signals(SIGNAL_ANSWER))
        loop = Loop(recorder, reader, steps, checkpoint, received, profile)
        loop.run(step)
        if recorder.is_chief:
            with ema.swapped() if ema else contextlib.nullcontext():
                keras_files.save_weights(model, workdir / "final.weights.h5", report)
    return finish_run(recorder, loop, reader)


def discard_line(line: str) -> None:
    """Discard a line of the log; used on all hosts but the first."""


def finish_run(recorder: Recorder, loop: Loop, reader: batch_reader.BatchReader) -> dict:
    """Report the end of a run and return the results of `train`."""
    best, settings = recorder.best, recorder.config.train
    early = (
        f" ({settings.patience} validations without a better one, train.patience)" if loop.step < settings.steps else ""
    )
    unreadable = (
        f"; skipped {len(reader.skipped)} of {len(reader.names)} training examples as unreadable: {reader.path}"
        if reader.skipped
        else ""
    )
    nonfinite = f"; skipped {len(loop.skipped)} batches because of non-finite losses" if loop.skipped else ""
    recorder.report(
        f"finished {loop.step} steps{early}; best validation mIoU {100 * best['mIoU']:.2f} at step "
        f"{best['step']}: {recorder.workdir / 'best.weights.h5'}{unreadable}{nonfinite}"
    )
    return {"step": loop.step, "best_mIoU": best["mIoU"], "best_step": best["step"]}


def build_training(config: Config, classes: int, report: Callable[[str], None]) -> tuple:
    """Build the model, with the weights that config.init names, its optimizer and its EMA.

    Call it under the scope of the strategy.

    Args:
        config: the config of the run.
        classes: number of classes.
        report: receives notes about the loaded weights.

    Returns:
        (model, optimizer, ema) with all their variables; ema is None without train.average_decay.

    Raises:
        ConfigError: loss.class_weights or train.freeze does not fit the model, or a norm sees a single value.
        WeightsError: The initial weights do not fit the model.
    """
    losses.require_class_weights(config.loss, classes)
    settings = config.train
    model = models.build(config.model, classes, precision=settings.precision, recompute=settings.recompute)
    for note in loading.load_initial(model, config):
        report(note)
    optimizers.freeze_layers(model, settings.freeze)
    single_values.require_several_values(model, settings.global_batch, settings.accumulate, config.augment.crop)
    optimizer = optimizers.build_optimizer(settings, model)
    ema = ExponentialMovingAverage(model, settings.average_decay) if settings.average_decay else None
    return model, optimizer, ema


def dry_run(config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print) -> None:
    """Report the resolved config, the parameter counts, the first batch's shapes and the device without training.

    If the dataset is known but not downloaded, the shapes are those of the config.
    """
    models.require_known(config.model)
    report(configs.to_json(config).rstrip())
    report(devices.device_line())
    report(batch_line(config.train, strategy.num_replicas_in_sync))
    missing = None
    try:
        val_split = registry.open_split(config.data, config.data.val_split)
        split = registry.open_split(config.data, config.data.train_split)
        for opened in (split, val_split):
            labeled_pixels.require_labeled_pixels(opened)
        plausibility.report_notes((split, val_split), report)
        classes = len(split.dataset.classes)
        batch = batch_reader.BatchReader(config, split, None, tf.distribute.get_strategy(), report).read(0)
        shapes = {name: f"{tuple(value.shape)} {value.dtype.name}" for name, value in batch.items()}
    except DataError as error:
        known = registry.DATASETS.get(config.data.name)
        if known is None or not known.classes or registry.directory_of(config.data).exists():
            raise
        missing = error
        classes = len(known.classes)
        size = (config.train.global_batch, *config.augment.crop)
        shapes = {"image": f"{(*size, 3)} float32", "label": f"{size} uint8", "index": f"{size[:1]} int64"}
    with strategy.scope():
        model, _, _ = build_training(downloads.without_download(config, report), classes, report)
    report(
        f"{'first batch' if missing is None else 'batches according to the config'}: "
        + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    )
    counts: dict[str, int] = {}
    for variable in model.trainable_variables:
        part = variable.path.split(".")[0]
        counts[part] = counts.get(part, 0) + math.prod(variable.shape)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    report(f"parameters: {sum(counts.values()):,} ({parts})")
    report(
        f"{config.model.head} on {config.model.backbone}, output stride {config.model.output_stride}, "
        f"{classes} classes, {config.train.steps} steps"
    )
    if missing is not None:
        report(f"the dataset is missing: {missing}")
