"""Other formats give the SavedModel's class maps in their own runtimes, carry its facts, and are refused in time."""

import importlib.util
import json
import re
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tensorflow as tf

from kseg import export as command
from kseg.config import Config
from kseg.config.sections import Augment, Evaluate, Export, Model
from kseg.datasets import registry
from kseg.datasets.registry import find_dataset
from kseg.errors import ConfigError, DataError, UserError
from kseg.evaluation import metrics
from kseg.exporting import class_maps, exporter, formats, plain_layers
from kseg.exporting.precisions import export_network
from kseg.exporting.signatures import Served
from kseg.inference import prediction
from kseg.input_pipeline import batching
from kseg.models.layers import AdaptiveAveragePooling
from tests.commands.test_export import random_model
from tests.helpers.exhaustive import all_of
from tests.helpers.running import ROOT
from tests.helpers.small_sets import folder

LOADERS = {name: exporter.LOADERS[name] for name in formats.CONVERTED}
# Modules that write and run each format.
LIBRARIES = {"onnx": ("tf2onnx", "onnx", "onnxruntime"), "litert": ("ai_edge_litert",), "openvino": ("openvino",)}
INSTALLED = [name for name in LOADERS if all(map(importlib.util.find_spec, LIBRARIES[name]))]
SIZE = (61, 90)
BOX = (48, 80)
# Images that are resized and those that are not, logits resized once and twice, both conventions for corners.
CASES = {
    "deeplabv3plus": (Evaluate(), False),
    "encnet": (Evaluate(resize=BOX), False),
    "deeplabv3": (Evaluate(resize=BOX, resize_logits="once"), False),
    "apcnet": (Evaluate(resize=BOX), True),
    "pspnet": (Evaluate(resize=BOX, resize_logits="once"), True),
    "fcn": (Evaluate(), True),
}
HEADS = all_of(["encnet"], "deeplabv3plus", "deeplabv3", "apcnet", "pspnet", "fcn")


def require_installed(name):
    if name not in INSTALLED:
        pytest.skip(f"{name} needs {' and '.join(LIBRARIES[name])}: pip install 'kseg[{name}]'")


class Reference:
    """The functions of a SavedModel's signatures."""

    def __init__(self, network, config):
        self.functions = Served(network, prediction.protocol_of(config), SIZE, 10**6, all_scores=True).functions

    def differences(self, images, ids):
        """Return the fraction of pixels with other ids, where no second class is as probable."""
        expected = self.functions["predict_tensor"](image=tf.constant(images))["class_map"].numpy()
        assert ids.shape == expected.shape and ids.dtype == np.uint8
        assert len(np.unique(expected)) > 1
        if (ids == expected).all():
            return 0
        scores = np.sort(self.functions["predict_all_scores"](image=tf.constant(images))["scores"].numpy(), axis=-1)
        return ((ids != expected) & (scores[..., -1] - scores[..., -2] > 1e-5)).mean()


class Case:
    """A head exported in all formats whose libraries are installed."""

    def __init__(self, directory, head):
        evaluate, align_corners = CASES[head]
        self.config = Config(
            data=folder(directory / "set", {"val": [np.zeros((8, 8))]}),
            augment=Augment(crop=(24, 32)),
            evaluate=evaluate,
            export=Export(size=SIZE),
            model=Model(
                backbone="resnet18", width=8, channels=16, auxiliary_channels=4, head=head, align_corners=align_corners
            ),
        )
        self.model, self.dataset = random_model(self.config), find_dataset(self.config.data)
        self.network = export_network(self.model, self.config.model, "float32", "any")
        self.reference = Reference(self.network, self.config)
        self.path = INSTALLED and exporter.export(
            self.model, self.config, self.dataset, directory / "served", report=lambda line: None, formats=INSTALLED
        )


@pytest.fixture(scope="module")
def case_of(tmp_path_factory):
    """Return a function from a head to its case, which is exported once."""
    cases = {}

    def find(head):
        if head not in cases:
            cases[head] = Case(tmp_path_factory.mktemp("a path with spaces"), head)
        return cases[head]

    return find


def random_images(count, height, width):
    """Return images with patches of one color, and noise in the last one."""
    generator = np.random.default_rng(5)
    colors = generator.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    images = colors.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].astype(np.uint8)
    images[-1] = generator.integers(0, 256, images.shape[1:])
    return images


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("head", HEADS)
def test_class_maps_are_those_of_the_saved_model(case_of, head, name):
    require_installed(name)
    case, images = case_of(head), random_images(2, *SIZE)
    assert case.reference.differences(images, LOADERS[name](case.path, 1)(images)) < 1e-4


