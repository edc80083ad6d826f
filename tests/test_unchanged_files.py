"""Check that files of kseg 0.1.0 are resumed, evaluated, exported and answered exactly as they were then."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers.before import (
    BEFORE,
    KERNELS,
    ROOT,
    RUN,
    digest,
    printed,
    recorded,
    require_same,
    start,
    training_facts,
    unpack,
    weight_facts,
)

CHECKPOINT = ROOT.parent / "shared" / "fixtures" / "mmseg" / "deeplabv3plus_r18_d16" / "model.pth"
CHECKPOINT_MODEL = [
    "model.width=4",
    "model.stem_channels=4",
    "model.output_stride=16",
    "model.head=deeplabv3plus",
    "model.channels=8",
    "model.auxiliary_channels=4",
    "model.deeplab.dilations=1,2,3,4",
    "model.deeplab.shortcut_channels=2",
]
IMAGES = sorted(BEFORE.glob("images/*"))
KINDS = ("prepared", "prepared-fast")


def first_batches_and_examples(directory, count):
    """Return the first training batches and all evaluation examples of a folder dataset, as dicts of arrays.

    The one place here that knows kseg's modules.
    """
    from kseg.config import Augment, Config, Data, Train
    from kseg.datasets.registry import open_split
    from kseg.input_pipeline.batching import eval_examples, train_batches
    from kseg.input_pipeline.normalization import normalize_batch

    config = Config(
        data=Data(name="folder", directory=str(directory)),
        augment=Augment(crop=(32, 40)),
        train=Train(global_batch=2, steps=count, seed=3),
    )
    batches = [
        each
        | {
            "image": normalize_batch(
                each["image"], each["inside"], config.data.mean, config.data.std, config.augment.pad_color
            )
        }
        for each in train_batches(open_split(config.data, "train"), config)
    ]
    return [
        [{key: value.numpy() for key, value in each.items()} for each in dataset]
        for dataset in (batches, eval_examples(open_split(config.data, "val")))
    ]


def reading_facts(directory):
    """Return what is read of a prepared set: ids and places of examples to the bit, normalised pixels nearly so."""
    batches, examples = first_batches_and_examples(directory, 4)
    return {
        "batches": [
            {
                "index": batch["index"].tolist(),
                "label": digest(batch["label"]),
                "image": {
                    "bits": digest(batch["image"]),
                    "shape": list(batch["image"].shape),
                    "mean": float(batch["image"].mean()),
                    "norm": float(np.linalg.norm(batch["image"])),
                },
            }
            for batch in batches
        ],
        "examples": [
            {"index": int(each["index"]), "image": digest(each["image"]), "label": digest(each["label"])}
            for each in examples
        ],
    }


def jobs(directory, shapes):
    """Unpack what was written before, and return the commands that use it."""
    made = unpack("run", directory)
    unpack("run", directory / "continued")
    unpack("evaluations", directory)
    source = unpack("source", directory)
    trained = ["--workdir", made, "--weights", unpack("trained", directory) / "trained.weights.h5"]
    data = ["--set", f"data.directory={shapes}"]
    found = {
        "evaluated": ["kseg.evaluate", *trained, "--out", "evaluated", *data],
        "predicted": ["kseg.predict", *IMAGES, *trained, "--out", "predicted", "--save", "ids", *data],
        "exported": ["kseg.export", *trained, "--out", "exported", *data],
        "compared": ["kseg.compare", "evaluations/a", "evaluations/b", "--json", "compared.json"],
        "prepared": ["kseg.data", "prepare", "folder", "--source", source, "--directory", "prepared"],
        "prepared-fast": [
            "kseg.data",
            "prepare",
            "folder",
            "--source",
            source,
            "--directory",
            "prepared-fast",
            "--fast",
        ],
        "continued": ["kseg.train", "--config", "encnet_shapes", "--workdir", "continued/run", *data, *RUN],
    }
    if CHECKPOINT.is_file():
        (directory / "four").mkdir()
        (directory / "four" / "classes.txt").write_text("a\nb\nc\nd\n")
        found["converted"] = [
            "kseg.convert",
            CHECKPOINT,
            "--config",
            "encnet_shapes",
            "--out",
            "converted.weights.h5",
            "--set",
            "data.name=folder",
            "data.directory=four",
            *CHECKPOINT_MODEL,
        ]
    return found


def evaluation_facts(directory):
    """Return all figures of an evaluation but when and where it was made, its counts, and the table of its images."""
    figures = json.loads((directory / "metrics.json").read_text())
    del figures["timing"], figures["provenance"], figures["config"]["data"]["directory"]
    # These keys are new, and their defaults change nothing.
    assert figures["config"]["data"].pop("value_range") == []
    assert figures["config"]["export"].pop("largest_loss") == 0.5
    rows = [line.split(",") for line in (directory / "per_image.csv").read_text().splitlines()]
    images = {row[0]: [float(cell) if cell else None for cell in row[1:]] for row in rows[1:]}
    confusion = np.load(directory / "confusion.npy")
    assert figures["config"].pop("tracking") == {"mlflow": "", "experiment": "kseg"}
    return {
        "figures": figures,
        "columns": rows[0],
        "images": images,
        "confusion": {"bits": digest(confusion), "shares": (confusion / confusion.sum()).tolist()},
        "order": {"bits": [row[0] for row in rows]},
    }


def ids_facts(ids):
    """Return the bits and size of class ids (H, W), and the share of each class."""
    return {
        "bits": digest(ids),
        "shape": list(ids.shape),
        "shares": (np.bincount(ids.ravel(), minlength=7) / ids.size).tolist(),
    }


def prediction_facts(directory):
    return {path.name: ids_facts(np.asarray(Image.open(path))) for path in sorted((directory / "ids").iterdir())}


def response_facts(*places):
    """Return what each signature of each SavedModel answers to the pictures; of a PNG, the ids that it holds."""
    command = [sys.executable, "-m", "tests.helpers.before_responses", *places, "--", *IMAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=os.environ | KERNELS)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(places) :]]


def history_facts(root, version):
    """Return what pipeline.history tells: of each run its components' states, scores and version, and a lineage."""
    told = [
        subprocess.run(
            [sys.executable, "-m", "pipeline.history", "--root", root, *more],
            cwd=ROOT,
            text=True,
            capture_output=True,
            timeout=600,
            env=os.environ | KERNELS | {"PYTHONPATH": str(ROOT)},
        )
        for more in ([], ["--version", version])
    ]
    assert [each.returncode for each in told] == [0, 0], told
    runs, lineage = (each.stdout for each in told)
    states = r"\b(Ingest|Examiner|Trainer|Evaluator|Validator|Pusher) (complete|cached|failed)"
    return {
        "states": re.findall(states, runs),
        "times": len(re.findall(r"(?m)^\d{4}-\d\d-\d\d \d\d:", runs)),
        "pushed": re.findall(r"(?m)pushed: (?:.*/)?(\S+)$", runs),
        "numbers": re.findall(r"\d+\.\d\d\b", runs),
        "artifacts": re.findall(r"(?m)^ *([A-Z]\w+) (\d+), by (\w+)", lineage),
        "fingerprints": re.findall(r"fingerprint (\S+)", lineage),
        "configs": re.findall(r"config (\S+?):? \{", lineage),
    }


