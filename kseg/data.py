"""Check, summarize, draw and prepare a dataset, or read it for training runs on other machines.

python -m kseg.data check NAME [--directory DIR] [--split SPLIT ...]
python -m kseg.data stats NAME [--directory DIR] [--split SPLIT ...] [--json FILE]
python -m kseg.data show NAME --out grid.png [--directory DIR] [--config NAME]
python -m kseg.data prepare NAME --source DIR [--directory OUT] [--split SPLIT ...] [--subset] [--fast]
python -m kseg.data serve [--dispatcher grpc://HOST:PORT] [--port PORT] [--host HOST]
"""

import argparse
from dataclasses import replace
from pathlib import Path

from kseg import cli
from kseg.config import Config, Data
from kseg.config.checks import check_config
from kseg.config.values import set_value
from kseg.datasets import names
from kseg.errors import ConfigError, DataError, unknown
from kseg.system import quiet_start


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=cli.program("kseg.data"), description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    every = f"datasets: {', '.join(names.DATASETS)}"
    check = parsers.add_parser("check", help="read every file and count the label values", epilog=every)
    stats = parsers.add_parser("stats", help="image sizes, class frequencies and void fraction", epilog=every)
    show = parsers.add_parser("show", help="draw augmented training samples", epilog=every)
    for command in (check, stats, show):
        command.add_argument("name", metavar="NAME", help="a dataset's name")
        command.add_argument(
            "--directory",
            default="",
            metavar="DIR",
            help="the dataset's directory (default: $KSEG_DATA/NAME, or data/NAME without KSEG_DATA)",
        )
    for command in (check, stats):
        command.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these splits (default: all)")
    stats.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE as JSON")
    show.add_argument("--split", metavar="SPLIT", help="which split (default: the training split)")
    show.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file to write")
    show.add_argument("--count", type=int, default=8, help="how many samples (default 8)")
    show.add_argument("--step", type=int, default=0, help="the training step to start at (default 0)")
    cli.add_config_arguments(show)
    prepare = parsers.add_parser(
        "prepare",
        help="check archives or extracted files, and write them as record files",
        epilog=f"datasets: {', '.join(names.PREPARABLE)}",
    )
    prepare.add_argument("name", metavar="NAME", help="a dataset's name")
    prepare.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="DIR",
        help="the directory of the published archives, or of the files extracted from them",
    )
    prepare.add_argument(
        "--directory",
        default="",
        metavar="OUT",
        help="where to write the prepared dataset (default: $KSEG_DATA/NAME, or data/NAME without KSEG_DATA)",
    )
    prepare.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these splits (default: all)")
    prepare.add_argument("--subset", action="store_true", help="accept splits that are smaller than published")
    prepare.add_argument(
        "--fast",
        action="store_true",
        help="write decoded pixels instead of record files: several times larger and faster to read",
    )
    for command in (check, prepare):
        command.add_argument(
            "--value-range",
            type=float,
            nargs=2,
            default=(),
            metavar=("LOW", "HIGH"),
            help="the values of images with more than 8 bits that become black and white, as "
            "data.value_range in a config (default: 0 65535)",
        )
    serve = parsers.add_parser(
        "serve",
        help="read for training runs on other machines: a tf.data service",
        epilog="set data.service to the dispatcher's address; all machines must see the same paths",
    )
    serve.add_argument(
        "--dispatcher",
        default="",
        metavar="ADDRESS",
        help="work for the dispatcher at this address (default: be the dispatcher)",
    )
    serve.add_argument("--port", type=int, default=0, help="the port to listen on (default: any free port)")
    serve.add_argument(
        "--host",
        default="localhost",
        help="the name of this machine for the others (default localhost: this machine only)",
    )
    return parser


def show_config(values: argparse.Namespace) -> Config | None:
    """Return the config of `show`, or None without --config.

    Raises ConfigError for a config of another dataset and for a wrong override.
    """
    if not values.config:
        for override in values.overrides:
            set_value(Config(), override)
        return None
    config = cli.load_config(values)
    if config.data.name != values.name:
        raise ConfigError(
            f"config {values.config} is for {config.data.name}, not for {values.name}; add --set "
            f"data.name={values.name} to use it anyway"
        )
    return replace(config, data=replace(config.data, **_data_arguments(values)))


def _data_arguments(values: argparse.Namespace) -> dict[str, str]:
    arguments = {"directory": values.directory, "train_split": values.split}
    return {key: value for key, value in arguments.items() if value}


def _data(values: argparse.Namespace) -> Data:
    """Return the data section of `check` and `prepare`; raises ConfigError for an empty range."""
    data = Data(name=values.name, directory=values.directory, value_range=tuple(values.value_range))
    check_config(Config(data=data))
    return data


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    if values.command != "serve":
        known = names.PREPARABLE if values.command == "prepare" else names.DATASETS
        if values.name not in known:
            raise DataError(unknown("dataset", values.name, known))
    config = show_config(values) if values.command == "show" else None
    quiet_start.import_tensorflow()
    from kseg.datasets import checks, prepare
    from kseg.input_pipeline import data_service, preview

    match values.command:
        case "check":
            checks.check_dataset(_data(values), values.split)
        case "stats":
            checks.dataset_stats(Data(name=values.name, directory=values.directory), values.split, values.json)
        case "show":
            config = config or preview.plain_config(Data(name=values.name, **_data_arguments(values)), values.overrides)
            preview.show(config, values.count, values.step, values.out)
        case "prepare":
            prepare.prepare_dataset(_data(values), values.source, values.split, values.subset, values.fast)
        case "serve":
            data_service.serve_data(values.port, values.host, values.dispatcher)
    return 0


if __name__ == "__main__":
    cli.run(main)
