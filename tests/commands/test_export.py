"""Exported signatures give the model's ids, refuse bad requests, and are written atomically."""

import base64
import contextlib
import json
import re
import shutil
import threading
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from kseg import models
from kseg.config import Config
from kseg.config.sections import Augment, Evaluate, Model
from kseg.datasets.registry import find_dataset
from kseg.errors import UserError
from kseg.evaluation import metrics
from kseg.exporting import exporter, warmup
from kseg.exporting.precisions import export_network
from kseg.exporting.signatures import IMAGE_FEATURE, Served
from kseg.images.decoding import decode_image
from kseg.inference import prediction
from tests.helpers.exhaustive import all_of
from tests.helpers.shared_files import CAMVID
from tests.helpers.small_sets import folder
from tests.helpers.splits import val_split

CLASSES = 3
SIZES = ((40, 56), (33, 47), (64, 30), (1, 1), (57, 40))
PROTOCOLS = {
    "encnet": Evaluate(scales=(0.75,), flip=True),
    "apcnet": Evaluate(resize=(48, 80)),
    "deeplabv3": Evaluate(window=(32, 40), stride=(20, 24)),
    "deeplabv3plus": Evaluate(),
}
SIGNATURES = """\
predict_map
  in  image_bytes: string [?]
  out class_map: uint8 [?, 24, 32]
  out size: int32 [?, 2]
predict_scores
  in  image: uint8 [?, ?, ?, 3]
  out class_map: uint8 [?, ?, ?]
  out confidence: uint8 [?, ?, ?]
predict_tensor
  in  image: uint8 [?, ?, ?, 3]
  out class_map: uint8 [?, ?, ?]
serve_tf_examples
  in  examples: string [?]
  out png_bytes: string [?]
  out size: int32 [?, 2]
serving_default
  in  image_bytes: string [?]
  out png_bytes: string [?]
  out size: int32 [?, 2]
"""


def random_model(settings):
    """Return a model with random norms whose predicted classes differ between pixels."""
    keras.utils.set_random_seed(3)
    model, generator = models.build(settings.model, CLASSES), np.random.default_rng(0)
    for layer in model.layers:
        if layer.__class__.__name__ == "BatchNormalization":
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    last = model.get_layer("decode_head.conv_seg")
    kernel, bias = last.get_weights()
    last.set_weights([generator.normal(0, 1, kernel.shape), bias])
    # Without this shift one class could win in all pixels.
    logits = model(generator.normal(0, 1, (2, 64, 64, 3)).astype(np.float32))["main"].numpy()
    last.set_weights([last.get_weights()[0], -logits.mean((0, 1, 2))])
    return model


class Case:
    """An exported model with its loaded signatures, and the model in memory."""

    def __init__(self, directory, head, precision="float32", settings=None, model=None):
        data = folder(directory / "set", {"val": [np.zeros((8, 8))]})
        self.config = settings or Config(
            data=data,
            augment=Augment(crop=(24, 32)),
            evaluate=PROTOCOLS[head],
            model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4, head=head),
        )
        self.dataset = find_dataset(self.config.data)
        self.model = model or random_model(self.config)
        self.lines = []
        self.config = replace(self.config, export=replace(self.config.export, precision=precision))
        self.path = exporter.export(
            self.model, self.config, self.dataset, directory / "served", report=self.lines.append
        )
        self.signatures = tf.saved_model.load(str(self.path)).signatures
        self.predict = prediction.predictor(self.model, prediction.protocol_of(self.config))

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)], autograph=False)
    def scores(self, images):
        size = tf.shape(images)
        return prediction.predict_scores(self.model, images, (size[1], size[2]), prediction.protocol_of(self.config))

    def close_calls(self, image, ids, other):
        """Return the number of different pixels, and of those where no second class has a similar score."""
        if (ids == other).all():
            return 0, 0
        scores = self.scores(image[None])[0].numpy()
        second, first = np.moveaxis(np.sort(scores, axis=-1)[..., -2:], -1, 0)
        clear = first - second > 1e-4 * np.maximum(1, np.abs(first))
        return (ids != other).sum(), ((ids != other) & clear).sum()


