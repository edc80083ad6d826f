"""Batches for training and examples for evaluation, through tf.data.

    python -m kseg.data check NAME [--directory DIR] [--split SPLIT ...]
    python -m kseg.data stats NAME [--directory DIR] [--split SPLIT ...] [--json FILE]
    python -m kseg.data show NAME --out grid.png [--directory DIR] [--config NAME]
    python -m kseg.data prepare NAME --source DIR [--directory OUT] [--split SPLIT ...] [--subset] [--fast]
    python -m kseg.data serve [--dispatcher grpc://HOST:PORT] [--port PORT] [--host HOST]

The order of examples and every random draw are pure functions of (seed, step): a run continues at any step without
replaying what came before, and the same seed gives the same batches on any machine.
"""

import argparse
from dataclasses import replace
from pathlib import Path


from kseg import cli
from kseg.config import Data
from kseg.datasets import registry
from kseg.errors import ConfigError
from kseg.input_pipeline import data_service


def main(arguments: list[str] | None = None) -> int:
    # They build on this module.
    from kseg.datasets import checks, prepare
    from kseg.input_pipeline import preview

    parser = argparse.ArgumentParser(prog="python -m kseg.data", description="Prepares a data set and looks at it.")
    names = f"data sets: {', '.join(sorted(registry.DATASETS))}"
    parsers = parser.add_subparsers(dest="command", required=True)
    checking = parsers.add_parser("check", help="read every file and count the label values", epilog=names)
    counting = parsers.add_parser("stats", help="sizes, frequencies of classes and void share", epilog=names)
    showing = parsers.add_parser("show", help="draw augmented training samples", epilog=names)
    for command in (checking, counting, showing):
        command.add_argument("name", metavar="NAME", help="a data set's name")
        command.add_argument("--directory", default="", metavar="DIR",
                             help="where it lies (default: $KSEG_DATA/NAME, else data/NAME)")
    for command in (checking, counting):
        command.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these splits (default: all)")
    counting.add_argument("--json", type=Path, metavar="FILE", help="where to write the same numbers as JSON")
    showing.add_argument("--split", metavar="SPLIT", help="which split (default: the training split)")
    showing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file to write")
    showing.add_argument("--count", type=int, default=8, help="how many samples (default 8)")
    showing.add_argument("--step", type=int, default=0, help="the training step to start at (default 0)")
    cli.add_config_arguments(showing)
    prepare.add_parser(parsers)
    serving = parsers.add_parser("serve", help="read for training runs elsewhere: a tf.data service",
                                 epilog="set data.service to the dispatcher's address; all must see the same paths")
    serving.add_argument("--dispatcher", default="", metavar="ADDRESS",
                         help="the address of the dispatcher to be a worker of (default: be a dispatcher)")
    serving.add_argument("--port", type=int, default=0, help="the port to listen at (default: any free one)")
    serving.add_argument("--host", default="localhost",
                         help="how other machines reach this one (default localhost: not at all)")
    values = parser.parse_args(arguments)
    if values.command == "prepare":
        prepare.prepare(Data(name=values.name, directory=values.directory), values.source, values.split, values.subset,
                        values.fast)
        return 0
    if values.command == "serve":
        data_service.serve(values.port, values.host, values.dispatcher)
        return 0
    if values.command == "check":
        checks.check(Data(name=values.name, directory=values.directory), values.split)
        return 0
    if values.command == "stats":
        checks.stats(Data(name=values.name, directory=values.directory), values.split, values.json)
        return 0
    given = {"directory": values.directory, "train_split": values.split}
    given = {key: value for key, value in given.items() if value}
    if values.config:
        config = cli.load_config(values)
        if config.data.name != values.name:
            raise ConfigError(f"config {values.config} is for {config.data.name}, not for {values.name}; "
                              f"add --set data.name={values.name} if that is meant")
        config = replace(config, data=replace(config.data, **given))
    else:
        config = preview.plain_config(Data(name=values.name, **given), values.overrides)
    preview.show(config, values.count, values.step, values.out)
    return 0


if __name__ == "__main__":
    cli.run(main)
