"""Training: one command that starts, continues and finishes a run.

    python -m kseg.train --config encnet_camvid --workdir runs/camvid
    python -m kseg.train --config encnet_camvid --dry-run

Started again with the same working directory, it continues at the step it had reached.
"""

import argparse
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg import commands, datasets, downloads, losses, models, readers, runtime, weights, workdirs, zoo
from kseg import config as configs
from kseg.config import Config
from kseg.errors import DataError, UserError
from kseg.optimizers import MomentumSGD
from kseg.runs import Run, StepLog
from kseg.schedules import schedule
from kseg.signals import Signals, Stopped


class NonFiniteLoss(UserError):
    """The loss became nan or infinite."""


def train(config: Config, workdir: Path, strategy: tf.distribute.Strategy,
          report: Callable[[str], None] = print) -> dict:
    """Train to the last step and return {"step", "best_mIoU", "best_step"}.

    `strategy` comes from `runtime.prepare`. Everything is written to `workdir`, from which a run that was cut off is
    continued. Raises the UserErrors of its parts, NonFiniteLoss, and Stopped after SIGTERM or SIGINT.
    """
    dataset = datasets.find(config.data)
    datasets.open_split(config.data, config.data.train_split)
    datasets.open_split(config.data, config.data.val_split)
    lock = workdirs.open_run(workdir, config, dataset)
    report(runtime.device_line())
    report(runtime.batch_line(config.train, strategy.num_replicas_in_sync))
    with strategy.scope():
        model, optimizer = build(config, len(dataset.classes), report)
        checkpoint = workdirs.tracked(model, optimizer)
    step = workdirs.restore_newest(workdir, checkpoint, report)
    if step:
        report(f"continuing at step {step} of {config.train.steps}")
    workdirs.trim_metrics(workdir, step)
    run = Run(config, workdir, dataset, model, strategy, report)
    reader = readers.BatchReader(config, workdir, strategy, report)
    with lock, Signals() as signals, run:
        step = run_steps(run, reader, optimizer, checkpoint, step, signals)
    workdirs.save_weights(model, workdir / "final.weights.h5")
    best = run.best()
    report(f"finished {step} steps; best validation mIoU {100 * best['mIoU']:.2f} at step {best['step']}: "
           f"{workdir / 'best.weights.h5'}"
           + (f"; left out {len(reader.left_out)} of {len(reader.names)} training examples as unreadable: {reader.path}"
              if reader.left_out else ""))
    return {"step": step, "best_mIoU": best["mIoU"], "best_step": best["step"]}


def build(config: Config, classes: int, report: Callable[[str], None]) -> tuple:
    """Return (model, optimizer) with all their variables, and the weights that config.init names."""
    losses.require_class_weights(config.loss, classes)
    model = models.build(config.model, classes, precision=config.train.precision)
    for note in weights.load_initial(model, config):
        report(note)
    optimizer = MomentumSGD(schedule(config.train), config.train.momentum, config.train.weight_decay,
                            skip_nonfinite=config.train.precision == "mixed_float16")
    optimizer.build(model.trainable_variables)
    return model, optimizer


def make_step(model: keras.Model, optimizer: keras.optimizers.Optimizer, config: Config,
              strategy: tf.distribute.Strategy) -> Callable[[dict], dict]:
    """Return the compiled step: a distributed batch in, the global losses {"loss", "main", ...} out.

    Sums are added over the replicas and divided by the global counts, so that the numbers do not depend on how many
    replicas share the batch or where its ignored pixels lie. Under mixed_float16 a step whose gradients are not all
    finite leaves weights and momentum as they are and gives {"skipped": 1.0}, any other one 0.0.
    """
    settings = config.train

    def replica_step(batch: dict) -> dict:
        context = tf.distribute.get_replica_context()
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = model(batch["image"], training=True)
            terms = losses.terms(outputs, batch["label"], config.loss, config.model.align_corners)
            counts = {name: count for name, (_, _, count) in terms.items()}
            if strategy.num_replicas_in_sync > 1:
                counts = context.all_reduce("sum", counts)
            parts = {name: weight * losses.mean(total, counts[name]) for name, (weight, total, _) in terms.items()}
            loss = tf.add_n(list(parts.values()))
            scaled = loss * settings.loss_scale
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        gradients = [gradient / settings.loss_scale for gradient in gradients]
        values = {"loss": loss, **parts}
        if settings.precision == "mixed_float16":
            gradients, skipped = all_or_none(gradients, context)
            # Each replica knows it, and the shares of all are added up.
            values["skipped"] = skipped / strategy.num_replicas_in_sync
        optimizer.apply(gradients, variables)
        return values

    @tf.function(jit_compile=settings.jit_compile)
    def step(batch: dict) -> dict:
        shares = strategy.run(replica_step, args=(batch,))
        return {name: strategy.reduce("sum", share, axis=None) for name, share in shares.items()}

    return step


def all_or_none(gradients: list, context: tf.distribute.ReplicaContext) -> tuple:
    """Return (gradients, 0.0) where they are finite on all replicas, else (nothing but nan, 1.0), on each of them."""
    # The sum of all magnitudes is finite only if each gradient is, and then so are their sums over the replicas.
    size = tf.add_n([tf.reduce_sum(tf.abs(gradient)) for gradient in gradients])
    if context.num_replicas_in_sync > 1:
        size = context.all_reduce("sum", size)
    finite = tf.math.is_finite(size)
    nan = tf.constant(float("nan"))
    return [tf.where(finite, gradient, nan) for gradient in gradients], 1 - tf.cast(finite, tf.float32)