@contextlib.contextmanager
def watched(directory):
    """Yield a set that receives, for each look at the versions in a directory from 8 on, whether it is complete."""
    complete, stop = set(), threading.Event()

    def look():
        for path in directory.iterdir():
            if path.name.isdigit() and int(path.name) >= 8:
                complete.add(
                    (path / "signatures.txt").exists()
                    and (path / "saved_model.pb").exists()
                    and (path / warmup.WARMUP_FILE).exists()
                )

    def watch():
        # An export takes seconds, and a thread that never waits would take the time of the one that exports.
        while not stop.wait(0.01):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield complete
    finally:
        stop.set()
        watcher.join()
        look()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return the case of a plain protocol, exported beside a version 7 and a directory of another name."""
    directory = tmp_path_factory.mktemp("one")
    for name in ("7", "notes"):
        (directory / "served" / name).mkdir(parents=True)
    with watched(directory / "served") as complete:
        case = Case(directory, "deeplabv3plus")
    case.complete = complete
    return case


@pytest.fixture(scope="module", params=all_of(["encnet"], "deeplabv3plus", "apcnet", "deeplabv3"))
def case(request, one, tmp_path_factory):
    return (
        one if request.param == "deeplabv3plus" else Case(tmp_path_factory.mktemp("a path with spaces"), request.param)
    )


def random_images():
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def class_maps(answer):
    """Return the class maps of a serving_default answer, decoded by OpenCV."""
    decoded = [
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in answer["png_bytes"].numpy()
    ]
    assert [list(ids.shape) for ids in decoded] == answer["size"].numpy().tolist()
    return decoded


def test_all_signatures_give_the_models_ids(case):
    images = random_images()
    data = tf.constant([png(image) for image in images])
    examples = tf.constant(
        [
            tf.train.Example(
                features=tf.train.Features(
                    feature={IMAGE_FEATURE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[png(image)]))}
                )
            ).SerializeToString()
            for image in images
        ]
    )
    served = class_maps(case.signatures["serving_default"](image_bytes=data))
    again = class_maps(case.signatures["serve_tf_examples"](examples=examples))
    different = 0
    for image, ids, ids_again in zip(images, served, again, strict=True):
        assert (ids == ids_again).all()
        tensor = case.signatures["predict_tensor"](image=image[None])["class_map"].numpy()
        scores = case.signatures["predict_scores"](image=np.stack([image, image]))
        assert (tensor[0] == ids).all()
        assert (scores["class_map"].numpy() == tensor).all()
        assert scores["confidence"].shape == (2, *image.shape[:2]) and scores["confidence"].numpy().min() >= 255 // 3
        # Folding changes the rounding, which may only decide between two classes with similar scores.
        changed, clear = case.close_calls(image, case.predict(image), ids)
        different += changed
        assert clear == 0
    assert different <= 20 and len(np.unique(np.concatenate([ids.ravel() for ids in served]))) > 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sizes_and_formats_mix_in_one_request(one, count):
    images = random_images()[:count]
    data = [png(image) if index % 2 else cv2.imencode(".jpg", image)[1].tobytes() for index, image in enumerate(images)]
    together = class_maps(one.signatures["serving_default"](image_bytes=tf.constant(data)))
    for alone, ids in zip(data, together, strict=True):
        assert (class_maps(one.signatures["serving_default"](image_bytes=tf.constant([alone])))[0] == ids).all()
    answer = one.signatures["predict_map"](image_bytes=tf.constant(data))
    assert answer["class_map"].shape == (count, 24, 32)
    for image, ids in list(zip(images, answer["class_map"].numpy()))[1::2]:
        fitted = cv2.resize(image, (32, 24), interpolation=cv2.INTER_LINEAR)
        assert one.close_calls(fitted, one.predict(fitted), ids)[1] == 0


def test_the_model_its_export_rest_and_grpc_give_the_same_ids(case):
    """All heads and protocols are covered, with drawn PNGs and, where they are at hand, CamVid's 480x360 JPEGs."""
    import grpc
    import requests
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from serving.config.flags import Options
    from serving.model_server import Server

    data = [png(image) for image in random_images()]
    if CAMVID.exists():
        data += [path.read_bytes() for path in sorted((CAMVID / "test" / "images").iterdir())[:2]]
    loaded = case.signatures["serving_default"](image_bytes=tf.constant(data))
    server = Server(Options(port=-1, rest_api_port=-1, model_name="case", model_base_path=str(case.path.parent)))
    server.start()
    try:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "case"
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(data))
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=300)
        rest = requests.post(
            f"http://127.0.0.1:{server.rest_port}/v1/models/case:predict",
            timeout=300,
            json={"instances": [{"b64": base64.b64encode(content).decode()} for content in data]},
        )
    finally:
        server.stop()
    files = list(answer.outputs["png_bytes"].string_val)
    assert files == [base64.b64decode(row["png_bytes"]["b64"]) for row in rest.json()["predictions"]]
    sizes = tf.make_ndarray(answer.outputs["size"]).tolist()
    assert sizes == [row["size"] for row in rest.json()["predictions"]] == loaded["size"].numpy().tolist()
    for content, file, ids in zip(data, files, class_maps(loaded), strict=True):
        served = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (served == ids).all()
        image = decode_image(tf.constant(content)).numpy()
        # Folding changes the rounding, which may only decide between two classes with similar scores.
        different, clear = case.close_calls(image, case.predict(image), served)
        assert clear == 0 and different <= 1e-3 * ids.size