@pytest.fixture(scope="module")
def used(tmp_path_factory, shapes_directory):
    """The directory in which all commands have run."""
    directory = tmp_path_factory.mktemp("used")
    assert start(jobs(directory, shapes_directory), directory).wait(900) == 0
    return directory


def same(name, found, tolerance=1e-3):
    before = recorded("files")
    require_same(found, before[name], before["machine"], tolerance)


def test_a_killed_run_is_continued_to_the_weights_it_would_have_reached(used):
    told = printed(used, "continued")
    # Begun anew, it would reach the same weights.
    assert "step 600" in told and "step 500" not in told
    same("continued", training_facts(used / "continued" / "run"))


def test_evaluation_counts_what_it_counted(used):
    printed(used, "evaluated")
    same("evaluated", evaluation_facts(used / "evaluated"), 5e-3)


def test_prediction_gives_the_same_ids(used):
    printed(used, "predicted")
    same("predicted", prediction_facts(used / "predicted"), 5e-3)


def test_comparison_gives_the_same_numbers(used):
    printed(used, "compared")
    comparison = json.loads((used / "compared.json").read_text())
    # The sentence is not compared, so that its words may improve.
    assert "0.12 points of mIoU" in comparison.pop("verdict")
    same("compared", comparison, 1e-9)


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the original's checkpoint is not there (../shared/fixtures)")
def test_conversion_gives_the_same_weights(used):
    printed(used, "converted")
    same("converted", weight_facts(used / "converted.weights.h5"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_set_is_read_as_before(kind, tmp_path):
    same("reading", reading_facts(unpack(kind, tmp_path)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_prepared_anew_is_read_as_before(used, kind):
    printed(used, kind)
    same("reading", reading_facts(used / kind))


def test_an_export_of_before_and_a_new_one_of_the_same_weights_answer_as_before(used, tmp_path):
    printed(used, "exported")
    for responses in response_facts(unpack("export", tmp_path), used / "exported" / "1"):
        same("responses", responses, 5e-3)


def test_a_new_export_has_the_same_signatures_and_assets(used, tmp_path):
    old, new = unpack("export", tmp_path), used / "exported" / "1"
    assert (new / "signatures.txt").read_text() == (old / "signatures.txt").read_text()
    names = [sorted(path.relative_to(place).as_posix() for path in place.rglob("*")) for place in (old, new)]
    assert names[0] == names[1]
    classes = [json.loads((place / "assets" / "classes.json").read_text()) for place in (old, new)]
    assert classes[0] == classes[1]


def test_the_history_of_a_pipeline_is_told(tmp_path):
    root, version = unpack("pipeline", tmp_path), recorded("files")["version"]
    # A version counts as pushed while its directory exists; the recorded one was on the machine that made the files.
    with contextlib.closing(sqlite3.connect(root / "metadata.sqlite")) as store, store:
        moved = store.execute(
            "UPDATE ArtifactProperty SET string_value = ? WHERE string_value LIKE ?",
            (str(root / "serving" / version), f"/%/serving/{version}"),
        )
        assert moved.rowcount == 1
    (root / "serving" / version).mkdir(parents=True)
    same("history", history_facts(root, version))
