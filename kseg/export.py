"""Export a trained model as a SavedModel for TensorFlow Serving, under the next version number.

    python -m kseg.export --workdir runs/camvid --out served/camvid
    python -m kseg.export --config encnet_camvid --weights FILE --out served/camvid --split val \\
        --set export.precision=bfloat16

    OUT/VERSION/saved_model.pb, variables/    the signatures are described in kseg.exporting.signatures
    OUT/VERSION/assets/                       classes.json, config.json, provenance.json
    OUT/VERSION/assets.extra/                 tf_serving_warmup_requests, replayed by a server before it answers
    OUT/VERSION/signatures.txt                names, types and shapes of all inputs and outputs

From Python, `export.export` is kseg.exporting.exporter.export, imported at its first use.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from kseg import cli
from kseg.system import quiet_start


def __getattr__(name: str) -> Callable:
    """Import the export function when it is used (PEP 562), because it takes TensorFlow seconds to load."""
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    quiet_start.import_tensorflow()
    from kseg.exporting.exporter import export

    return export


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.export", description=__doc__.splitlines()[0])
    cli.add_model_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True,
                        help="the directory that a server watches; DIR/VERSION is written")
    parser.add_argument("--version", type=int, metavar="N", help="default: one more than the highest in DIR")
    parser.add_argument("--split", metavar="SPLIT", help="also print the split's mIoU before and after the export")
    values = parser.parse_args(arguments)
    model, config, dataset = cli.load_model(values)
    from kseg.datasets import registry
    from kseg.exporting import exporter
    from kseg.inference import trained_model

    weights = values.weights or trained_model.best_weights(values.workdir)
    path = exporter.export(model, config, dataset, values.out, weights, values.version)
    if values.split:
        split = registry.open_split(config.data, values.split)
        exporter.compare_exported(model, path, config, dataset, split)
    return 0


if __name__ == "__main__":
    cli.run(main)
