"""What the commands share on the command line."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kseg import config as configs
from kseg.config.files import config_names
from kseg.errors import ConfigError, UserError

if TYPE_CHECKING:
    pass


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config NAME[:VARIANT] and --set KEY=VALUE ..."""
    parser.add_argument("--config", metavar="NAME[:VARIANT]",
                        help="a named config, or the path of a .py file, and one of its variants, which "
                             f"`python -m kseg.train --list` prints; names: {', '.join(config_names())}")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                        help="override config values, such as train.steps=100 augment.crop=256,320")


def load_config(arguments: argparse.Namespace) -> configs.Config:
    """Return the config that --config and --set name; raises ConfigError without --config."""
    if not arguments.config:
        raise ConfigError(f"--config is needed; names: {', '.join(config_names())}; "
                          "`python -m kseg.train --list` prints their variants")
    return configs.load(arguments.config, arguments.overrides)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two ways of naming a trained model: its working directory, or a config and a file of weights."""
    add_config_arguments(parser)
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="a directory that kseg.train has written")
    parser.add_argument("--weights", type=Path, metavar="FILE",
                        help="a .weights.h5 file, or a .pth or .npz of MMSegmentation or SSSegmentation; "
                             "default: best.weights.h5 of --workdir")
    parser.add_argument("--tta", action="store_true",
                        help="test-time augmentation: the mean over scales 0.5 to 1.75 and mirrored pictures "
                             "(evaluate.scales, evaluate.flip)")


def load_model(arguments: argparse.Namespace) -> tuple:
    """Return (model, config, data set record) with trained weights, from `add_model_arguments`' values."""
    # These import TensorFlow, which other commands do without.
    from kseg.datasets import registry
    from kseg.inference import trained_model

    if arguments.workdir:
        if arguments.config:
            raise ConfigError("--workdir holds its own config; leave --config away")
        return trained_model.load_trained(arguments.workdir, arguments.weights, arguments.tta, arguments.overrides)
    if not arguments.weights:
        raise ConfigError("name a model: --workdir DIR, or --config NAME with --weights FILE")
    config = load_config(arguments)
    return trained_model.load_with_weights(config, registry.find_dataset(config.data), arguments.weights, arguments.tta)


def run(main: Callable[[], int | None]) -> None:
    """Run a command's main and exit; an error the user can mend is printed without a traceback, with status 2."""
    # A log that somebody follows shall not lag behind by a buffer.
    sys.stdout.reconfigure(line_buffering=True)
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    # Such as a disk that is full in the middle of a log line.
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
