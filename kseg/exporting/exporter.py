"""Write a model as a SavedModel for TF Serving or for other runtimes, and compare it with the Keras model."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg import config as configs
from kseg.config import Config
from kseg.datasets.registry import Dataset, Split
from kseg.errors import ConfigError, DataError, UserError
from kseg.evaluation import confusion, metrics, results
from kseg.evaluation.counter import Counter
from kseg.exporting import formats as format_list
from kseg.exporting import int8_network, litert_file, onnx_file, openvino_file, warmup
from kseg.exporting.calibration import Calibration
from kseg.exporting.class_maps import ClassMaps, plain_network
from kseg.exporting.precisions import export_network
from kseg.exporting.signatures import Served
from kseg.inference.prediction import protocol_of
from kseg.input_pipeline import batching
from kseg.system import atomic_files
from kseg.system.paths import path_fault
from kseg.system.progress import Progress

# Formats other than the SavedModel -> function of a class map function, the metadata and the directory.
WRITERS = {"onnx": onnx_file.write, "litert": litert_file.write, "openvino": openvino_file.write}


def export(
    model: keras.Model,
    config: Config,
    dataset: Dataset,
    out: Path,
    weights: Path | None = None,
    version: int | None = None,
    report: Callable[[str], None] = print,
    calibration: Calibration | None = None,
    formats: Sequence[str] = (format_list.SAVED_MODEL,),
) -> Path:
    """Write a trained model in one or more formats, OUT/VERSION.

    The version appears under its name by one rename, so a server that watches `out` sees it complete or not at all.

    Args:
        model: A model with the variables of a training.
        config: Its config; the section `export` holds the options, `evaluate` the test protocol.
        dataset: Its dataset record: the classes and the palette become assets.
        out: The directory that the server watches.
        weights: The file of the weights, recorded in the provenance.
        version: The version number; by default one more than the highest in `out`.
        report: Receives progress lines.
        calibration: The images for the precision int8, which needs them.
        formats: Some of kseg.exporting.formats.NAMES.

    Returns:
        The path of the new version.

    Raises:
        UserError: The version already exists, it cannot be written, TensorFlow cannot work with its path, int8 loses
            more than `config.export.largest_loss`, or a library of a format is not installed.
        ConfigError: `config.export.precision` or a format is unknown, a format cannot do what the config asks for, or
            the precision is int8 without a calibration or where TensorFlow cannot compute it.
        DataError: An image of the calibration cannot be read.

    Example:
        >>> from kseg.inference import trained_model
        >>> model, config, dataset = trained_model.load_trained(workdir)
        >>> path = export(model, config, dataset, out / "served", report=lambda line: None)
        >>> path.name, sorted(file.name for file in (path / "assets").iterdir())
        ('1', ['classes.json', 'config.json', 'provenance.json'])
    """
    if fault := path_fault(out):
        raise UserError(f"--out {out} {fault}")
    format_list.require_formats(formats, config)
    version = next_version(out) if version is None else version
    options = config.export
    size = tuple(options.size or config.augment.crop)
    path = out / str(version)
    if path.exists():
        raise UserError(f"{path} already exists: choose another --version, or omit it to use {next_version(out)}")
    if (options.precision == "int8") != (calibration is not None):
        raise ConfigError(
            f"export.precision={options.precision}: int8 needs a calibration, and no other precision takes one"
        )
    quantized = int8_network.quantize_network(model, config, dataset, calibration, report) if calibration else None
    # The name is not a number, so no server loads it. It is in the same directory, so one rename publishes it.
    temporary = out / f".{version}-{uuid.uuid4().hex}.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            contents = asset_contents(config, dataset, weights)
            if quantized:
                contents["int8.json"] = json.dumps(quantized.facts, indent=1) + "\n"
            if format_list.SAVED_MODEL in formats:
                network = (
                    quantized.network
                    if quantized
                    else export_network(model, config.model, options.precision, options.device)
                )
                served = Served(network, protocol_of(config), size, options.max_pixels, options.all_scores)
                with tempfile.TemporaryDirectory() as directory:
                    served.assets = [
                        tf.saved_model.Asset(str(path)) for path in write_assets(Path(directory), contents)
                    ]
                    tf.saved_model.save(served, str(temporary), signatures=served.functions)
                atomic_files.write_text(temporary / "signatures.txt", signature_text(temporary))
                warmup.write_warmup(temporary, size, options.warmup_batches, report)
            write_others(model, config, formats, contents, temporary)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    report(f"wrote {path} ({megabytes:.0f} MB)")
    return path


def next_version(out: Path) -> int:
    """Return one more than the highest version in a directory, or 1 if it has none."""
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0) + 1


def asset_contents(config: Config, dataset: Dataset, weights: Path | None) -> dict[str, str]:
    """Return the classes, the config and the provenance of an export as JSON, by file name."""
    provenance = results.provenance(dataset.name, config.data.directory, weights)
    return {
        "classes.json": json.dumps({"classes": dataset.classes, "palette": dataset.palette}, indent=1) + "\n",
        "config.json": configs.to_json(config),
        "provenance.json": json.dumps(provenance, indent=1) + "\n",
    }


def write_assets(directory: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write the asset files of an export and return their paths."""
    for name, text in contents.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in contents]