@pytest.mark.parametrize("head", all_of(["encnet"], "deeplabv3plus", "apcnet"))
def test_files_without_a_size_take_any_size(case_of, head, tmp_path):
    names = [name for name in INSTALLED if formats.CONVERTED[name].any_size]
    if not names:
        pytest.skip("neither onnxruntime nor openvino is installed: pip install 'kseg[onnx,openvino]'")
    case = case_of(head)
    plain = replace(case.config, evaluate=Evaluate(), export=Export())
    reference = case.reference if plain.evaluate == case.config.evaluate else Reference(case.network, plain)
    path = exporter.export(case.model, plain, case.dataset, tmp_path, report=lambda line: None, formats=names)
    for name in names:
        predict = LOADERS[name](path, 1)
        for count, size in ((1, (40, 56)), (3, (57, 33))):
            images = random_images(count, *size)
            assert reference.differences(images, predict(images)) < 1e-4


def metadata_of(name, path):
    """Return the metadata of an exported file, by its format's own means."""
    if name == "onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path / "model.onnx").metadata_props}
    if name == "openvino":
        import openvino

        model = openvino.Core().read_model(path / "model.xml")
        return {key: model.get_rt_info(["kseg", key]).value for key in model.rt_info["kseg"]}
    with zipfile.ZipFile(path / "model.tflite") as archive:
        return {key: archive.read(key).decode() for key in archive.namelist()}


@pytest.mark.parametrize("name", LOADERS)
def test_the_example_of_the_documentation(case_of, name, tmp_path, monkeypatch):
    require_installed(name)
    case, images = case_of("deeplabv3plus"), random_images(1, *SIZE)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "export.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if LIBRARIES[name][-1] in block)
    (tmp_path / "formats" / "mine").mkdir(parents=True)
    (tmp_path / "formats" / "mine" / "1").symlink_to(case.path)
    monkeypatch.chdir(tmp_path)
    names = {"images": images}
    exec(block, names)
    assert (names["class_map"] == LOADERS[name](case.path, 1)(images)).all()
    assert names["classes"] == ["sky", "ground", "house"]


@pytest.mark.parametrize("name", LOADERS)
def test_the_file_carries_the_facts_of_the_saved_models_assets(case_of, name):
    require_installed(name)
    case = case_of("deeplabv3plus")
    texts = metadata_of(name, case.path)
    assert set(texts) == {"classes.json", "config.json", "provenance.json"}
    assert json.loads(texts["classes.json"])["classes"] == ["sky", "ground", "house"]
    assert json.loads(texts["config.json"])["model"]["head"] == "deeplabv3plus"
    assert json.loads(texts["provenance.json"])["kseg"]


def test_names_and_types_of_inputs_and_outputs(case_of):
    path = case_of("deeplabv3plus").path
    if "onnx" in INSTALLED:
        import onnxruntime

        session = onnxruntime.InferenceSession(path / "model.onnx")
        (image,), (ids,) = session.get_inputs(), session.get_outputs()
        assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [*SIZE, 3])
        assert (ids.name, ids.type) == ("class_map", "tensor(uint8)")
    if "openvino" in INSTALLED:
        import openvino

        model = openvino.Core().read_model(path / "model.xml")
        assert model.input().names == {"image"} and model.output().names == {"class_map"}
        assert str(model.input().partial_shape) == f"[?,{SIZE[0]},{SIZE[1]},3]"
    if "litert" in INSTALLED:
        from ai_edge_litert.interpreter import Interpreter

        (signature,) = Interpreter(str(path / "model.tflite")).get_signature_list().values()
        assert signature == {"inputs": ["image"], "outputs": ["class_map"]}


def test_graphs_have_neither_control_flow_nor_interleaved_parts(case_of):
    case = case_of("deeplabv3plus")
    maps = class_maps.ClassMaps(class_maps.plain_network(case.model), prediction.protocol_of(case.config), SIZE)
    graph = maps.function.get_concrete_function().graph
    types = {operation.type for operation in graph.get_operations()}
    assert not any(word in name for name in types for word in ("While", "If", "Call", "ToBatch", "Variable", "Update"))
    dilations = {
        tuple(operation.get_attr("dilations"))
        for operation in graph.get_operations()
        if operation.type == "DepthwiseConv2dNative"
    }
    assert (1, 36, 36, 1) in dilations


@pytest.mark.parametrize("length, width, bins", [(7, 12, 3), (5, 4, 6), (1, 9, 1)])
def test_pooling_with_constant_weights_is_adaptive_pooling(length, width, bins):
    inputs = np.random.default_rng(0).normal(size=(2, length, width, 4)).astype(np.float32)
    np.testing.assert_allclose(plain_layers.PlainPooling(bins)(inputs), AdaptiveAveragePooling(bins)(inputs), atol=1e-6)


