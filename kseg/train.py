"""Train a model: the same command starts, resumes and finishes a run.

    python -m kseg.train --config encnet_camvid --workdir runs/camvid
    python -m kseg.train --config encnet_camvid --dry-run

Started again with the same working directory, it resumes from the newest checkpoint.

From Python, `train.train` is kseg.training.trainer.train, imported at its first use.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from kseg import cli
from kseg import config as configs
from kseg.config import zoo
from kseg.errors import ConfigError
from kseg.system import quiet_start
from kseg.system.signals import Stopped

STEP_RANGE = re.compile(r"([0-9]{1,12}):([0-9]{1,12})")


def __getattr__(name: str) -> Callable:
    """Import the training function when it is used (PEP 562), because it takes TensorFlow seconds to load."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    quiet_start.import_tensorflow(optional_packages=True, for_training=True)
    from kseg.training.trainer import train

    return train


def parse_step_range(text: str, steps: int) -> tuple[int, int]:
    """Parse the value of `--profile FIRST:LAST`.

    Args:
        text: the value; steps are counted from 1, as in the log, and both ends are included.
        steps: the number of steps of the run.

    Returns:
        (first, last).

    Raises:
        ConfigError: The value has another form, or the range is empty or exceeds the run.
    """
    match = STEP_RANGE.fullmatch(text)
    if not match:
        raise ConfigError(
            f"--profile must be FIRST:LAST, the first and the last step to record, such as 11:15; got {text!r}"
        )
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last:
        raise ConfigError(f"--profile FIRST:LAST counts steps from 1, and FIRST must not exceed LAST; got {text!r}")
    if last > steps:
        raise ConfigError(f"--profile: LAST must not exceed train.steps={steps}; got {text!r}")
    return first, last


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=cli.program("kseg.train"), description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where the run is written and resumed (default: runs/NAME, or runs/NAME-VARIANT)",
    )
    parser.add_argument(
        "--list",
        metavar="TEXT",
        nargs="?",
        const="",
        help="print every named variant with its published results, or only rows that contain TEXT",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, parameter counts, the first batch's shapes and the device",
    )
    parser.add_argument(
        "--cpu-replicas",
        type=int,
        default=1,
        metavar="N",
        help="without a GPU: split the CPU into N virtual devices (default 1)",
    )
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="record these steps, counted from 1, for TensorBoard's profiler"
    )
    parser.add_argument(
        "--explain", action="store_true", help="print where the time of a training step goes, without training"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    if values.list is not None:
        print(zoo.listing(values.list))
        return 0
    config = cli.load_config(values)
    profiled = parse_step_range(values.profile, config.train.steps) if values.profile else None
    quiet_start.import_tensorflow(for_training=True)
    from kseg.distributed import hosts
    from kseg.profiling import step_time
    from kseg.training import trainer

    # The start waits for all hosts, so a host can be lost there as well.
    with hosts.exit_on_host_loss():
        strategy = trainer.prepare_strategy(config.train, values.cpu_replicas)
        if values.dry_run:
            trainer.dry_run(config, strategy)
            return 0
        if values.explain:
            print(step_time.step_time_table(step_time.explain_step_time(config, strategy)))
            return 0
        workdir = values.workdir or configs.default_workdir(config)
        try:
            trainer.train(config, workdir, strategy, profiled=profiled)
        except Stopped as stopped:
            return 128 + stopped.number
    return 0


if __name__ == "__main__":
    cli.run(main)
