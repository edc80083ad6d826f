"""Train and export a model in TFX's Trainer, which calls `run_fn`.

The Model artifact has the layout that TFX expects:
    Format-Serving/    the SavedModel
    Format-TFMA/       a working directory for kseg: config.json, dataset.json and best.weights.h5; and the files with
                       which the next run compares its data: schema.pbtxt and shares.json
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

# Files of the working directory: those that an evaluation reads, and the logs of the training.
MODEL_FILES = ("config.json", "dataset.json", "best.weights.h5", "best.json")
LOGS = ("metrics.jsonl", "unreadable.json", "tensorboard")


def run_fn(fn_args: "FnArgs") -> None:
    """Train on the ingested records, and write the model and the logs of its training.

    `custom_config` is {"config": kseg's config as JSON, "training": directory of unfinished trainings, "program":
    digest of the code for the cache}.
    """
    settings = fn_args.custom_config
    # train_files is a single pattern, ARTIFACT/Split-NAME/*.
    config = artifacts.artifact_config(
        configs.from_json(settings["config"]), str(local_path(fn_args.train_files[0]).parents[1])
    )
    if fn_args.base_model:
        weights = trained_model.best_weights(local_path(fn_args.base_model).with_name("Format-TFMA"))
        config = dataclasses.replace(config, init=dataclasses.replace(config.init, backbone="", weights=str(weights)))
    workdir = training_directory(local_path(settings["training"]), config)
    trainer.train(config, workdir, trainer.prepare_strategy(config.train))
    evaluated, schema = local_path(fn_args.eval_model_dir), local_path(fn_args.schema_path)
    write_model(workdir, evaluated, local_path(fn_args.serving_model_dir))
    shutil.copyfile(schema, evaluated / schema.name)
    write_class_fractions(config, evaluated / artifacts.CLASS_FRACTIONS)
    logs = local_path(fn_args.model_run_dir)
    for name in LOGS:
        if (workdir / name).exists():
            (shutil.copytree if (workdir / name).is_dir() else shutil.copyfile)(workdir / name, logs / name)
    # The checkpoints are no longer needed.
    shutil.rmtree(workdir)


def local_path(uri: str) -> Path:
    return Path(artifacts.mounted_path(uri))


def training_directory(parent: Path, config: Config) -> Path:
    """Return the working directory of a training, from which a run with the same config and records resumes.

    It is outside of TFX's artifacts, which TFX removes if a component fails.
    """
    return parent / hashlib.sha256(configs.to_json(config).encode()).hexdigest()[:16]


def write_class_fractions(config: Config, path: Path) -> None:
    """Write the fractions of the labeled pixels by class for both splits."""
    classes = registry.find_dataset(config.data).classes
    fractions = {}
    for split in (config.data.train_split, config.data.val_split):
        values = artifacts.class_fractions(config.data.directory, split).tolist()
        fractions[split] = dict(zip(classes, values, strict=True))
    path.write_text(json.dumps(fractions, indent=1) + "\n", encoding="utf-8")


def write_model(workdir: Path, evaluated: Path, served: Path, report: Callable[[str], None] = print) -> None:
    """Write the files that an evaluation reads and, last and atomically, the SavedModel."""
    evaluated.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(workdir / name, evaluated / name)
    model, config, dataset = trained_model.load_trained(evaluated)
    # The exporter writes a numbered version next to the final path, which is not a number.
    version = exporter.export(
        model, config, dataset, served.with_name("exporting"), trained_model.best_weights(evaluated), report=report
    )
    os.replace(version, served)
    version.parent.rmdir()
