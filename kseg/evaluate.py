"""Evaluation at original resolution: every image of a split, one confusion matrix.

    python -m kseg.evaluate --workdir runs/camvid --split test --out runs/camvid/test
    python -m kseg.evaluate --config encnet_camvid --weights FILE --split test
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kseg import __version__, commands, data, datasets, examples, metrics, pictures, workdirs
from kseg import config as configs
from kseg.config import Config
from kseg.datasets import Dataset
from kseg.errors import DataError, WorkdirError
from kseg.inference import predict_ids, predictor
from kseg.progress import Progress

PICTURES = 6


def counter(model: keras.Model, config: Config, classes: int) -> Callable[..., np.ndarray | None]:
    """Return a function (split name, progress=None, interrupted=None) -> int64 confusion matrix of the whole split.

    The matrix is accumulated on the device. The function raises DataError where an example cannot be read, asserts that
    every example was counted, and returns None where `interrupted()` became true.
    """
    matrix = tf.Variable(tf.zeros((classes, classes), tf.int64), trainable=False)

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((None, None), tf.uint8)])
    def count(image: tf.Tensor, label: tf.Tensor) -> None:
        size = tf.shape(label)
        ids = predict_ids(model, image[None], (size[0], size[1]), config)
        matrix.assign_add(metrics.confusion(label[None], ids, classes))

    def count_split(split: str, progress: Progress | None = None,
                    interrupted: Callable[[], bool] | None = None) -> np.ndarray | None:
        total = len(datasets.open_split(config.data, split).names)
        matrix.assign(tf.zeros_like(matrix))
        seen = 0
        for example in data.explained(config, split, data.eval_examples(config, split)):
            if interrupted and interrupted():
                return None
            count(example["image"], example["label"])
            seen += 1
            if progress:
                progress.update(seen)
        if seen != total:
            raise DataError(f"{seen} of the {total} images of split {split!r} were counted")
        return matrix.numpy()

    return count_split


def picture_rows(predict: Callable[[np.ndarray], np.ndarray], config: Config, dataset: Dataset, split_name: str,
                 count: int) -> list[list[np.ndarray]]:
    """Return [image, truth, prediction] as uint8 (H, W, 3) for `count` images spread evenly over a split."""
    split = datasets.open_split(config.data, split_name)
    rows = []
    for index in np.linspace(0, len(split.names) - 1, min(count, len(split.names))).astype(int):
        image, raw = examples.examine(dataset, split, int(index))
        truth = np.array(dataset.label_table, np.uint8)[raw]
        rows.append([image, pictures.colour(truth, dataset.palette), pictures.colour(predict(image), dataset.palette)])
    return rows


def evaluate(model: keras.Model, config: Config, dataset: Dataset, split: str, out: Path | None = None,
             report: Callable[[str], None] = print) -> dict:
    """Return `metrics.summary` of a split with its image count.

    Writes metrics.json, confusion.npy and predictions.png (image, truth, prediction) to `out`. Raises DataError where
    an example cannot be read, WorkdirError where `out` cannot be written.
    """
    workdirs.require_same_classes(dataset, datasets.find(config.data), "the model")
    names = datasets.open_split(config.data, split).names
    if out:
        # Now, and not when all is counted.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
    started = time.time()
    matrix = counter(model, config, len(dataset.classes))(split, Progress(len(names), "images", report))
    results = {"split": split, "images": len(names), **metrics.summary(matrix, dataset.classes)}
    report(metrics.table(results))
    report(f"{len(names)} of {len(names)} images of {dataset.name} {split} in {time.time() - started:.0f} s")
    if out:
        try:
            # JSON has no nan; an absent class reads null.
            plain = json.loads(json.dumps(results), parse_constant=lambda name: None)
            described = plain | {"kseg": __version__, "config": configs.to_dict(config)}
            workdirs.write_text(out / "metrics.json", json.dumps(described, indent=2) + "\n")
            np.save(out / "confusion.npy", matrix)
        except OSError as error:
            raise WorkdirError(f"cannot write to {out}: {error.strerror}") from None
        rows = picture_rows(predictor(model, config), config, dataset, split, PICTURES)
        pictures.save(pictures.grid(rows, ("image", "truth", "prediction")), out / "predictions.png")
        report(f"wrote metrics.json, confusion.npy and predictions.png to {out}")
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kseg.evaluate", description=__doc__.splitlines()[0])
    commands.add_model_arguments(parser)
    parser.add_argument("--split", help="which split to count (default: the config's data.val_split)")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="where to write metrics.json, confusion.npy and predictions.png "
                             "(default with --workdir: WORKDIR/SPLIT)")
    values = parser.parse_args(arguments)
    model, config, dataset = commands.load_model(values)
    split = values.split or config.data.val_split
    out = values.out or (values.workdir / split if values.workdir else None)
    evaluate(model, config, dataset, split, out)
    return 0


if __name__ == "__main__":
    commands.run(main)
