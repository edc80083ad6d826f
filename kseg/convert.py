"""Published checkpoints as Keras weights, and the proof that they compute the same.

    python -m kseg.convert CHECKPOINT.pth --config encnet_cityscapes --out encnet.weights.h5
    python -m kseg.convert --config encnet_cityscapes:r101-d8-512x1024-80k --out encnet.weights.h5
    python -m kseg.convert RESNET.pth --backbone --config encnet_camvid --out start.weights.h5
    python -m kseg.convert --verify DIR

CHECKPOINT is a whole model of MMSegmentation or SSSegmentation: .pth or .pt in either of PyTorch's containers, or a
.npz under the same names. Without it, the variant's published file is taken from $KSEG_WEIGHTS, else from weights/,
or downloaded to there; `python -m kseg.train --list` prints the variants. PyTorch is not needed.

With --backbone it is a ResNet alone, of torchvision, mmpretrain or keras.applications (.pth, .npz, .h5), and the heads
keep the weights that train.seed draws: a whole model to start training from, by init.weights. Training also takes such
a file as it is, by init.backbone.

Every weight has to fit by name and shape, or what does not is printed, for both sides, and nothing is written.
init.skip lists what may be left out (its names of a backbone file, such as fc.*, are passed over here), and
init.channels=BGR says that the file was trained on BGR pictures, as those of caffe style are:

    --set init.skip=decode_head.conv_seg.*,auxiliary_head.* init.channels=BGR

NAME.provenance.json is written beside NAME.weights.h5: SHA-256, size and origin of the file, the system that wrote it,
what it tells of itself, config, counts, and what was done on the way. The written weights are read back and compared.

--verify runs a directory that the original system wrote: a checkpoint, pictures, and the numbers they give (see
kseg/conversion/verification.py). It prints the largest difference of each layer's output, of losses, gradients and running statistics,
marks the first one that is too large, and exits with status 1 if there is one.

Where our numbers and those of your PyTorch program differ although --verify is content, look at what surrounds the
network. Known causes, the most frequent first:

    mean and std       data.mean and data.std are subtracted and divided by on the 0..255 scale, in RGB order
    RGB or BGR         OpenCV reads BGR; the first kernel has to be of the same order as the pictures
    align_corners      model.align_corners is true for the checkpoints trained on 769x769 crops, else false
    padding            PyTorch pads by the same amount on both sides, Keras' "same" with strides does not
    BN epsilon         1e-5 in PyTorch, 1e-3 in keras.layers.BatchNormalization
    resizing           bilinear without antialiasing, once or twice: evaluate.resize_logits
    output stride      a checkpoint fits both strides, and multi-grid, contract_dilation and dilations leave no trace
                       in it: only the config says which
"""

import argparse
from pathlib import Path

from kseg import cli
from kseg.conversion import converter
from kseg.errors import ConfigError, WeightsError
from kseg.weights import downloads


def main(arguments: list[str] | None = None) -> int:
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m kseg.convert", description=first, epilog=rest,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT",
                        help="a .pth, .pt or .npz file of a whole model; default: the published one of the variant")
    cli.add_config_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="NAME.weights.h5", help="the file of Keras weights to write")
    parser.add_argument("--backbone", action="store_true",
                        help="CHECKPOINT holds a ResNet alone; the heads keep their first weights")
    parser.add_argument("--average", action="store_true",
                        help="take the moving average of the weights, where the file holds it beside the plain ones")
    parser.add_argument("--verify", type=Path, metavar="DIR",
                        help="compare our numbers with those an original system wrote to DIR; --config stands in for "
                             "its config.json")
    values = parser.parse_args(arguments)
    if values.verify:
        return _verify(values)
    if not values.out or not values.out.name.endswith(converter.OUT_SUFFIX) or values.out.name == converter.OUT_SUFFIX:
        raise ConfigError(f"--out NAME{converter.OUT_SUFFIX} is needed, got {str(values.out) if values.out else 'nothing'}")
    config = cli.load_config(values)
    if values.backbone and (values.average or not values.checkpoint):
        raise ConfigError("--backbone takes a CHECKPOINT, and no --average")
    origin = "" if values.checkpoint else converter.published_address(values.config)
    checkpoint = values.checkpoint or downloads.fetch(origin)
    if not checkpoint.is_file():
        raise WeightsError(f"{checkpoint} does not exist")
    record = converter.convert(checkpoint, config, values.out, origin, values.average, values.backbone)
    source = record["source"]
    print(f"{checkpoint}: {source['system']}, {record['tensors']} tensors, {record['parameters']:,} parameters, "
          f"sha256 {source['sha256'][:8]}")
    for note in record["notes"]:
        print(f"note: {note}")
    print(f"wrote {values.out} ({record['weights']['bytes'] / converter.MEBIBYTE:.1f} MiB), which reads back bit for bit, and "
          f"{converter.provenance_path(values.out).name}")
    return 0


def _verify(values: argparse.Namespace) -> int:
    if values.checkpoint or values.out or values.backbone or values.average:
        raise ConfigError("--verify reads DIR/model.pth and writes nothing; leave CHECKPOINT, --out, --backbone and "
                          "--average away")
    if not values.verify.is_dir():
        raise ConfigError(f"--verify takes a directory, and {values.verify} is none")
    if not values.config and values.overrides:
        raise ConfigError("--set changes a config; name it with --config")
    from kseg.conversion.original_configs import Original
    from kseg.conversion.verification import verify
    from kseg.datasets import registry

    if values.config:

        config = cli.load_config(values)
        ours = Original(config.model, config.loss, len(registry.find(config.data).classes))
        skip, _ = converter.split_skip(config.init.skip)
        report = verify(values.verify, ours, skip, config.init.channels)
    else:
        report = verify(values.verify)
    print(report.table())
    return 0 if report.ok else 1


if __name__ == "__main__":
    cli.run(main)
