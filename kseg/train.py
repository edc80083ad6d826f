"""Training: one command that starts, continues and finishes a run.

    python -m kseg.train --config encnet_camvid --workdir runs/camvid
    python -m kseg.train --config encnet_camvid --dry-run

Started again with the same working directory, it continues at the step it had reached.
"""

import argparse
import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from kseg import config as configs
from kseg import cli, models, zoo
from kseg.config import Config
from kseg.datasets import registry
from kseg.distributed import hosts, runtime
from kseg.errors import ConfigError, DataError
from kseg.input_pipeline import batch_reader
from kseg.system.signals import Signals, Stopped
from kseg.training import fingerprint, losses, optimizers, profiler, working_directory
from kseg.training.ema import Average
from kseg.training.loop import Loop
from kseg.training.recorder import Run
from kseg.training.step import Steps
from kseg.weights import downloads, loading


def train(config: Config, workdir: Path, strategy: tf.distribute.Strategy,
          report: Callable[[str], None] = print, profiled: tuple[int, int] | None = None) -> dict:
    """Train to the last step and return {"step", "best_mIoU", "best_step"}.

    `strategy` comes from `runtime.prepare`, on each of several hosts. Everything is written to `workdir`, which all
    hosts see and from which a run that was cut off is continued, on as many hosts or others. `profiled` is the first
    and the last step, counted from 1, that TensorBoard's profiler records. Raises the UserErrors of its parts,
    NonFiniteLoss, HostLost, and Stopped after SIGTERM or SIGINT.
    """
    chief = hosts.is_chief(strategy)
    say = report if chief else silent
    dataset = registry.find(config.data)
    registry.open_split(config.data, config.data.train_split)
    registry.open_split(config.data, config.data.val_split)
    if hosts.count(strategy) > 1:
        if config.data.unreadable == "skip":
            # One host's list would change the others' batches.
            raise ConfigError('data.unreadable=skip is for one host; `python -m kseg.data check` finds what cannot be '
                              'read')
        hosts.agree(strategy, fingerprint.facts(config))
    with contextlib.ExitStack() as held:
        # Let go before the program ends, which a caller may outlive.
        hosts.on_chief(strategy, lambda: held.enter_context(working_directory.open_run(workdir, config, dataset)))
        say(runtime.device_line())
        say(runtime.batch_line(config.train, strategy.num_replicas_in_sync))
        with strategy.scope():
            model, optimizer, average = build(config, len(dataset.classes), say)
        steps = Steps(model, optimizer, config, strategy, average)
        checkpoint = working_directory.tracked(model, optimizer, average, steps.variables)
        step = working_directory.restore_newest(workdir, checkpoint, say)
        hosts.agree(strategy, {"the checkpoint that is continued": f"step {step}"})
        if step:
            say(f"continuing at step {step} of {config.train.steps}")
        hosts.on_chief(strategy, lambda: working_directory.trim_metrics(workdir, step))
        run = held.enter_context(Run(config, workdir, dataset, model, average, strategy, say))
        profile = held.enter_context(profiler.Profile(profiled, workdir if chief else None, say))
        reader = batch_reader.BatchReader(config, workdir, strategy, say)
        # Until here a signal ends the process, which has nothing to save.
        signals = held.enter_context(Signals())
        loop = Loop(run, reader, steps, checkpoint, signals, profile)
        step = loop.take_all(step)
        if run.writes:
            with average.swapped() if average else contextlib.nullcontext():
                working_directory.save_weights(model, workdir / "final.weights.h5", say)
    return finish(run, loop, reader)


def silent(line: str) -> None:
    """Say nothing: of several hosts one reports."""


def finish(run: Run, loop: Loop, reader: batch_reader.BatchReader) -> dict:
    """Report how a run ended and return what `train` does."""
    best, settings = run.best, run.config.train
    early = f", {settings.patience} validations after the best one (train.patience)" \
        if loop.step < settings.steps else ""
    left_out = f"; left out {len(reader.left_out)} of {len(reader.names)} training examples as unreadable: " \
        f"{reader.path}" if reader.left_out else ""
    skipped = f"; left out {len(loop.skipped)} batches whose loss was not finite" if loop.skipped else ""
    run.report(f"finished {loop.step} steps{early}; best validation mIoU {100 * best['mIoU']:.2f} at step "
               f"{best['step']}: {run.workdir / 'best.weights.h5'}{left_out}{skipped}")
    return {"step": loop.step, "best_mIoU": best["mIoU"], "best_step": best["step"]}


def build(config: Config, classes: int, report: Callable[[str], None]) -> tuple:
    """Return (model, optimizer, average or None) with all their variables, and the weights that config.init names."""
    losses.require_class_weights(config.loss, classes)
    settings = config.train
    model = models.build(config.model, classes, precision=settings.precision, recompute=settings.recompute)
    for note in loading.load_initial(model, config):
        report(note)
    optimizers.freeze(model, settings.freeze)
    optimizer = optimizers.build(settings, model)
    return model, optimizer, Average(model, settings.average_decay) if settings.average_decay else None


def dry_run(config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print) -> None:
    """Report the resolved config, parameter counts, the first batch's shapes and the device, and train nothing."""
    report(configs.to_json(config).rstrip())
    report(runtime.device_line())
    report(runtime.batch_line(config.train, strategy.num_replicas_in_sync))
    missing = None
    try:
        classes = len(registry.find(config.data).classes)
        registry.open_split(config.data, config.data.val_split)
        batch = batch_reader.BatchReader(config, None, tf.distribute.get_strategy(), report).read(0)
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
        model, _, _ = build(downloads.at_hand(config, report), classes, report)
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


def explain(config: Config, strategy: tf.distribute.Strategy) -> None:
    """Print where the time of a config's training step goes on this machine."""
    # It builds on this module.
    from kseg.profiling import step_time

    print(step_time.table(step_time.explain(config, strategy)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.train", description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument("--workdir", type=Path, metavar="DIR",
                        help="where the run is written and continued (default: runs/NAME, or runs/NAME-VARIANT)")
    parser.add_argument("--list", metavar="TEXT", nargs="?", const="",
                        help="print every named variant, or those whose row holds TEXT, with what was published for it")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the resolved config, parameter counts, the first batch's shapes and the device")
    parser.add_argument("--cpu-replicas", type=int, default=1, metavar="N",
                        help="without a GPU: split the CPU into N virtual devices (default 1)")
    parser.add_argument("--profile", metavar="FIRST:LAST",
                        help="record these steps, counted from 1, for TensorBoard's profiler")
    parser.add_argument("--explain", action="store_true",
                        help="print where the time of a training step goes, and train nothing")
    values = parser.parse_args(arguments)
    if values.list is not None:
        print(zoo.listing(values.list))
        return 0
    config = cli.load_config(values)
    profiled = profiler.parse(values.profile, config.train.steps) if values.profile else None
    # Around the start as well, which waits for all hosts.
    with hosts.ending():
        strategy = runtime.prepare(config.train, values.cpu_replicas)
        if values.dry_run:
            dry_run(config, strategy)
            return 0
        if values.explain:
            explain(config, strategy)
            return 0
        try:
            train(config, values.workdir or working_directory.default(config), strategy, profiled=profiled)
        except Stopped as stopped:
            return 128 + stopped.number
    return 0


if __name__ == "__main__":
    cli.run(main)