def run_steps(run: Run, reader: readers.BatchReader, optimizer, checkpoint, step: int, signals: Signals) -> int:
    """Take the steps that are left, with their logging, validation and checkpoints; return the last step's number."""
    config, settings = run.config, run.config.train

    def due(every: int) -> bool:
        return step % every == 0 or step == settings.steps

    def stop() -> None:
        run.report(f"{signal.Signals(signals.received).name}: saved step {step} of {settings.steps} in {run.workdir}; "
                   "the same command continues there")
        raise Stopped(signals.received)

    def validate() -> None:
        started = time.monotonic()
        if not run.validate(step, lambda: signals.received is not None):
            stop()
        log.started += time.monotonic() - started

    def save() -> None:
        workdirs.save_checkpoint(run.workdir, checkpoint, step, settings.keep_checkpoints)

    log = StepLog(settings)
    if step and due(settings.validate_every) and not run.validated(step):
        # Something cut off the validation of the step that was saved.
        validate()
    if step >= settings.steps:
        return step
    take_step = make_step(run.model, optimizer, config, reader.strategy)
    while step < settings.steps:
        rate = float(optimizer.learning_rate)
        started = time.monotonic()
        try:
            batch = reader.read(step)
        except DataError:
            # The steps so far are sound.
            if step:
                save()
            raise
        waited = time.monotonic() - started
        values = {name: float(value) for name, value in take_step(batch).items()}
        require_finite(reader, step, rate, values, values["loss"])
        step += 1
        log.add(values, waited)
        if due(settings.log_every):
            run.log(step, log.flush(step, rate) | reader.counts())
        # Asked once, so that what is said to be saved has been.
        stopping = signals.received is not None
        if due(settings.validate_every) or due(settings.checkpoint_every) or stopping:
            # An update may be infinite although the loss before it was not; such a state is not to be kept.
            require_finite(reader, step - 1, rate, values, *run.model.trainable_variables)
            # Before the validation, which may meet a bad file: nothing of the steps is lost then.
            save()
        if due(settings.validate_every):
            validate()
        if stopping and step < settings.steps:
            stop()
    return step


def require_finite(reader: readers.BatchReader, step: int, rate: float, losses_of_step: dict, *values) -> None:
    """Raise NonFiniteLoss naming step, learning rate and the files of the batch where a value is nan or infinite."""
    if all(np.isfinite(keras.ops.convert_to_numpy(value)).all() for value in values):
        return
    files = "\n".join(f"  {name}" for name in reader.files(step))
    parts = ", ".join(f"{name} {value:g}" for name, value in losses_of_step.items())
    raise NonFiniteLoss(
        f"the loss or its update is not finite at step {step + 1} ({parts}), learning rate {rate:g}. The checkpoints "
        f"before it are whole. Lower train.learning_rate, or look at the files of this batch:\n{files}")


def dry_run(config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print) -> None:
    """Report the resolved config, parameter counts, the first batch's shapes and the device, and train nothing."""
    report(configs.to_json(config).rstrip())
    report(runtime.device_line())
    report(runtime.batch_line(config.train, strategy.num_replicas_in_sync))
    missing = None
    try:
        classes = len(datasets.find(config.data).classes)
        datasets.open_split(config.data, config.data.val_split)
        batch = readers.BatchReader(config, None, tf.distribute.get_strategy(), report).read(0)
        shapes = {name: f"{tuple(value.shape)} {value.dtype.name}" for name, value in batch.items()}
    except DataError as error:
        known = datasets.DATASETS.get(config.data.name)
        if known is None or not known.classes or datasets.directory_of(config.data).exists():
            raise
        missing = error
        classes = len(known.classes)
        size = (config.train.global_batch, *config.augment.crop)
        shapes = {"image": f"{(*size, 3)} float32", "label": f"{size} uint8", "index": f"{size[:1]} int64"}
    with strategy.scope():
        model, _ = build(downloads.at_hand(config, report), classes, report)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.train", description=__doc__.splitlines()[0])
    commands.add_config_arguments(parser)
    parser.add_argument("--workdir", type=Path, metavar="DIR",
                        help="where the run is written and continued (default: runs/NAME, or runs/NAME-VARIANT)")
    parser.add_argument("--list", metavar="TEXT", nargs="?", const="",
                        help="print every named variant, or those whose row holds TEXT, with what was published for it")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the resolved config, parameter counts, the first batch's shapes and the device")
    parser.add_argument("--cpu-replicas", type=int, default=1, metavar="N",
                        help="without a GPU: split the CPU into N virtual devices (default 1)")
    values = parser.parse_args(arguments)
    if values.list is not None:
        print(zoo.listing(values.list))
        return 0
    config = commands.load_config(values)
    strategy = runtime.prepare(config.train, values.cpu_replicas)
    if values.dry_run:
        dry_run(config, strategy)
        return 0
    try:
        train(config, values.workdir or workdirs.default(config), strategy)
    except Stopped as stopped:
        return 128 + stopped.number
    return 0


if __name__ == "__main__":
    commands.run(main)
