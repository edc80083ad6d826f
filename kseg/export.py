"""Export a trained model under the next version number, for TensorFlow Serving or another runtime.

    python -m kseg.export --workdir runs/camvid --out served/camvid
    python -m kseg.export --config encnet_camvid --weights FILE --out served/camvid --split val \\
        --set export.precision=bfloat16
    TF_ENABLE_ONEDNN_OPTS=1 python -m kseg.export --workdir runs/camvid --out served/camvid --calibrate train:200 \\
        --set export.precision=int8 export.device=cpu
    python -m kseg.export --workdir runs/camvid --out served/camvid --format savedmodel onnx \\
        --set export.size=512,1024

    OUT/VERSION/saved_model.pb, variables/    the signatures are described in kseg.exporting.signatures
    OUT/VERSION/assets/                       classes.json, config.json, provenance.json; of int8 also int8.json
    OUT/VERSION/assets.extra/                 tf_serving_warmup_requests, replayed by a server before it answers
    OUT/VERSION/signatures.txt                names, types and shapes of all inputs and outputs
    OUT/VERSION/model.onnx                    --format onnx: see kseg.exporting.class_maps; the assets are inside
    OUT/VERSION/model.xml, model.bin          --format openvino
    OUT/VERSION/model.tflite                  --format litert

An int8 export runs on x86-64 CPUs only. It is refused if it loses more than export.largest_loss points of mIoU.

From Python, `export.export` is kseg.exporting.exporter.export, imported at its first use.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from kseg import cli
from kseg.errors import ConfigError
from kseg.exporting import formats
from kseg.inference import trained_model
from kseg.system import quiet_start


def __getattr__(name: str) -> Callable:
    """Import the export function when it is used (PEP 562), because it takes TensorFlow seconds to load."""
    if name != "export":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    quiet_start.import_tensorflow()
    from kseg.exporting.exporter import export

    return export


def calibration_choice(precision: str, text: str | None) -> tuple[str, int] | None:
    """Return the split and the number of images of --calibrate, or None for a precision that needs none.

    Args:
        precision: export.precision.
        text: The value of --calibrate.

    Raises:
        ConfigError: The value is missing, malformed or out of place.

    Example:
        >>> calibration_choice("int8", "train:200")
        ('train', 200)
    """
    if precision != "int8":
        if text is not None:
            raise ConfigError(f"--calibrate serves export.precision=int8, but export.precision={precision}")
        return None
    if text is None:
        raise ConfigError(
            "export.precision=int8 measures the ranges of its tensors on images: add --calibrate "
            "SPLIT:COUNT, such as --calibrate train:200"
        )
    split, _, count = text.rpartition(":")
    if not split or not (count.isascii() and count.isdigit() and int(count)):
        raise ConfigError(f"--calibrate takes SPLIT:COUNT with at least one image, such as train:200; got {text!r}")
    return split, int(count)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("kseg.export"), description=__doc__.splitlines()[0])
    cli.add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        required=True,
        help="the directory that a server watches; DIR/VERSION is written",
    )
    parser.add_argument("--version", type=int, metavar="N", help="default: one more than the highest in DIR")
    parser.add_argument(
        "--format",
        dest="formats",
        choices=formats.NAMES,
        nargs="+",
        default=[formats.SAVED_MODEL],
        help=f"one or more formats, written into one version: {', '.join(formats.NAMES)} (default: "
        f"{formats.SAVED_MODEL}); all but {formats.SAVED_MODEL} take whole images at one scale",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="also print the split's mIoU before and after the export; int8 always does (default: data.val_split)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="SPLIT:COUNT",
        help="the images on which export.precision=int8 measures its ranges, such as train:200; the "
        "export runs on x86-64 CPUs with TF_ENABLE_ONEDNN_OPTS=1",
    )
    values = parser.parse_args(arguments)
    checked = cli.model_config(values)
    calibrated = calibration_choice(checked.export.precision, values.calibrate)
    formats.require_formats(values.formats, trained_model.with_augmentation(checked) if values.tta else checked)
    if values.split:
        formats.require_runtimes(values.formats)
    model, config, dataset = cli.load_model(values)
    from kseg.datasets import registry
    from kseg.exporting import exporter
    from kseg.exporting.calibration import Calibration
    from kseg.tracking import trackers

    calibration = None
    if calibrated:
        split, test_split = (
            registry.open_split(config.data, name) for name in (calibrated[0], values.split or config.data.val_split)
        )
        calibration = Calibration(split, calibrated[1], test_split)
    weights = values.weights or trained_model.best_weights(values.workdir)
    path = exporter.export(
        model, config, dataset, values.out, weights, values.version, calibration=calibration, formats=values.formats
    )
    if values.workdir:
        trackers.log_results(config, values.workdir, [path], f"export/{path.name}", {})
    if values.split and not calibration:
        split = registry.open_split(config.data, values.split)
        exporter.compare_exported(model, path, config, dataset, split, formats=values.formats)
    return 0


if __name__ == "__main__":
    cli.run(main)
