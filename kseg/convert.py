"""Convert a published checkpoint to Keras weights, and verify that they compute the same.

    python -m kseg.convert CHECKPOINT.pth --config encnet_cityscapes --out encnet.weights.h5
    python -m kseg.convert --config encnet_cityscapes:r101-d8-512x1024-80k --out encnet.weights.h5
    python -m kseg.convert RESNET.pth --backbone --config encnet_camvid --out start.weights.h5
    python -m kseg.convert --verify DIR

CHECKPOINT is a whole model of MMSegmentation or SSSegmentation: a .pth or .pt file in either of PyTorch's containers,
or a .npz file with the same names. Without CHECKPOINT, the variant's published file is taken from $KSEG_WEIGHTS (by
default weights/) or downloaded to it; `python -m kseg.train --list` prints the variants. PyTorch is not needed.

With --backbone, CHECKPOINT is a ResNet of torchvision, mmpretrain or keras.applications (.pth, .npz, .h5). The heads
keep the initial weights drawn from train.seed, and init.weights can start a training from the result. Training also
reads such a file directly, with init.backbone.

Every weight has to match in name and shape. Otherwise the mismatches of both sides are printed and nothing is written.
init.skip lists the weights that may be missing (its names of a backbone file, such as fc.*, are ignored here), and
init.channels=BGR declares that the model was trained on BGR images, as caffe-style models are:

    --set init.skip=decode_head.conv_seg.*,auxiliary_head.* init.channels=BGR

NAME.provenance.json is written next to NAME.weights.h5. It holds the SHA-256, size and origin of the file, the system
that wrote it, the metadata it contains, the config, counts, and notes on the conversion. The written weights are read
back and compared.

--verify runs a directory written by the original system: a checkpoint, images, and the numbers they produce (see
kseg/conversion/verification.py). It prints the largest difference of every layer's output, of losses, gradients and
running statistics, marks the first one that is too large, and exits with status 1 if there is one.

If our numbers and those of your PyTorch program differ although --verify passes, check what surrounds the network.
Known causes, the most frequent first:

    mean and std       data.mean is subtracted and data.std divided by on the 0..255 scale, in RGB order
    RGB or BGR         OpenCV reads BGR; the first kernel must have the same channel order as the images
    align_corners      model.align_corners is true for the checkpoints trained on 769x769 crops, otherwise false
    padding            PyTorch pads by the same amount on both sides, Keras' "same" with strides does not
    BN epsilon         1e-5 in PyTorch, 1e-3 in keras.layers.BatchNormalization
    resizing           bilinear without antialiasing, once or twice: evaluate.resize_logits
    output stride      a checkpoint fits both strides, and multi-grid, contract_dilation and dilations leave no trace
                       in it: only the config tells them apart
"""

import argparse
from pathlib import Path

from kseg import cli
from kseg.conversion import converter
from kseg.errors import ConfigError, WeightsError
from kseg.system import quiet_start
from kseg.weights import downloads


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=cli.program("kseg.convert"),
        description=first,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        metavar="CHECKPOINT",
        help="a .pth, .pt or .npz file of a whole model (default: the variant's published file)",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="NAME.weights.h5", help="the file of Keras weights to write")
    parser.add_argument(
        "--backbone", action="store_true", help="CHECKPOINT holds only a ResNet; the heads keep their initial weights"
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="convert the EMA weights, if the file contains them besides the plain ones",
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="DIR",
        help="compare our numbers with those that an original system wrote to DIR; --config replaces its config.json",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    return _verify(values) if values.verify else _convert(values)


def _convert(values: argparse.Namespace) -> int:
    if not values.out or not values.out.name.endswith(converter.OUT_SUFFIX) or values.out.name == converter.OUT_SUFFIX:
        raise ConfigError(
            f"--out NAME{converter.OUT_SUFFIX} is needed, got {str(values.out) if values.out else 'nothing'}"
        )
    config = cli.load_config(values)
    if values.backbone and (values.average or not values.checkpoint):
        raise ConfigError("--backbone takes a CHECKPOINT, and no --average")
    origin = "" if values.checkpoint else converter.published_address(values.config)
    checkpoint = values.checkpoint or downloads.fetch(origin)
    if not checkpoint.is_file():
        raise WeightsError(f"{checkpoint} does not exist")
    quiet_start.import_tensorflow()
    record = converter.convert(checkpoint, config, values.out, origin, values.average, values.backbone)
    source = record["source"]
    print(
        f"{checkpoint}: {source['system']}, {record['tensors']} tensors, {record['parameters']:,} parameters, "
        f"sha256 {source['sha256'][:8]}"
    )
    for note in record["notes"]:
        print(f"note: {note}")
    print(
        f"wrote {values.out} ({record['weights']['bytes'] / converter.MEBIBYTE:.1f} MiB), which reads back bit for "
        f"bit, and {converter.provenance_path(values.out).name}"
    )
    return 0


def _verify(values: argparse.Namespace) -> int:
    if values.checkpoint or values.out or values.backbone or values.average:
        raise ConfigError(
            "--verify reads DIR/model.pth and writes nothing; omit CHECKPOINT, --out, --backbone and --average"
        )
    if not values.verify.is_dir():
        raise ConfigError(f"--verify takes a directory, and {values.verify} is not one")
    if not values.config and values.overrides:
        raise ConfigError("--set changes a config; name it with --config")
    config = cli.load_config(values) if values.config else None
    quiet_start.import_tensorflow()
    from kseg.conversion.original_configs import Original
    from kseg.conversion.verification import verify
    from kseg.datasets import registry

    if config:
        ours = Original(config.model, config.loss, len(registry.find_dataset(config.data).classes))
        skip, _ = converter.split_skip_patterns(config.init.skip)
        report = verify(values.verify, ours, skip, config.init.channels)
    else:
        report = verify(values.verify)
    print(report.table())
    return 0 if report.ok else 1


if __name__ == "__main__":
    cli.run(main)
