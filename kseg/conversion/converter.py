"""Convert a checkpoint of an original system to a .weights.h5 file with its provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
import hashlib
import json
import os

from kseg import config as configs
from kseg import __version__
from kseg.config import Config, files
from kseg.errors import ConfigError, WeightsError

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
    from kseg.weights import keras_files, loading

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
        keras_files.save_weights(model, unchecked)
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
