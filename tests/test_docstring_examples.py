"""Run the examples in docstrings, on a tiny trained model, its data and a server of its export."""

import doctest
import importlib
import io
import pkgutil
import re

import pytest
from PIL import Image

from tests.helpers.running import ROOT

# The names that users import have to show their use.
SHOWN = [
    "kseg.load",
    "kseg.config.load",
    "kseg.config.from_json",
    "kseg.datasets.registry.find_dataset",
    "kseg.datasets.registry.open_split",
    "kseg.datasets.registry.read_classes",
    "kseg.models.build",
    "kseg.models.resnet.resnet",
    "kseg.models.heads.encnet.encnet",
    "kseg.models.heads.deeplab.deeplabv3",
    "kseg.models.heads.deeplab.deeplabv3plus",
    "kseg.models.heads.apcnet.apcnet",
    "kseg.models.heads.pspnet.pspnet",
    "kseg.models.heads.fcn.fcn",
    "kseg.models.layers.resize",
    "kseg.models.folding.fold_batch_norms",
    "kseg.weights.loading.load_checkpoint",
    "kseg.input_pipeline.batching.train_batches",
    "kseg.input_pipeline.batching.eval_examples",
    "kseg.training.trainer.train",
    "kseg.training.losses.cross_entropy",
    "kseg.training.losses.loss_terms",
    "kseg.training.losses.class_presence",
    "kseg.training.losses.mean_loss",
    "kseg.training.schedule.schedule",
    "kseg.training.optimizers.build_optimizer",
    "kseg.inference.trained_model.load_trained",
    "kseg.inference.prediction.predictor",
    "kseg.inference.segmenter.Segmenter",
    "kseg.inference.file_prediction.predict_files",
    "kseg.evaluation.evaluator.evaluate",
    "kseg.evaluation.metrics.summarize",
    "kseg.evaluation.metrics.iou_and_accuracy",
    "kseg.evaluation.metrics.pixel_accuracy",
    "kseg.evaluation.metrics.mean_over_classes",
    "kseg.evaluation.metrics.class_table",
    "kseg.evaluation.confusion.confusion",
    "kseg.evaluation.confusion.banded_confusion",
    "kseg.evaluation.confusion.boundary_bands",
    "kseg.evaluation.results.read_evaluation",
    "kseg.exporting.exporter.export",
    "serving.clients.client.Client",
]

MODULES = sorted(
    {
        path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
        for top in ("kseg", "serving", "pipeline")
        for path in (ROOT / top).rglob("*.py")
        if "\n        >>> " in (text := path.read_text(encoding="utf-8")) or "\n    >>> " in text
    }
)


@pytest.fixture(scope="module")
def trained_names(shapes_directory, tmp_path_factory):
    """Return names that examples may use: data, workdir, image, image_bytes, address."""
    from kseg import config as configs
    from kseg.datasets import registry
    from kseg.exporting import exporter
    from kseg.inference import trained_model
    from kseg.training import trainer
    from serving.config.flags import Options
    from serving.model_server import Server

    directory = tmp_path_factory.mktemp("examples in docstrings")
    workdir, image = directory / "run", directory / "street.png"
    # The example of `train` has the same config, so it finds its run at the last step.
    config = configs.load(
        "encnet_shapes",
        [
            f"data.directory={shapes_directory}",
            "model.width=4",
            "model.channels=8",
            "model.auxiliary_channels=4",
            "augment.crop=64,64",
            "train.global_batch=2",
            "train.steps=2",
        ],
    )
    trainer.train(config, workdir, trainer.prepare_strategy(config.train), report=lambda line: None)
    Image.new("RGB", (96, 64), "gray").save(image)
    buffer = io.BytesIO()
    Image.open(image).save(buffer, "PNG")
    model, config, dataset = trained_model.load_trained(workdir)
    assert len(dataset.classes) == len(registry.find_dataset(config.data).classes)
    exporter.export(
        model, config, dataset, directory / "served", trained_model.best_weights(workdir), report=lambda line: None
    )
    server = Server(Options(model_name="default", model_base_path=str(directory / "served"), port=free_port()))
    server.start()
    yield {
        "data": shapes_directory,
        "workdir": workdir,
        "image": image,
        "image_bytes": buffer.getvalue(),
        "address": f"127.0.0.1:{server.grpc_port}",
    }
    server.stop(grace_seconds=0)


def free_port():
    from kseg.distributed.launcher import free_ports

    return free_ports(1)[0]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, trained_names, tmp_path):
    module = importlib.import_module(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert tests
    for test in tests:
        report = io.StringIO()
        test.globs |= trained_names | {"out": tmp_path / "out"}
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(test, out=report.write)
        assert not report.getvalue(), report.getvalue()


@pytest.mark.parametrize("name", SHOWN)
def test_what_users_import_is_described_with_an_example(name):
    module, _, attribute = name.rpartition(".")
    described = getattr(importlib.import_module(module), attribute)
    for part in ("Args:", "Returns:", "Example:", ">>> "):
        assert part in described.__doc__ or part == "Returns:" and isinstance(described, type), (name, part)


def test_the_page_of_the_api_lists_what_users_import():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(listed) == len(set(listed)) and set(SHOWN) <= set(listed)
    for name in listed:
        pkgutil.resolve_name(name)
