"""What TFX's Trainer calls: `run_fn` trains by kseg.train and exports by kseg.export.

The Model artifact holds, as TFX expects it,
    Format-Serving/    the SavedModel
    Format-TFMA/       config.json, dataset.json and best.weights.h5, which kseg reads as a working directory; and for
                       the next run's comparison of its data schema.pbtxt and shares.json
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kseg import config as configs
from kseg.config import Config
from kseg.datasets import registry
from kseg.exporting import exporter
from kseg.inference import trained_model
from kseg.training import trainer
from pipeline import artifacts

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

# Of the working directory: what evaluates, and what tells how training went.
KEPT = ("config.json", "dataset.json", "best.weights.h5", "best.json")
LOGS = ("metrics.jsonl", "unreadable.json", "tensorboard")


def run_fn(fn_args: "FnArgs") -> None:
    """Train on the ingested records, write the model and, for TensorBoard, the logs of its training.

    `custom_config` is {"config": kseg's as JSON, "training": a directory in which unfinished trainings wait,
    "program": what the cache sees changes of the program by}.
    """
    settings = fn_args.custom_config
    # train_files is one pattern, ARTIFACT/Split-NAME/*.
    config = artifacts.reading(configs.from_json(settings["config"]), str(here(fn_args.train_files[0]).parents[1]))
    if fn_args.base_model:
        weights = trained_model.best_weights(here(fn_args.base_model).with_name("Format-TFMA"))
        config = dataclasses.replace(config, init=dataclasses.replace(config.init, backbone="", weights=str(weights)))
    workdir = training_directory(here(settings["training"]), config)
    trainer.train(config, workdir, trainer.prepare(config.train))
    evaluated, schema = here(fn_args.eval_model_dir), here(fn_args.schema_path)
    write_model(workdir, evaluated, here(fn_args.serving_model_dir))
    shutil.copyfile(schema, evaluated / schema.name)
    write_shares(config, evaluated / artifacts.SHARES)
    logs = here(fn_args.model_run_dir)
    for name in LOGS:
        if (workdir / name).exists():
            (shutil.copytree if (workdir / name).is_dir() else shutil.copyfile)(workdir / name, logs / name)
    # The checkpoints have served their turn.
    shutil.rmtree(workdir)


def here(uri: str) -> Path:
    return Path(artifacts.mounted(uri))


def training_directory(parent: Path, config: Config) -> Path:
    """Return where a training is written, and found again by the next run of the same config on the same records.

    It lies outside of TFX's artifacts, which are removed where a component fails.
    """
    return parent / hashlib.sha256(configs.to_json(config).encode()).hexdigest()[:16]


def write_shares(config: Config, path: Path) -> None:
    """Write each class's share of the labelled pixels of both splits."""
    classes = registry.find(config.data).classes
    shares = {split: dict(zip(classes, artifacts.class_shares(config.data.directory, split).tolist(), strict=True))
              for split in (config.data.train_split, config.data.val_split)}
    path.write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")


def write_model(workdir: Path, evaluated: Path, served: Path, report: Callable[[str], None] = print) -> None:
    """Write what the evaluation reads and, last and in one step, the SavedModel."""
    evaluated.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(workdir / name, evaluated / name)
    model, config, dataset = trained_model.load_trained(evaluated)
    # Beside its final place, which is no version's number.
    place = exporter.export(model, config, dataset, served.with_name("exporting"), trained_model.best_weights(evaluated),
                          report=report)
    os.replace(place, served)
    place.parent.rmdir()
