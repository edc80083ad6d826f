"""Convert a checkpoint of an original system to a .weights.h5 file with its provenance."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kseg import __version__
from kseg import config as configs
from kseg.config import Config, files
from kseg.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    import keras

OUT_SUFFIX = ".weights.h5"
# Prefixes of the names in a backbone file.
BACKBONE_FILE_NAMES = ("stem.", "conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.", "head.fc.")
# Longer texts in a checkpoint's metadata are listings of its environment and config.
MAX_TEXT_LENGTH = 200
MEBIBYTE = 2**20


def split_skip_patterns(skip: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the patterns of init.skip for a whole model, and a note on the ignored ones for a backbone file."""
    backbone = tuple(name for name in skip if name.startswith(BACKBONE_FILE_NAMES))
    whole = tuple(name for name in skip if name not in backbone)
    if not backbone:
        return whole, []
    return whole, [f"init.skip patterns for backbone files were ignored: {', '.join(backbone)}"]


def published_address(name: str) -> str:
    """Return the address of a variant's published checkpoint.

    `name` is CONFIG:VARIANT. Raises ConfigError if no checkpoint is published for it.
    """
    base, variant = files.split_name(name)
    file = files.read_config_file(base)
    if variant is None:
        published = [row for row, value in file.variants.items() if value.weights]
        choices = f", or one of these variants of {base}: {', '.join(published)}" if published else ""
        raise ConfigError(f"name a CHECKPOINT{choices}")
    address = files.find_variant(file, variant).weights
    if not address:
        raise ConfigError(f"no weights are published for {name}; name a CHECKPOINT")
    return address


def load_original_weights(
    model: "keras.Model", checkpoint: Path, config: Config, average: bool, backbone: bool
) -> tuple[str, list[str]]:
    """Load a checkpoint, or only a backbone, into a model.

    Returns the system that wrote the file, and notes on the loaded weights. Raises WeightsError if the file does not
    fit the model or is of another kind.
    """
    from kseg.weights import file_kinds, foreign_files, loading

    if file_kinds.find_kind(checkpoint) == "hdf5" and not backbone:
        raise WeightsError(
            f"{checkpoint} is a file of Keras, which needs no conversion of a whole model; with "
            "--backbone, a file of keras.applications is converted"
        )
    channels = config.init.channels
    system = foreign_files.open_foreign_checkpoint(checkpoint, channels, average).system
    if backbone:
        notes = loading.load_backbone(model, checkpoint, config.init.skip, channels, config.data.std)
        return system, [*notes, f"the heads have random initial weights, drawn with train.seed {config.train.seed}"]
    skip, notes = split_skip_patterns(config.init.skip)
    return system, notes + loading.load_checkpoint(model, checkpoint, config.model.head, skip, channels, average)


def convert(
    checkpoint: Path, config: Config, out: Path, origin: str = "", average: bool = False, backbone: bool = False
) -> dict[str, Any]:
    """Convert a checkpoint to a .weights.h5 file, with its provenance in a file next to it.

    The written file is read back and compared before it gets its name.

    Args:
        checkpoint: A file of MMSegmentation or SSSegmentation, or of a backbone.
        config: The config whose model the checkpoint has to fit.
        out: Path of the .weights.h5 file.
        origin: Address from which the checkpoint was downloaded, if any.
        average: Whether to load the EMA weights of a file that has two sets of weights.
        backbone: Whether the file has only a backbone; the heads then keep random initial weights.

    Returns:
        The provenance.

    Raises:
        WeightsError: The checkpoint does not fit the model, or the written file differs from the model. Nothing is
            written.
        WorkdirError: The file cannot be written.
    """
    import keras

    from kseg import models
    from kseg.datasets import registry
    from kseg.system import atomic_files
    from kseg.weights import keras_files, loading

    dataset = registry.find_dataset(config.data)
    keras.utils.set_random_seed(config.train.seed)
    model = models.build(config.model, len(dataset.classes))
    system, notes = load_original_weights(model, checkpoint, config, average, backbone)
    variables = loading.mmseg_names(model)
    record = {
        "source": {
            "origin": origin or str(checkpoint.resolve()),
            "file": checkpoint.name,
            **_fingerprint(checkpoint),
            "system": system,
            "meta": read_meta(checkpoint),
        },
        "config": {
            "name": config.name,
            "values": configs.to_dict(config),
            "dataset": dataset.name,
            "classes": len(dataset.classes),
        },
        "tensors": len(variables),
        "parameters": sum(_size(variable) for variable in variables.values() if variable.trainable),
        "statistics": sum(_size(variable) for variable in variables.values() if not variable.trainable),
        "notes": notes,
        "kseg": __version__,
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot create the directory {out.parent}: {error.strerror}") from None
    # The file gets its final name only after it has been verified. A killed conversion's file is overwritten.
    unchecked = out.with_name(f".unchecked.{out.name}")
    try:
        keras_files.save_weights(model, unchecked)
        require_equal(model, unchecked, config, len(dataset.classes))
        # An old provenance must never describe new weights.
        provenance_path(out).unlink(missing_ok=True)
        os.replace(unchecked, out)
    except OSError as error:
        raise WeightsError(f"cannot write to {out}: {error.strerror or error}") from None
    finally:
        unchecked.unlink(missing_ok=True)
    record["weights"] = {"file": out.name, **_fingerprint(out)}
    atomic_files.write_text(provenance_path(out), json.dumps(record, indent=2) + "\n")
    return record


def require_equal(model: "keras.Model", path: Path, config: Config, classes: int) -> None:
    """Raise WeightsError unless a new model that loads the file equals the given model bit for bit."""
    import numpy as np

    from kseg import models
    from kseg.weights import loading

    loaded = models.build(config.model, classes)
    loading.load_keras(loaded, path)
    expected, actual = loading.mmseg_names(model), loading.mmseg_names(loaded)
    different = [
        name
        for name in expected
        if not np.array_equal(np.asarray(expected[name].value), np.asarray(actual[name].value))
    ]
    if different:
        raise WeightsError(
            f"{path} differs from what was written in {len(different)} of {len(expected)} weights, "
            f"first in {different[0]}; check the disk"
        )


def _size(variable: "keras.Variable") -> int:
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
    """Return the short metadata of a .pth file: versions, dates, steps and the number of classes."""
    from kseg.weights import file_kinds, torch_files

    contents = torch_files.open_torch_file(checkpoint) if file_kinds.find_kind(checkpoint) == "torch" else None
    if not isinstance(contents, Mapping):
        return {}
    meta = contents.get("meta")
    if not isinstance(meta, Mapping):
        # Training checkpoints of SSSegmentation have these entries at the top.
        meta = {key: contents.get(key) for key in ("cur_epoch", "cur_iter")}
    values = {str(key): value for key, value in meta.items() if _is_short(value)}
    groups = [meta, *(value for value in meta.values() if isinstance(value, Mapping))]
    candidates = [group.get(key) for group in groups for key in ("CLASSES", "classes")]
    names = next((names for names in candidates if isinstance(names, (list, tuple))), None)
    return values | ({} if names is None else {"classes": len(names)})


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or isinstance(value, str) and len(value) <= MAX_TEXT_LENGTH
