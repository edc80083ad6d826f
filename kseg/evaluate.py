"""Evaluation at original resolution: every image of a split, one confusion matrix, and a report to look at.

    python -m kseg.evaluate --workdir runs/camvid --split test --out runs/camvid/test
    python -m kseg.evaluate --config encnet_camvid --weights FILE --split test

On all GPUs of a host, and on all hosts where TF_CONFIG names them: the same command on each.
"""

import argparse
from pathlib import Path


from kseg import cli
from kseg.datasets import registry
from kseg.distributed import hosts
from kseg.evaluation import evaluator
from kseg.inference import trained_model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.evaluate", description=__doc__.splitlines()[0])
    cli.add_model_arguments(parser)
    parser.add_argument("--split", help="which split to count (default: the config's data.val_split)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="where to write report.html, metrics.json, per_image.csv, confusion.npy and "
                             "predictions.png (default with --workdir: WORKDIR/SPLIT)")
    parser.add_argument("--cpu-replicas", type=int, default=1, metavar="N",
                        help="without a GPU: split the CPU into N virtual devices (default 1)")
    values = parser.parse_args(arguments)
    with hosts.exit_on_host_loss():
        strategy = hosts.claim_hosts(values.cpu_replicas)
        with strategy.scope():
            model, config, dataset = cli.load_model(values)
        split = values.split or config.data.val_split
        out = values.out or (values.workdir / split if values.workdir else None)
        weights = values.weights or trained_model.best_weights(values.workdir)
        chief = hosts.is_chief(strategy)
        evaluator.evaluate(model, config, dataset, registry.open_split(config.data, split), out, print if chief else lambda line: None, strategy, weights)
    return 0


if __name__ == "__main__":
    cli.run(main)
