"""Measure how fast parts of kseg are on this machine, and what limits them.

    python -m kseg.benchmark data --config NAME [--set data.directory=DIR] [--batches N] [--rounds N] [--json FILE]
    python -m kseg.benchmark model --config NAME [--size H,W] [--batch N] [--rounds N] [--threads N] [--json FILE]

`data` measures the input pipeline of training in several rounds of truncated pipelines, each of which stops after one
more stage. The cost of a stage is the difference to the pipeline that stops before it. `model` counts the parameters
and multiply-adds of a model and measures the forms in which it can run (kseg.profiling.model_benchmark).
"""

import argparse
import dataclasses
import json
import re
from pathlib import Path

from kseg import cli
from kseg.config import Config
from kseg.errors import ConfigError
from kseg.system import quiet_start


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=cli.program("kseg.benchmark"), description=__doc__.splitlines()[0])
    parsers = parser.add_subparsers(dest="command", required=True)
    data = parsers.add_parser("data", help="images/s of each stage of the input pipeline, and the slowest stage")
    cli.add_config_arguments(data)
    data.add_argument("--batches", type=int, default=16, metavar="N", help="batches in a round (default 16)")
    model = parsers.add_parser("model", help="size, multiply-adds, images/s, latency and memory of a model's forms")
    cli.add_config_arguments(model)
    model.add_argument("--size", metavar="H,W", help="height and width of the images (default: the config's crop)")
    model.add_argument("--batch", type=int, default=1, metavar="N", help="images in a call (default 1)")
    model.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        metavar="S",
        help="how long each form runs in a round, at least one call (default 5)",
    )
    model.add_argument("--threads", type=int, metavar="N", help="threads on the CPU (default: TensorFlow's choice)")
    model.add_argument("--xla", action="store_true", help="also measure the form compiled by XLA")
    for command in (data, model):
        command.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default 5)")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE as JSON")
    return parser


def parse_size(text: str | None, config: Config) -> tuple[int, int]:
    """Return the (height, width) of --size, or the config's crop without it; raises ConfigError for another form."""
    if text is None:
        return tuple(config.augment.crop)
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match:
        raise ConfigError(f"--size is {text!r}; it must be HEIGHT,WIDTH, such as 512,1024")
    return int(match[1]), int(match[2])


def benchmark_data(values: argparse.Namespace, config: Config) -> dict:
    """Measure the input pipeline, print the table and return the figures."""
    from kseg.datasets import registry
    from kseg.profiling import input_benchmark

    split = registry.open_split(config.data, config.data.train_split)
    figures = input_benchmark.measure_data(split, config, values.batches, values.rounds)
    print(input_benchmark.data_table(figures))
    print(input_benchmark.input_advice(figures, split))
    return dataclasses.asdict(figures)


def benchmark_model(values: argparse.Namespace, config: Config, size: tuple[int, int]) -> dict:
    """Measure the forms of a model, print the table and return the figures."""
    from kseg.datasets import registry
    from kseg.profiling import model_benchmark
    from kseg.profiling.model_forms import FORMS, Job

    job = Job(config, len(registry.find_dataset(config.data).classes), size, values.batch, values.threads)
    forms = [name for name in FORMS if values.xla or name != "XLA"]
    figures = model_benchmark.measure_model(job, forms, values.rounds, values.seconds)
    print(model_benchmark.model_table(figures))
    return dataclasses.asdict(figures)


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    config = cli.load_config(values)
    size = parse_size(values.size, config) if values.command == "model" else None
    quiet_start.import_tensorflow()
    figures = benchmark_data(values, config) if size is None else benchmark_model(values, config, size)
    if values.json:
        values.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    cli.run(main)
