"""Evaluate a model on every image of a split at original resolution, and write a report.

    python -m kseg.evaluate --workdir runs/camvid --split test --out runs/camvid/test
    python -m kseg.evaluate --config encnet_camvid --weights FILE --split test

The command uses all GPUs of a host, and all hosts that TF_CONFIG lists: run it on each of them.

From Python, `evaluate.evaluate` is kseg.evaluation.evaluator.evaluate, imported on first use.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from kseg import cli
from kseg.system import quiet_start


def __getattr__(name: str) -> Callable:
    """Import the evaluation function on first use (PEP 562), because TensorFlow takes seconds to import."""
    if name != "evaluate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    quiet_start.import_tensorflow(optional_packages=True)
    from kseg.evaluation.evaluator import evaluate

    return evaluate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("kseg.evaluate"), description=__doc__.splitlines()[0])
    cli.add_model_arguments(parser)
    parser.add_argument("--split", help="split to evaluate (default: data.val_split of the config)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory for report.html, metrics.json, per_image.csv, confusion.npy and "
        "predictions.png (default with --workdir: WORKDIR/SPLIT; otherwise none are written)",
    )
    parser.add_argument(
        "--cpu-replicas",
        type=int,
        default=1,
        metavar="N",
        help="number of virtual devices to split the CPU into, on a host without GPUs (default: 1)",
    )
    values = parser.parse_args(arguments)
    # Invalid arguments are reported before TensorFlow is imported and before this host waits for the others.
    cli.model_config(values)
    quiet_start.import_tensorflow()
    from kseg.datasets import registry
    from kseg.distributed import hosts
    from kseg.evaluation import evaluator
    from kseg.inference import trained_model

    with hosts.exit_on_host_loss():
        strategy = hosts.claim_hosts(values.cpu_replicas)
        with strategy.scope():
            model, config, dataset = cli.load_model(values)
        name = values.split or config.data.val_split
        out = values.out or (values.workdir / name if values.workdir else None)
        weights = values.weights or trained_model.best_weights(values.workdir)
        report = print if hosts.is_chief(strategy) else lambda line: None
        split = registry.open_split(config.data, name)
        scores = evaluator.evaluate(model, config, dataset, split, out, report, strategy, weights)
        if values.workdir and hosts.is_chief(strategy):
            evaluator.track_evaluation(config, values.workdir, out, scores, report)
    return 0


if __name__ == "__main__":
    cli.run(main)
