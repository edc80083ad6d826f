"""Check, summarize, draw, convert and prepare a dataset, or read it for training runs on other machines.

python -m kseg.data check NAME [--directory DIR] [--split SPLIT ...]
python -m kseg.data stats NAME [--directory DIR] [--split SPLIT ...] [--json FILE]
python -m kseg.data show NAME --out grid.png [--directory DIR] [--config NAME]
python -m kseg.data prepare NAME --source DIR [--out DIR] [--split SPLIT ...] [--subset] [--fast]
python -m kseg.data convert KIND PATH --out DIR [--images DIR] [--split NAME=PATH ...] [--background NAME]
python -m kseg.data suggest NAME [--directory DIR] [--head HEAD] [--memory GB]
python -m kseg.data serve [--dispatcher grpc://HOST:PORT] [--port PORT] [--host HOST]
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

from kseg import cli
from kseg.annotations.annotated_images import Options
from kseg.annotations.conversion import Conversion, convert
from kseg.annotations.kinds import KINDS
from kseg.annotations.name_files import read_names
from kseg.config import Config, Data
from kseg.config.checks import check_config
from kseg.config.files import config_names
from kseg.config.values import set_value
from kseg.datasets import names
from kseg.errors import ConfigError, DataError, unknown
from kseg.system import quiet_start

DEFAULT_BACKGROUND = "background"
# The name of a split is the name of its directory.
SPLIT_NAME = re.compile(r"[\w][\w.-]*")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=cli.program("kseg.data"), description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    every = f"datasets: {', '.join(names.DATASETS)}"
    check = parsers.add_parser("check", help="read every file and count the label values", epilog=every)
    stats = parsers.add_parser("stats", help="image sizes, class frequencies and void fraction", epilog=every)
    show = parsers.add_parser("show", help="draw augmented training samples", epilog=every)
    suggest = parsers.add_parser("suggest", help="training settings for the data, with reasons", epilog=every)
    suggest.add_argument("--split", default="train", metavar="SPLIT", help="the split to train on (default: train)")
    suggest.add_argument("--head", default="encnet", metavar="HEAD", help="the main head (default: encnet)")
    suggest.add_argument("--memory", type=float, metavar="GB", help="memory of a GPU, if one has to hold the batch")
    for command in (check, stats, show, suggest):
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
        "--out",
        dest="directory",
        default="",
        metavar="DIR",
        help="where to write the prepared dataset (default: $KSEG_DATA/NAME, or data/NAME without KSEG_DATA)",
    )
    # The other subcommands read from --directory.
    prepare.add_argument("--directory", action=cli.RenamedOption, const="--out", help=argparse.SUPPRESS)
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
    _add_convert(parsers)
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


def _add_convert(parsers: argparse._SubParsersAction) -> None:
    convert = parsers.add_parser(
        "convert",
        help="write the annotations of another tool as a folder dataset",
        epilog="an annotated object covers those before it in the file; docs/data.md describes each kind",
    )
    convert.add_argument("kind", metavar="KIND", help=f"the format: {', '.join(KINDS)}")
    convert.add_argument("path", nargs="?", type=Path, metavar="PATH", help="the annotations: a file or a directory")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="the dataset to write; must not exist")
    convert.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the annotations of one split, for each split; PATH without a name is then the split train",
    )
    convert.add_argument(
        "--images", type=Path, metavar="DIR", help="where the images are (default: where the annotations expect them)"
    )
    convert.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="one class name per line, in the order of the ids; other classes are refused "
        "(default: the classes of the annotations)",
    )
    convert.add_argument(
        "--colors", type=Path, metavar="FILE", help="colors and names, such as `#804080 road`, for color masks"
    )
    convert.add_argument(
        "--background",
        default=DEFAULT_BACKGROUND,
        metavar="NAME|ignore",
        help="the class of pixels without an object, added as id 0 if the annotations lack it; `ignore` gives them "
        "255, which no loss or metric counts (default: background)",
    )
    convert.add_argument(
        "--crowd",
        choices=("ignore", "draw"),
        default="ignore",
        help="what COCO's crowd regions become: 255, below the objects, or objects like others (default: ignore)",
    )
    convert.add_argument(
        "--missing", choices=("stop", "skip"), default="stop", help="what to do without an image (default: stop)"
    )
    convert.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="fraction of the images for the split val, if neither the format nor --split names splits (default 0.1)",
    )
    convert.add_argument("--seed", type=int, default=0, help="another seed chooses other images for val (default 0)")


def conversion(values: argparse.Namespace) -> Conversion:
    """Return what `convert` converts; raises ConfigError for arguments that fit no conversion."""
    if values.kind not in KINDS:
        raise ConfigError(unknown("kind of annotations", values.kind, KINDS))
    if not 0 <= values.val_fraction < 1:
        raise ConfigError(f"--val-fraction must be at least 0 and less than 1, got {values.val_fraction}")
    for option, given, kinds in (
        ("--classes", values.classes, set(KINDS) - {"rgb"}),
        ("--colors", values.colors, {"rgb", "hugging-face"}),
        ("--crowd draw", values.crowd == "draw", {"coco"}),
        # Masks have a class for every pixel.
        ("--background", values.background != DEFAULT_BACKGROUND, set(KINDS) - {"rgb", "hugging-face"}),
    ):
        if given and values.kind not in kinds:
            raise ConfigError(f"{option} has no effect on {values.kind}, only on {', '.join(sorted(kinds))}; omit it")
    sources = {}
    for text in values.split:
        name, separator, path = text.partition("=")
        if not separator or not path or not SPLIT_NAME.fullmatch(name):
            raise ConfigError(f"--split takes NAME=PATH, such as val=instances_val.json; got {text!r}")
        if name in sources:
            raise ConfigError(f"--split names {name} twice")
        sources[name] = Path(path)
    if values.path:
        if sources and "train" in sources:
            raise ConfigError(f"{values.path} and --split train={sources['train']} are both the split train")
        sources = {"train" if sources else "": values.path} | sources
    if not sources:
        raise ConfigError("convert needs the PATH of the annotations, or --split NAME=PATH for each split")
    names = read_names(values.classes) if values.classes else ()
    options = Options(values.images, names, values.colors, draw_crowds=values.crowd == "draw")
    skip = values.missing == "skip"
    return Conversion(values.kind, sources, options, values.background, skip, values.val_fraction, values.seed)


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


def _check_suggest(values: argparse.Namespace) -> None:
    """Raise ConfigError for a head without a published recipe, and for a memory that is not above 0."""
    heads = [name.removesuffix("_ade20k") for name in config_names() if name.endswith("_ade20k")]
    if values.head not in heads:
        raise ConfigError(unknown("head", values.head, heads))
    if values.memory is not None and not values.memory > 0:
        raise ConfigError(f"--memory must be above 0, got {values.memory:g}")


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    if values.command == "convert":
        convert(conversion(values), values.out)
        return 0
    if values.command != "serve":
        known = names.PREPARABLE if values.command == "prepare" else names.DATASETS
        if values.name not in known:
            raise DataError(unknown("dataset", values.name, known))
    if values.command == "suggest":
        _check_suggest(values)
    config = show_config(values) if values.command == "show" else None
    quiet_start.import_tensorflow()
    from kseg.datasets import checks, prepare, suggestions
    from kseg.input_pipeline import data_service, preview

    match values.command:
        case "check":
            checks.check_dataset(_data(values), values.split)
        case "stats":
            checks.dataset_stats(Data(name=values.name, directory=values.directory), values.split, values.json)
        case "suggest":
            data = Data(name=values.name, directory=values.directory, train_split=values.split)
            suggestions.suggest(data, values.head, values.memory)
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
