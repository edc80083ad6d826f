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
from kseg.datasets import registry
from kseg.distributed import devices, hosts
from kseg.errors import ConfigError, DataError
from kseg.input_pipeline import batch_reader
from kseg.system.signals import Signals
from kseg.training import checkpoints, fingerprint, losses, optimizers, profiler, working_directory
from kseg.training.ema import ExponentialMovingAverage
from kseg.training.loop import Loop
from kseg.training.recorder import Recorder
from kseg.training.step import Steps
from kseg.weights import downloads, keras_files, loading


def prepare_strategy(train: Train, cpu_replicas: int = 1) -> tf.distribute.Strategy:
    """Seed everything, claim hosts and devices and return the strategy to train under, as `kseg.distributed.hosts.claim_hosts` does.

    Raises ConfigError where the global batch cannot be shared out evenly, and what `kseg.distributed.hosts.claim_hosts` raises.
    """
    devices.require_tensorflow()
    keras.utils.set_random_seed(train.seed)
    devices.set_tensor_float_32(train.tensor_float_32)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = hosts.claim_hosts(cpu_replicas)
    require_even_shares(train, strategy)
    return strategy


def require_even_shares(train: Train, strategy: tf.distribute.Strategy) -> None:
    """Raise ConfigError where replicas, or the parts that each takes its share in, cannot share the batch evenly."""
    replicas, parts = strategy.num_replicas_in_sync, train.accumulate
    if train.global_batch % (replicas * parts):
        by = f"{replicas} replica{'s' * (replicas > 1)}"
        by += f" in {parts} parts each (train.accumulate)" if parts > 1 else ""
        raise ConfigError(f"train.global_batch={train.global_batch} cannot be shared evenly by {by}; set a multiple of "
                          f"{replicas * parts}")


def batch_line(train: Train, replicas: int) -> str:
    """Return how the global batch is shared."""
    share = train.global_batch // replicas
    return f"global batch {train.global_batch} = {replicas} replica{'s' * (replicas > 1)} x {share}"


def train(config: Config, workdir: Path, strategy: tf.distribute.Strategy,
          report: Callable[[str], None] = print, profiled: tuple[int, int] | None = None) -> dict:
    """Train to the last step and return {"step", "best_mIoU", "best_step"}.

    `strategy` comes from `runtime.prepare`, on each of several hosts. Everything is written to `workdir`, which all
    hosts see and from which a run that was cut off is continued, on as many hosts or others. `profiled` is the first
    and the last step, counted from 1, that TensorBoard's profiler records. Raises the UserErrors of its parts,
    NonFiniteLoss, HostLost, and Stopped after SIGTERM or SIGINT.
    """
    chief = hosts.is_chief(strategy)
    say = report if chief else discard
    train_split = registry.open_split(config.data, config.data.train_split)
    val_split = registry.open_split(config.data, config.data.val_split)
    dataset = train_split.dataset
    if hosts.num_hosts(strategy) > 1:
        if config.data.unreadable == "skip":
            # One host's list would change the others' batches.
            raise ConfigError('data.unreadable=skip is for one host; `python -m kseg.data check` finds what cannot be '
                              'read')
        hosts.require_agreement(strategy, fingerprint.run_facts(config, (train_split, val_split)))
    with contextlib.ExitStack() as held:
        # Let go before the program ends, which a caller may outlive.
        hosts.on_chief(strategy, lambda: held.enter_context(working_directory.open_workdir(workdir, config, dataset)))
        say(devices.device_line())
        say(batch_line(config.train, strategy.num_replicas_in_sync))
        with strategy.scope():
            model, optimizer, average = build_training(config, len(dataset.classes), say)
        steps = Steps(model, optimizer, config, strategy, average)
        checkpoint = checkpoints.tracked_checkpoint(model, optimizer, average, steps.variables)
        step = checkpoints.restore_newest(workdir, checkpoint, say)
        hosts.require_agreement(strategy, {"the checkpoint that is continued": f"step {step}"})
        if step:
            say(f"continuing at step {step} of {config.train.steps}")
        hosts.on_chief(strategy, lambda: working_directory.trim_metrics(workdir, step))
        run = held.enter_context(Recorder(config, workdir, val_split, model, average, strategy, say))
        profile = held.enter_context(profiler.Profile(profiled, workdir if chief else None, say))
        reader = batch_reader.BatchReader(config, train_split, workdir, strategy, say)
        # Until here a signal ends the process, which has nothing to save.
        signals = held.enter_context(Signals())
        loop = Loop(run, reader, steps, checkpoint, signals, profile)
        step = loop.take_all(step)
        if run.writes:
            with average.swapped() if average else contextlib.nullcontext():
                keras_files.save_weights(model, workdir / "final.weights.h5", say)
    return finish_run(run, loop, reader)


def discard(line: str) -> None:
    """Say nothing: of several hosts one reports."""


def finish_run(run: Recorder, loop: Loop, reader: batch_reader.BatchReader) -> dict:
    """Report how a run ended and return what `train` does."""
    best, settings = run.best, run.config.train
    early = f", {settings.patience} validations after the best one (train.patience)" \
        if loop.step < settings.steps else ""
    left_out = f"; left out {len(reader.skipped)} of {len(reader.names)} training examples as unreadable: " \
        f"{reader.path}" if reader.skipped else ""
    skipped = f"; left out {len(loop.skipped)} batches whose loss was not finite" if loop.skipped else ""
    run.report(f"finished {loop.step} steps{early}; best validation mIoU {100 * best['mIoU']:.2f} at step "
               f"{best['step']}: {run.workdir / 'best.weights.h5'}{left_out}{skipped}")
    return {"step": loop.step, "best_mIoU": best["mIoU"], "best_step": best["step"]}


def build_training(config: Config, classes: int, report: Callable[[str], None]) -> tuple:
    """Return (model, optimizer, average or None) with all their variables, and the weights that config.init names."""
    losses.require_class_weights(config.loss, classes)
    settings = config.train
    model = models.build(config.model, classes, precision=settings.precision, recompute=settings.recompute)
    for note in loading.load_initial(model, config):
        report(note)
    optimizers.freeze_layers(model, settings.freeze)
    optimizer = optimizers.build_optimizer(settings, model)
    return model, optimizer, ExponentialMovingAverage(model, settings.average_decay) if settings.average_decay else None


def dry_run(config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print) -> None:
    """Report the resolved config, parameter counts, the first batch's shapes and the device, and train nothing."""
    report(configs.to_json(config).rstrip())
    report(devices.device_line())
    report(batch_line(config.train, strategy.num_replicas_in_sync))
    missing = None
    try:
        registry.open_split(config.data, config.data.val_split)
        split = registry.open_split(config.data, config.data.train_split)
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
    report(f"{'first batch' if missing is None else 'batches, by the config'}: "
           + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    counts: dict[str, int] = {}
    for variable in model.trainable_variables:
        part = variable.path.split(".")[0]
        counts[part] = counts.get(part, 0) + math.prod(variable.shape)
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    report(f"parameters: {sum(counts.values()):,} ({parts})")
    report(f"{config.model.head} on {config.model.backbone}, output stride {config.model.output_stride}, "
           f"{classes} classes, {config.train.steps} steps")
    if missing is not None:
        report(f"the data is not there yet: {missing}")
