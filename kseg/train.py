"""Training: one command that starts, continues and finishes a run.

    python -m kseg.train --config encnet_camvid --workdir runs/camvid
    python -m kseg.train --config encnet_camvid --dry-run

Started again with the same working directory, it continues at the step it had reached.
"""

import argparse
from pathlib import Path

import tensorflow as tf

from kseg import cli
from kseg.config import Config, zoo
from kseg.distributed import hosts
from kseg.system.signals import Stopped
from kseg.training import profiler, trainer, working_directory


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
        strategy = trainer.prepare(config.train, values.cpu_replicas)
        if values.dry_run:
            trainer.dry_run(config, strategy)
            return 0
        if values.explain:
            explain(config, strategy)
            return 0
        try:
            trainer.train(config, values.workdir or working_directory.default(config), strategy, profiled=profiled)
        except Stopped as stopped:
            return 128 + stopped.number
    return 0


if __name__ == "__main__":
    cli.run(main)