@pytest.mark.parametrize("size, target", [((61, 90), (54, 80)), ((20, 30), (43, 64))])
def test_bytes_are_resized_like_opencv(size, target):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    resized = class_maps.resize_bytes(image[None], size, target)[0]
    assert (resized.numpy() == cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR)).all()


WINDOWS = Evaluate(window=(32, 32), stride=(16, 16))


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("onx", Config(), "unknown format 'onx'. Did you mean onnx"),
        (
            "onnx",
            Config(export=Export(precision="bfloat16")),
            "cannot store export.precision=bfloat16.*precision=float32",
        ),
        ("openvino", Config(evaluate=WINDOWS), "cannot hold sliding windows.*evaluate.window="),
        ("litert", Config(evaluate=Evaluate(flip=True)), "cannot hold test-time augmentation: omit --tta"),
        ("litert", Config(evaluate=Evaluate(scales=(0.5,))), "cannot hold test-time augmentation"),
        ("onnx", Config(evaluate=Evaluate(resize=(512, 2048))), "evaluate.resize=512,2048.*--set export.size=512,1024"),
    ],
)
def test_what_a_format_cannot_do_is_refused(name, settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        exporter.export(None, settings, None, tmp_path / "served", formats=["savedmodel", name])
    assert not list(tmp_path.iterdir())


def test_a_format_with_one_size_takes_the_size_of_the_crop():
    settings = Config(augment=Augment(crop=(24, 32)))
    sized = replace(settings, export=Export(size=SIZE))
    assert formats.image_size("litert", settings) == (24, 32) and formats.image_size("onnx", settings) is None
    assert {formats.image_size(name, sized) for name in formats.CONVERTED} == {SIZE}


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_missing_library_is_named_with_its_extra(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(UserError, match=rf"--format {name} needs .*{name}.*: pip install 'kseg\[{name}\]'"):
        exporter.export(None, Config(), None, tmp_path / "served", formats=[name])
    assert not list(tmp_path.iterdir())


def test_a_format_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(maps, metadata, directory):
        (directory / "model.tflite").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exporter.WRITERS, "litert", fail)
    monkeypatch.setattr(exporter, "plain_network", lambda model: None)
    monkeypatch.setattr(exporter, "ClassMaps", lambda *arguments: None)
    settings = Config(data=folder(tmp_path / "set", {"val": [np.zeros((8, 8))]}))
    with pytest.raises(UserError, match="cannot write .*1: No space left on device"):
        exporter.export(None, settings, find_dataset(settings.data), tmp_path / "served", formats=["litert"])
    assert not list((tmp_path / "served").iterdir())


def test_the_command_needs_runtimes_to_measure(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda library: None)
    with pytest.raises(UserError, match=r"--format litert needs ai_edge_litert: pip install 'kseg\[litert\]'"):
        command.main(
            ["--config", "encnet_shapes", "--weights", "x.pth", "--out", "x", "--format", "litert", "--split", "val"]
        )


def test_each_format_is_measured_in_its_runtime(case_of, tmp_path):
    if not INSTALLED:
        pytest.skip("no runtime is installed: pip install 'kseg[onnx,openvino,litert]'")
    case, generator, lines = case_of("deeplabv3plus"), np.random.default_rng(0), []
    data = folder(tmp_path / "set", {"val": [generator.integers(0, 3, SIZE) for _ in range(2)]})
    split = registry.open_split(data, "val")
    exporter.compare_exported(case.model, case.path, case.config, case.dataset, split, lines.append, INSTALLED)
    matrix = np.zeros((3, 3), np.int64)
    for example in batching.eval_examples(split):
        ids = case.reference.functions["predict_tensor"](image=example["image"][None])["class_map"][0]
        np.add.at(matrix, (example["label"].numpy(), ids.numpy()), 1)
    expected = metrics.summarize(matrix, case.dataset.classes)["mIoU"]
    measured = [
        re.fullmatch(
            r"mIoU on 2 of 2 images of folder val: ([\d.]+) before, ([\d.]+) exported as (\w+), "
            r"[+-][\d.]+",
            line,
        )
        for line in lines
        if line.startswith("mIoU")
    ]
    assert [match[3] for match in measured] == INSTALLED
    for match in measured:
        assert float(match[1]) == pytest.approx(100 * expected, abs=0.1)
        assert float(match[2]) == pytest.approx(100 * expected, abs=0.1)


def test_an_image_of_a_size_that_a_file_does_not_take_is_refused():
    predict = exporter.with_size(lambda images: images[..., 0], "litert", SIZE)
    assert predict(random_images(2, *SIZE)).shape == (2, *SIZE)
    with pytest.raises(DataError, match="an image of 9,9 pixels, but the litert file takes 61,90: set export.size"):
        predict(random_images(1, 9, 9))