def test_files_of_an_export(one):
    assert (one.path / "signatures.txt").read_text() == SIGNATURES
    assert json.loads((one.path / "assets" / "classes.json").read_text())["classes"] == ["sky", "ground", "house"]
    assert json.loads((one.path / "assets" / "provenance.json").read_text())["kseg"]
    assert json.loads((one.path / "assets" / "config.json").read_text())["model"]["head"] == "deeplabv3plus"
    # The auxiliary head is excluded, and a convolution has a kernel and a bias instead of a norm.
    variables = tf.train.list_variables(str(one.path / "variables" / "variables"))
    shapes = [shape for name, shape in variables if "saved_variables" in name]
    main = models.main_only(one.model)
    assert len(shapes) < len(main.weights) and not any("moving" in name for name, _ in variables)
    kernels = sum(np.prod(shape) for shape in shapes if len(shape) == 4)
    assert kernels == sum(np.prod(weight.shape) for weight in main.weights if len(weight.shape) == 4)
    assert kernels < sum(np.prod(weight.shape) for weight in one.model.weights if len(weight.shape) == 4)


def test_warm_up_requests_cover_all_signatures_and_batch_sizes(one):
    path = one.path / "assets.extra" / "tf_serving_warmup_requests"
    assert warmup.replay_warmup(path, one.signatures) == 5 * len(one.config.export.warmup_batches)
    from tensorflow_serving.apis import prediction_log_pb2

    batches = set()
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        (value,) = request.inputs.values()
        batches.add((request.model_spec.signature_name, value.tensor_shape.dim[0].size))
    assert batches == {(name, batch) for name in one.signatures for batch in one.config.export.warmup_batches}


def bomb(height, width):
    """Return a PNG file whose header has the given size."""
    data = bytearray(png(np.zeros((2, 2, 3), np.uint8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"hello", "neither a JPEG nor a PNG"),
        (b"", "neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(40), "neither"),
        (png(np.zeros((9, 9, 3), np.uint8))[:20], "shorter than its header"),
        (png(np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8))[:300], "PNG"),
        (cv2.imencode(".jpg", np.zeros((90, 90, 3), np.uint8))[1].tobytes()[:200], "JPEG"),
        (bomb(8001, 8000), "maximum"),
        (bomb(2**31 - 1, 2**31 - 1), "maximum"),
    ],
)
def test_bad_files_are_invalid_arguments(one, data, message):
    good = png(np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        one.signatures["serving_default"](image_bytes=tf.constant([good, data]))
    # The model still answers good requests.
    assert class_maps(one.signatures["serving_default"](image_bytes=tf.constant([good])))[0].shape == (5, 5)


def test_a_wrong_rank_is_an_invalid_argument(one, tmp_path):
    """A server does not check shapes, and a wrong rank would abort its process in a convolution."""
    path = tmp_path / "unchecked"
    shutil.copytree(one.path, path)
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for node in model.meta_graphs[0].graph_def.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.Clear()
            node.attr["shape"].shape.unknown_rank = True
            node.attr.pop("_output_shapes", None)
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definitions = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path)).signature_def
        for name in one.signatures:
            (tensor,) = definitions[name].inputs.values()
            pixels = tensor.dtype == tf.uint8.as_datatype_enum
            black = np.zeros((4, 4, 3), np.uint8)
            wrong = black if pixels else np.array([[png(black)]], object)
            with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with expected shape"):
                session.run([value.name for value in definitions[name].outputs.values()], {tensor.name: wrong})