def write_others(
    model: keras.Model, config: Config, formats: Sequence[str], contents: Mapping[str, str], directory: Path
) -> None:
    """Write a model in all of the formats but the SavedModel, with the contents of the assets inside each file."""
    others = [name for name in formats if name != format_list.SAVED_MODEL]
    if not others:
        return
    directory.mkdir(exist_ok=True)
    network = plain_network(model)
    for name in others:
        maps = ClassMaps(network, protocol_of(config), format_list.image_size(name, config))
        WRITERS[name](maps, contents, directory)


def signature_text(directory: Path) -> str:
    """Return the signatures of a SavedModel as text, with one line per input and output, sorted."""
    signatures = tf.saved_model.load(str(directory)).signatures
    lines = []
    for name in sorted(signatures):
        lines.append(name)
        specs = {"in ": signatures[name].structured_input_signature[1], "out": signatures[name].structured_outputs}
        for kind, tensors in specs.items():
            for key in sorted(tensors):
                shape = ", ".join("?" if side is None else str(side) for side in tensors[key].shape)
                lines.append(f"  {kind} {key}: {tensors[key].dtype.name} [{shape}]")
    return "\n".join(lines) + "\n"


def load_saved_model(directory: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a SavedModel's signature predict_tensor as a function from images to class maps.

    It maps images, uint8 (N, H, W, 3), to class maps, uint8 (N, H, W), with the threads of this process.
    """
    # The signature belongs to the model, which has to stay in memory.
    model = tf.saved_model.load(str(directory))
    return lambda images: model.signatures["predict_tensor"](image=tf.constant(images))["class_map"].numpy()


LOADERS = {
    format_list.SAVED_MODEL: load_saved_model,
    "onnx": onnx_file.load,
    "litert": litert_file.load,
    "openvino": openvino_file.load,
}


def exported_accuracy(
    predict: Callable[[np.ndarray], np.ndarray], dataset: Dataset, split: Split, progress: Progress | None = None
) -> dict:
    """Return the metrics of an exported model on a whole split.

    Args:
        predict: A function of LOADERS, from images to class maps.
        dataset: The dataset record, which has the classes.
        split: The split.
        progress: Receives the number of images done.
    """
    matrix = np.zeros((len(dataset.classes),) * 2, np.int64)
    for count, example in enumerate(batching.eval_examples(split), 1):
        ids = predict(example["image"][None].numpy())
        matrix += confusion.confusion(example["label"][None], ids, len(dataset.classes)).numpy()
        if progress:
            progress.update(count)
    return metrics.summarize(matrix, dataset.classes)


def compare_exported(
    model: keras.Model,
    path: Path,
    config: Config,
    dataset: Dataset,
    split: Split,
    report: Callable[[str], None] = print,
    formats: Sequence[str] = (format_list.SAVED_MODEL,),
) -> None:
    """Report the mIoU of a model and of its export on a split, each format in its own runtime.

    Raises:
        UserError: A runtime is not installed.
        DataError: An image has another size than the one that a format takes.
    """
    format_list.require_runtimes(formats)
    names = split.names
    counter = Counter(model, protocol_of(config), len(dataset.classes), tf.distribute.get_strategy())
    before = metrics.summarize(counter.count(split, Progress(len(names), "images", report)).matrix, dataset.classes)
    for name in formats:
        predict = LOADERS[name](path, os.cpu_count())
        if name != format_list.SAVED_MODEL:
            predict = with_size(predict, name, format_list.image_size(name, config))
        after = exported_accuracy(predict, dataset, split, Progress(len(names), "images", report))
        exported = "exported" if name == format_list.SAVED_MODEL else f"exported as {name}"
        report(
            f"mIoU on {len(names)} of {len(names)} images of {dataset.name} {split.name}: "
            f"{100 * before['mIoU']:.3f} before, {100 * after['mIoU']:.3f} {exported}, "
            f"{100 * (after['mIoU'] - before['mIoU']):+.3f}"
        )


def with_size(
    predict: Callable[[np.ndarray], np.ndarray], name: str, size: tuple[int, int] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that raises DataError for images whose size the format `name` does not take."""

    def predict_sized(images: np.ndarray) -> np.ndarray:
        if size and images.shape[1:3] != size:
            raise DataError(
                f"--split has an image of {images.shape[1]},{images.shape[2]} pixels, but the {name} file "
                f"takes {size[0]},{size[1]}: set export.size to the size of the images, or omit --split"
            )
        return predict(images)

    return predict_sized
