"""How fast the parts of kseg are on this machine, and what limits them.

    python -m kseg.benchmark data --config NAME [--set data.directory=DIR] [--batches N] [--rounds N] [--json FILE]
    python -m kseg.benchmark model --config NAME [--size H,W] [--batch N] [--rounds N] [--threads N] [--json FILE]

`data` measures the input pipeline of training: pipelines that are cut after each stage, one after the other, several
rounds of them. What a stage costs is the difference to the pipeline that is cut before it. `model` counts a model's
parameters and multiply-adds and measures its forms (kseg.profiling.model_benchmark).
"""

import argparse
import dataclasses
import json
import re
from dataclasses import asdict
from pathlib import Path

from kseg import cli
from kseg.config import Config
from kseg.datasets import registry
from kseg.errors import ConfigError
from kseg.profiling import input_benchmark, model_benchmark
from kseg.profiling.model_forms import FORMS, Job


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m kseg.benchmark model`."""
    cli.add_config_arguments(parser)
    parser.add_argument("--size", metavar="H,W", help="height and width of the pictures (default: the config's crop)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures of a call (default 1)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S",
                        help="how long each form works in a round; one call at least (default 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: TensorFlow's choice)")
    parser.add_argument("--xla", action="store_true", help="measure the form that XLA compiles, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the same figures as JSON")


def benchmark_model(values: argparse.Namespace) -> int:
    """Run `python -m kseg.benchmark model` with parsed arguments."""
    config = cli.load_config(values)
    job = Job(config, len(registry.find_dataset(config.data).classes), read_size(values.size, config), values.batch,
              values.threads)
    forms = [name for name in FORMS if values.xla or name != "XLA"]
    figures = model_benchmark.measure_model(job, forms, values.rounds, values.seconds)
    print(model_benchmark.model_table(figures))
    if values.json:
        values.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 0


def read_size(text: str | None, config: Config) -> tuple[int, int]:
    """Return the (height, width) that --size names, or the config's crop; raises ConfigError for anything else."""
    if text is None:
        return tuple(config.augment.crop)
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match:
        raise ConfigError(f"--size is {text!r}; it must be HEIGHT,WIDTH, such as 512,1024")
    return int(match[1]), int(match[2])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.benchmark", description="Measures parts of kseg.")
    parsers = parser.add_subparsers(dest="command", required=True)
    reading = parsers.add_parser("data", help="images/s of each stage of the input pipeline, and what dominates")
    cli.add_config_arguments(reading)
    reading.add_argument("--batches", type=int, default=16, metavar="N", help="batches of a round (default 16)")
    reading.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default 5)")
    reading.add_argument("--json", type=Path, metavar="FILE", help="where to write the same figures as JSON")
    add_model_arguments(parsers.add_parser(
        "model", help="parameters, multiply-adds, images/s, latency and memory of a model's forms"))
    values = parser.parse_args(arguments)
    if values.command == "model":
        return benchmark_model(values)
    config = cli.load_config(values)
    split = registry.open_split(config.data, config.data.train_split)
    figures = input_benchmark.measure_data(split, config, values.batches, values.rounds)
    print(input_benchmark.data_table(figures))
    print(input_benchmark.input_advice(figures, split))
    if values.json:
        values.json.write_text(json.dumps(dataclasses.asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