@pytest.mark.parametrize("precision, limit", all_of([("bfloat16", 0.1)], ("dynamic-range", 0.1)))
def test_other_precisions_are_close_and_smaller(one, tmp_path, precision, limit):
    other = Case(tmp_path, "deeplabv3plus", precision, one.config, one.model)
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    ids, other_ids = (
        exported.signatures["predict_tensor"](image=image[None])["class_map"].numpy() for exported in (one, other)
    )
    assert 0 < (ids != other_ids).mean() < limit
    assert json.loads((other.path / "assets" / "config.json").read_text())["export"]["precision"] == precision
    stored = [
        dtype
        for name, dtype in tf.train.load_checkpoint(str(other.path / "variables" / "variables"))
        .get_variable_to_dtype_map()
        .items()
        if "saved_variables" in name
    ]
    assert (tf.int8 in stored) == (precision == "dynamic-range")


@pytest.mark.parametrize("head", all_of(["deeplabv3plus"], "encnet"))
def test_all_scores_are_probabilities(one, head):
    settings = replace(one.config, evaluate=PROTOCOLS[head])
    network = export_network(one.model, settings.model, "float32", "any")
    functions = Served(network, prediction.protocol_of(settings), (24, 32), 10**6, all_scores=True).functions
    image = np.random.default_rng(2).integers(0, 256, (1, 40, 56, 3)).astype(np.uint8)
    # The images have more than 1,000,000 pixels. A request describes a constant tensor with a few bytes.
    for name in ("predict_all_scores", "predict_scores", "predict_tensor"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="maximum"):
            functions[name](tf.zeros((1, 1001, 1000, 3), tf.uint8))
    scores = functions["predict_all_scores"](tf.constant(image))["scores"].numpy()
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    summary = functions["predict_scores"](tf.constant(image))
    assert (np.take_along_axis(scores, summary["class_map"].numpy()[..., None], -1)[..., 0] == scores.max(-1)).all()
    assert (summary["confidence"].numpy() == np.round(255 * scores.max(-1))).all()


def test_versions_count_up_and_appear_complete(one, tmp_path, monkeypatch):
    out = one.path.parent
    assert one.path.name == "8" and one.complete == {True}
    assert exporter.next_version(out) == 9 and exporter.next_version(tmp_path / "none") == 1
    with pytest.raises(UserError, match="7 already exists.*--version.*9"):
        exporter.export(one.model, one.config, one.dataset, out, version=7)

    def copy_model(served, path, signatures):
        shutil.copytree(one.path, path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    # Another export would write this before the disk is full.
    monkeypatch.setattr(tf.saved_model, "save", copy_model)
    monkeypatch.setattr(warmup, "write_warmup", fail)
    with pytest.raises(UserError, match="cannot write .*9: No space left on device"):
        exporter.export(one.model, one.config, one.dataset, out)
    assert sorted(path.name for path in out.iterdir()) == ["7", "8", "notes"]


def test_accuracy_before_and_after_the_export(one, tmp_path):
    lines = []
    generator = np.random.default_rng(0)
    data = folder(tmp_path / "set", {"val": [generator.integers(0, 3, (30, 40)) for _ in range(3)]})
    settings = replace(one.config, data=data)
    split = val_split(settings)
    exporter.compare_exported(one.model, one.path, settings, split.dataset, split, lines.append)
    matrix = np.zeros((3, 3), np.int64)
    for path in sorted((tmp_path / "set/val/images").iterdir()):
        label = np.array(Image.open(tmp_path / "set/val/labels" / path.name))
        ids = one.signatures["predict_tensor"](image=np.array(Image.open(path))[None])["class_map"].numpy()[0]
        np.add.at(matrix, (label, ids), 1)
    expected = metrics.summarize(matrix, ("sky", "ground", "house"))["mIoU"]
    assert re.fullmatch(
        rf"mIoU on 3 of 3 images of folder val: [\d.]+ before, {100 * expected:.3f} exported, [+-][\d.]+", lines[-1]
    )
