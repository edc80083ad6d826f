"""Arguments, model loading and error handling shared by the commands; imports no TensorFlow by itself."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kseg import config as configs
from kseg.config import Config, renames
from kseg.config.files import config_names
from kseg.errors import ConfigError, UserError
from kseg.system import quiet_start


def program(module: str) -> str:
    """Return how a command was called, for its help: `kseg train`, or `python -m kseg.train`."""
    return sys.argv[0] if sys.argv[0].startswith("kseg ") else f"python -m {module}"


class RenamedOption(argparse.Action):
    """Take the value of an option under the name of the previous release, with a note; `const` is its new name."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        renames.note(option_string, self.const)
        setattr(namespace, self.dest, values)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config NAME[:VARIANT] and --set KEY=VALUE ..."""
    parser.add_argument(
        "--config",
        metavar="NAME[:VARIANT]",
        help="a named config or the path of a .py file, optionally with one of its variants, which "
        f"`python -m kseg.train --list` prints; names: {', '.join(config_names())}",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override config values, such as train.steps=100 augment.crop=256,320",
    )


def load_config(arguments: argparse.Namespace) -> Config:
    """Return the checked config that --config and --set name.

    Raises ConfigError if --config is missing, or for an unknown name or key or a refused value.
    """
    if not arguments.config:
        raise ConfigError(
            f"--config is needed; names: {', '.join(config_names())}; "
            "`python -m kseg.train --list` prints their variants"
        )
    return configs.load(arguments.config, arguments.overrides)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a trained model: --workdir, or --config with --weights."""
    add_config_arguments(parser)
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="a working directory written by kseg.train")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a .weights.h5 file, or a .pth or .npz file of MMSegmentation or SSSegmentation "
        "(default: best.weights.h5 in --workdir)",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: average over scales 0.5 to 1.75 and over mirrored images "
        "(evaluate.scales, evaluate.flip)",
    )


def model_config(arguments: argparse.Namespace) -> Config:
    """Return the checked config of the model that `add_model_arguments`' values name.

    Raises ConfigError for arguments that name no model or change its config wrongly, and WorkdirError if --workdir
    holds no readable config. TensorFlow is not imported, so that these errors appear at once.
    """
    from kseg.inference import trained_model

    if arguments.workdir:
        if arguments.config:
            raise ConfigError("--workdir contains its config; omit --config")
        return trained_model.read_config(arguments.workdir, arguments.overrides)
    if not arguments.weights:
        raise ConfigError("name a model: --workdir DIR, or --config NAME with --weights FILE")
    return load_config(arguments)


def load_model(arguments: argparse.Namespace) -> tuple:
    """Return (model, config, dataset record) with trained weights, from `add_model_arguments`' values.

    Raises what `model_config` raises, and WeightsError or DataError for files that cannot be read or do not fit.
    """
    config = model_config(arguments)
    quiet_start.import_tensorflow()
    from kseg.datasets import registry
    from kseg.inference import trained_model

    if arguments.workdir:
        return trained_model.load_trained(arguments.workdir, arguments.weights, arguments.tta, arguments.overrides)
    return trained_model.load_with_weights(config, registry.find_dataset(config.data), arguments.weights, arguments.tta)


def run(main: Callable[[], int | None]) -> None:
    """Run a command's main function and exit with its status.

    UserError and OSError are printed without a traceback and exit with status 2.
    """
    quiet_start.prepare_stdout()
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # For example, the disk may become full while a log line is written.
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        # Some launchers send the signal twice, and the second one must not interrupt the exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(130)
