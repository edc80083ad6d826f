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
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kseg import config as configs
from kseg import __version__, cli
from kseg.config import Config, files
from kseg.errors import ConfigError, WeightsError
from kseg.weights import downloads

SUFFIXES = (".pth", ".pt", ".npz")
BACKBONE_SUFFIXES = (*SUFFIXES, ".h5")
OUT_SUFFIX = ".weights.h5"
# How names begin in a file that holds a backbone alone.
BACKBONE_FILE_NAMES = ("stem.", "conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.", "head.fc.")
# Longer texts in a checkpoint are listings of its environment and config.
LONGEST_TEXT = 200
MEBIBYTE = 2**20


def split_skip(skip: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of init.skip that concern a whole model, and a note on those of a backbone file."""
    backbone = tuple(name for name in skip if name.startswith(BACKBONE_FILE_NAMES))
    notes = [f"init.skip speaks of a backbone file, which this is not: {', '.join(backbone)}"] if backbone else []
    return tuple(name for name in skip if name not in backbone), notes


def published_address(name: str) -> str:
    """Return the published address of the variant that --config names; raises ConfigError where there is none."""
    base, variant = files.split_name(name)
    file = files.read(base)
    if variant is None:
        rows = [row for row, value in file.variants.items() if value.weights]
        which = f", or one of these variants of {base}: {', '.join(rows)}" if rows else ""
        raise ConfigError(f"name a CHECKPOINT{which}")
    address = files.find_variant(file, variant).weights
    if not address:
        raise ConfigError(f"no weights are published for {name}; name a CHECKPOINT")
    return address


def load(model: Any, checkpoint: Path, config: Config, average: bool, backbone: bool) -> tuple[str, list[str]]:
    """Load a checkpoint, or a backbone alone, and return the system that wrote it and sentences on what was done.

    Raises WeightsError where it does not fit, or is of another kind.
    """
    from kseg.weights import foreign_files, loading

    kind, suffixes = ("backbone", BACKBONE_SUFFIXES) if backbone else ("whole model", SUFFIXES)
    if checkpoint.suffix not in suffixes:
        raise WeightsError(f"{checkpoint} is no checkpoint of a {kind}; choices: {', '.join(suffixes)}")
    channels = config.init.channels
    system = foreign_files.read_checkpoint(checkpoint, channels, average).system
    if backbone:
        notes = loading.load_backbone(model, checkpoint, config.init.skip, channels, config.data.std)
        return system, [*notes, f"the heads have their first weights, drawn with train.seed {config.train.seed}"]
    skip, notes = split_skip(config.init.skip)
    return system, notes + loading.load_checkpoint(model, checkpoint, config.model.head, skip, channels, average)


def convert(checkpoint: Path, config: Config, out: Path, origin: str = "", average: bool = False,
            backbone: bool = False) -> dict[str, Any]:
    """Write the checkpoint's weights to `out`, and their provenance beside it, which is returned.

    `origin` is the address it was fetched from, if it was. `average` takes the moving average of the weights where the
    file holds both; `backbone` says that it holds no heads, which then begin anew. Raises WeightsError, and writes
    nothing, where the checkpoint does not fit the config's model, and where what was written does not read back as it
    was; WorkdirError where it cannot be written.
    """
    import keras

    from kseg import models
    from kseg.datasets import registry
    from kseg.system import atomic_files
    from kseg.training import working_directory
    from kseg.weights import loading

    dataset = registry.find(config.data)
    keras.utils.set_random_seed(config.train.seed)
    model = models.build(config.model, len(dataset.classes))
    system, notes = load(model, checkpoint, config, average, backbone)
    variables = loading.mmseg_names(model)
    record = {
        "source": {"origin": origin or str(checkpoint.resolve()), "file": checkpoint.name, **_fingerprint(checkpoint),
                   "system": system, "meta": read_meta(checkpoint)},
        "config": {"name": config.name, "values": configs.to_dict(config), "dataset": dataset.name,
                   "classes": len(dataset.classes)},
        "tensors": len(variables),
        "parameters": sum(_size(variable) for variable in variables.values() if variable.trainable),
        "statistics": sum(_size(variable) for variable in variables.values() if not variable.trainable),
        "notes": notes, "kseg": __version__}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make the directory {out.parent}: {error.strerror}") from None
    # Not under its name before it has been read back. What a killed conversion left behind is written over.
    unchecked = out.with_name(f".unchecked.{out.name}")
    try:
        working_directory.save_weights(model, unchecked)
        require_equal(model, unchecked, config, len(dataset.classes))
        # Weights never stand beside the provenance of others.
        provenance_path(out).unlink(missing_ok=True)
        os.replace(unchecked, out)
    except OSError as error:
        raise WeightsError(f"cannot write to {out}: {error.strerror or error}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    record["weights"] = {"file": out.name, **_fingerprint(out)}
    atomic_files.write_text(provenance_path(out), json.dumps(record, indent=2) + "\n")
    return record


def require_equal(model: Any, path: Path, config: Config, classes: int) -> None:
    """Raise WeightsError unless a fresh model that reads the file has the model's weights, bit for bit."""
    import numpy as np

    from kseg import models
    from kseg.weights import loading

    fresh = models.build(config.model, classes)
    loading.load_keras(fresh, path)
    written, found = loading.mmseg_names(model), loading.mmseg_names(fresh)
    different = [name for name in written
                 if not np.array_equal(np.asarray(written[name].value), np.asarray(found[name].value))]
    if different:
        raise WeightsError(f"{path} does not hold what was written: {len(different)} of {len(written)} weights differ, "
                           f"the first is {different[0]}; is the disk sound?")


def _size(variable: Any) -> int:
    size = 1
    for side in variable.shape:
        size *= side
    return size


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def provenance_path(out: Path) -> Path:
    """Return NAME.provenance.json for NAME.weights.h5."""
    return out.with_name(out.name.removesuffix(OUT_SUFFIX) + ".provenance.json")


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """Return what a .pth file tells of itself in plain short values: versions, dates, steps, the number of classes."""
    from kseg.weights import torch_files

    contents = torch_files.read(checkpoint) if checkpoint.suffix in (".pth", ".pt") else None
    if not isinstance(contents, Mapping):
        return {}
    meta = contents.get("meta")
    if not isinstance(meta, Mapping):
        # SSSegmentation's training checkpoints keep them at the top.
        meta = {key: contents.get(key) for key in ("cur_epoch", "cur_iter")}
    values = {str(key): value for key, value in meta.items() if _is_short(value)}
    groups = [meta, *(value for value in meta.values() if isinstance(value, Mapping))]
    found = [group.get(key) for group in groups for key in ("CLASSES", "classes")]
    names = next((names for names in found if isinstance(names, (list, tuple))), None)
    return values | ({} if names is None else {"classes": len(names)})


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or isinstance(value, str) and len(value) <= LONGEST_TEXT


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
    if not values.out or not values.out.name.endswith(OUT_SUFFIX) or values.out.name == OUT_SUFFIX:
        raise ConfigError(f"--out NAME{OUT_SUFFIX} is needed, got {str(values.out) if values.out else 'nothing'}")
    config = cli.load_config(values)
    if values.backbone and (values.average or not values.checkpoint):
        raise ConfigError("--backbone takes a CHECKPOINT, and no --average")
    origin = "" if values.checkpoint else published_address(values.config)
    checkpoint = values.checkpoint or downloads.fetch(origin)
    if not checkpoint.is_file():
        raise WeightsError(f"{checkpoint} does not exist")
    record = convert(checkpoint, config, values.out, origin, values.average, values.backbone)
    source = record["source"]
    print(f"{checkpoint}: {source['system']}, {record['tensors']} tensors, {record['parameters']:,} parameters, "
          f"sha256 {source['sha256'][:8]}")
    for note in record["notes"]:
        print(f"note: {note}")
    print(f"wrote {values.out} ({record['weights']['bytes'] / MEBIBYTE:.1f} MiB), which reads back bit for bit, and "
          f"{provenance_path(values.out).name}")
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
        skip, _ = split_skip(config.init.skip)
        report = verify(values.verify, ours, skip, config.init.channels)
    else:
        report = verify(values.verify)
    print(report.table())
    return 0 if report.ok else 1


if __name__ == "__main__":
    cli.run(main)
