"""Export: the same ids as the model gives, on every signature; what a server may load; what it must refuse."""

import base64
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

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
from tests.helpers.shared_files import CAMVID, needs_camvid
from tests.helpers.small_sets import folder
from tests.helpers.splits import val_split

HEADS = ("encnet", "deeplabv3", "deeplabv3plus", "apcnet")
CLASSES = 3
SIZES = ((40, 56), (33, 47), (64, 30), (1, 1), (57, 40))
PROTOCOLS = {"encnet": Evaluate(resize=(48, 80)), "deeplabv3": Evaluate(window=(32, 40), stride=(20, 24)),
             "deeplabv3plus": Evaluate(), "apcnet": Evaluate(scales=(0.5, 1.25), flip=True)}
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


def lively(settings):
    """A model whose norms have learned something and whose classes differ from pixel to pixel."""
    keras.utils.set_random_seed(3)
    model, generator = models.build(settings.model, CLASSES), np.random.default_rng(0)
    for layer in model.layers:
        if layer.__class__.__name__ == "BatchNormalization":
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    last = model.get_layer("decode_head.conv_seg")
    kernel, bias = last.get_weights()
    last.set_weights([generator.normal(0, 1, kernel.shape), bias])
    # Such that no class wins everywhere.
    logits = model(generator.normal(0, 1, (2, 64, 64, 3)).astype(np.float32))["main"].numpy()
    last.set_weights([last.get_weights()[0], -logits.mean((0, 1, 2))])
    return model


class Case:
    """An exported model, loaded as a server loads it, beside the model in memory."""

    def __init__(self, directory, head, precision="float32", settings=None, model=None):
        data = folder(directory / "set", {"val": [np.zeros((8, 8))]})
        self.config = settings or Config(
            data=data, augment=Augment(crop=(24, 32)), evaluate=PROTOCOLS[head],
            model=Model(backbone="resnet18", width=4, channels=8, auxiliary_channels=4, head=head))
        self.dataset = find_dataset(self.config.data)
        self.model = model or lively(self.config)
        self.lines = []
        self.config = replace(self.config, export=replace(self.config.export, precision=precision))
        self.place = exporter.export(self.model, self.config, self.dataset, directory / "served",
                                     report=self.lines.append)
        self.signatures = tf.saved_model.load(str(self.place)).signatures
        self.predict = prediction.predictor(self.model, prediction.protocol_of(self.config))

    def close_calls(self, image, ids, other):
        """Return how many pixels differ, and how many of them are no close call between two classes."""
        scores = tf.function(lambda images: prediction.predict_scores(
            self.model, images, image.shape[:2], prediction.protocol_of(self.config)))(image[None])[0].numpy()
        two = np.sort(scores, axis=-1)[..., -2:]
        clear = two[..., 1] - two[..., 0] > 1e-4 * np.maximum(1, np.abs(two[..., 1]))
        return (ids != other).sum(), ((ids != other) & clear).sum()


@pytest.fixture(scope="module", params=HEADS)
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("a place"), request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("one"), "deeplabv3plus")


def pictures():
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (*size, 3)).astype(np.uint8) for size in SIZES]


def png(image):
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def maps(answer):
    """The class maps of a serving_default answer, read by another decoder."""
    found = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in answer["png_bytes"].numpy()]
    assert [list(ids.shape) for ids in found] == answer["size"].numpy().tolist()
    return found


def test_every_signature_gives_the_models_ids(case):
    images = pictures()
    data = tf.constant([png(image) for image in images])
    examples = tf.constant([tf.train.Example(features=tf.train.Features(feature={IMAGE_FEATURE: tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[png(image)]))})).SerializeToString() for image in images])
    served = maps(case.signatures["serving_default"](image_bytes=data))
    again = maps(case.signatures["serve_tf_examples"](examples=examples))
    different = 0
    for image, ids, same in zip(images, served, again, strict=True):
        assert (ids == same).all()
        tensor = case.signatures["predict_tensor"](image=image[None])["class_map"].numpy()
        scores = case.signatures["predict_scores"](image=np.stack([image, image]))
        assert (tensor[0] == ids).all()
        assert (scores["class_map"].numpy() == tensor).all()
        assert scores["confidence"].shape == (2, *image.shape[:2]) and scores["confidence"].numpy().min() >= 255 // 3
        # Folding rounds elsewhere, so a close call between two classes may fall the other way, and nothing else.
        found, clear = case.close_calls(image, case.predict(image), ids)
        different += found
        assert clear == 0
    assert different <= 20 and len(np.unique(np.concatenate([ids.ravel() for ids in served]))) > 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sizes_and_formats_mix_in_one_request(one, count):
    images = pictures()[:count]
    data = [png(image) if index % 2 else cv2.imencode(".jpg", image)[1].tobytes() for index, image in enumerate(images)]
    together = maps(one.signatures["serving_default"](image_bytes=tf.constant(data)))
    for alone, ids in zip(data, together, strict=True):
        assert (maps(one.signatures["serving_default"](image_bytes=tf.constant([alone])))[0] == ids).all()
    answer = one.signatures["predict_map"](image_bytes=tf.constant(data))
    assert answer["class_map"].shape == (count, 24, 32)
    for image, ids in list(zip(images, answer["class_map"].numpy()))[1::2]:
        fitted = cv2.resize(image, (32, 24), interpolation=cv2.INTER_LINEAR)
        assert one.close_calls(fitted, one.predict(fitted), ids)[1] == 0


@pytest.mark.parametrize("source", ["drawn", pytest.param("camvid", marks=needs_camvid)])
def test_the_model_its_export_rest_and_grpc_give_the_same_ids(case, source):
    """All heads and protocols; CamVid's pictures are 480x360 JPEGs."""
    import grpc
    import requests
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from serving.config.flags import Options
    from serving.model_server import Server

    data = [png(image) for image in pictures()] if source == "drawn" else [
        path.read_bytes() for path in sorted((CAMVID / "test" / "images").iterdir())[:2]]
    loaded = case.signatures["serving_default"](image_bytes=tf.constant(data))
    server = Server(Options(port=-1, rest_api_port=-1, model_name="case", model_base_path=str(case.place.parent)))
    server.start()
    try:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "case"
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(data))
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=300)
        rest = requests.post(f"http://127.0.0.1:{server.rest_port}/v1/models/case:predict", timeout=300, json={
            "instances": [{"b64": base64.b64encode(picture).decode()} for picture in data]})
    finally:
        server.stop()
    files = list(answer.outputs["png_bytes"].string_val)
    assert files == [base64.b64decode(row["png_bytes"]["b64"]) for row in rest.json()["predictions"]]
    sizes = tf.make_ndarray(answer.outputs["size"]).tolist()
    assert sizes == [row["size"] for row in rest.json()["predictions"]] == loaded["size"].numpy().tolist()
    for picture, file, ids in zip(data, files, maps(loaded), strict=True):
        served = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (served == ids).all()
        image = decode_image(tf.constant(picture)).numpy()
        # Folding rounds elsewhere: what is no close call between two classes is equal to the model in memory.
        different, clear = case.close_calls(image, case.predict(image), served)
        assert clear == 0 and different <= 1e-3 * ids.size


def test_what_is_written(one):
    assert (one.place / "signatures.txt").read_text() == SIGNATURES
    assert json.loads((one.place / "assets" / "classes.json").read_text())["classes"] == ["sky", "ground", "house"]
    assert json.loads((one.place / "assets" / "provenance.json").read_text())["kseg"]
    assert json.loads((one.place / "assets" / "config.json").read_text())["model"]["head"] == "deeplabv3plus"
    # The auxiliary head is not in it, and each convolution has one kernel and one bias, but no norm.
    variables = tf.train.list_variables(str(one.place / "variables" / "variables"))
    shapes = [shape for name, shape in variables if "held" in name]
    main = models.main_only(one.model)
    assert len(shapes) < len(main.weights) and not any("moving" in name for name, _ in variables)
    kernels = sum(np.prod(shape) for shape in shapes if len(shape) == 4)
    assert kernels == sum(np.prod(weight.shape) for weight in main.weights if len(weight.shape) == 4)
    assert kernels < sum(np.prod(weight.shape) for weight in one.model.weights if len(weight.shape) == 4)


def test_warm_up_requests_of_each_signature_and_batch(one):
    path = one.place / "assets.extra" / "tf_serving_warmup_requests"
    assert warmup.replay_warmup(path, one.signatures) == 5 * len(one.config.export.warmup_batches)
    from tensorflow_serving.apis import prediction_log_pb2

    batches = set()
    for record in tf.data.TFRecordDataset(str(path)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        (value,) = request.inputs.values()
        batches.add((request.model_spec.signature_name, value.tensor_shape.dim[0].size))
    assert batches == {(name, batch) for name in one.signatures for batch in one.config.export.warmup_batches}


def bomb(height, width):
    """A PNG that says it has so many pixels."""
    data = bytearray(png(np.zeros((2, 2, 3), np.uint8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("data, message", [
    (b"hello", "neither a JPEG nor a PNG"), (b"", "neither a JPEG nor a PNG"), (b"GIF89a" + bytes(40), "neither"),
    (png(np.zeros((9, 9, 3), np.uint8))[:20], "less than its header"),
    (png(np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8))[:300], "PNG"),
    (cv2.imencode(".jpg", np.zeros((90, 90, 3), np.uint8))[1].tobytes()[:200], "JPEG"),
    (bomb(8001, 8000), "at most this many"), (bomb(2**31 - 1, 2**31 - 1), "at most this many")])
def test_bad_bytes_are_invalid_arguments(one, data, message):
    good = png(np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        one.signatures["serving_default"](image_bytes=tf.constant([good, data]))
    # And the model goes on.
    assert maps(one.signatures["serving_default"](image_bytes=tf.constant([good])))[0].shape == (5, 5)


def test_a_wrong_rank_is_an_invalid_argument(one, tmp_path):
    """As from a server, which does not check shapes; in a convolution it would end the process."""
    place = tmp_path / "unchecked"
    shutil.copytree(one.place, place)
    model = saved_model_pb2.SavedModel.FromString((place / "saved_model.pb").read_bytes())
    for node in model.meta_graphs[0].graph_def.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.Clear()
            node.attr["shape"].shape.unknown_rank = True
            node.attr.pop("_output_shapes", None)
    (place / "saved_model.pb").write_bytes(model.SerializeToString())
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definitions = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(place)).signature_def
        for name in one.signatures:
            (tensor,) = definitions[name].inputs.values()
            pixels = tensor.dtype == tf.uint8.as_datatype_enum
            black = np.zeros((4, 4, 3), np.uint8)
            wrong = black if pixels else np.array([[png(black)]], object)
            with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible with expected shape"):
                session.run([value.name for value in definitions[name].outputs.values()], {tensor.name: wrong})


@pytest.mark.parametrize("precision, most", [("bfloat16", 0.1), ("dynamic-range", 0.1)])
def test_other_precisions_are_close_and_smaller(one, tmp_path, precision, most):
    low = Case(tmp_path, "deeplabv3plus", precision, one.config, one.model)
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    ids, other = (each.signatures["predict_tensor"](image=image[None])["class_map"].numpy() for each in (one, low))
    assert 0 < (ids != other).mean() < most
    assert json.loads((low.place / "assets" / "config.json").read_text())["export"]["precision"] == precision
    stored = [dtype for name, dtype in tf.train.load_checkpoint(
        str(low.place / "variables" / "variables")).get_variable_to_dtype_map().items() if "held" in name]
    assert (tf.int8 in stored) == (precision == "dynamic-range")


@pytest.mark.parametrize("head", ["deeplabv3plus", "apcnet"])
def test_all_scores_are_probabilities(one, head):
    settings = replace(one.config, evaluate=PROTOCOLS[head])
    network = export_network(one.model, settings.model, "float32", "any")
    answers = Served(network, prediction.protocol_of(settings), (24, 32), 10**6, all_scores=True).answers
    image = np.random.default_rng(2).integers(0, 256, (1, 40, 56, 3)).astype(np.uint8)
    # One row above 1,000,000 pixels; a tensor of one value repeated is some bytes of a request.
    for name in ("predict_all_scores", "predict_scores", "predict_tensor"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="at most this many"):
            answers[name](tf.zeros((1, 1001, 1000, 3), tf.uint8))
    scores = answers["predict_all_scores"](tf.constant(image))["scores"].numpy()
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    beside = answers["predict_scores"](tf.constant(image))
    assert (np.take_along_axis(scores, beside["class_map"].numpy()[..., None], -1)[..., 0] == scores.max(-1)).all()
    assert (beside["confidence"].numpy() == np.round(255 * scores.max(-1))).all()


def test_versions_count_up_and_none_is_half_written(one, tmp_path, monkeypatch):
    out = tmp_path / "served"
    (out / "7").mkdir(parents=True)
    (out / "notes").mkdir()
    assert exporter.next_version(out) == 8 and exporter.next_version(tmp_path / "none") == 1
    with pytest.raises(UserError, match=r"7 already exists: .*--version.* 8$"):
        exporter.export(one.model, one.config, one.dataset, out, version=7)
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            for path in out.iterdir():
                if path.name.isdigit() and path.name != "7":
                    seen.add((path / "signatures.txt").exists() and (path / "saved_model.pb").exists()
                             and (path / warmup.PLACE).exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        place = exporter.export(one.model, one.config, one.dataset, out, report=lambda line: None)
    finally:
        stop.set()
        watcher.join()
    assert place.name == "8" and seen <= {True}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(warmup, "write_warmup", fail)
    with pytest.raises(UserError, match="cannot write .*9: No space left on device"):
        exporter.export(one.model, one.config, one.dataset, out)
    assert sorted(path.name for path in out.iterdir()) == ["7", "8", "notes"]


def test_a_split_is_counted_before_and_after(one, tmp_path):
    lines = []
    generator = np.random.default_rng(0)
    data = folder(tmp_path / "set", {"val": [generator.integers(0, 3, (30, 40)) for _ in range(3)]})
    settings = replace(one.config, data=data)
    split = val_split(settings)
    exporter.compare_exported(one.model, one.place, settings, split.dataset, split, lines.append)
    assert lines[-1].startswith("mIoU on 3 of 3 images of folder val: ") and "before" in lines[-1]
    matrix = np.zeros((3, 3), np.int64)
    for path in sorted((tmp_path / "set/val/images").iterdir()):
        label = np.array(Image.open(tmp_path / "set/val/labels" / path.name))
        ids = one.signatures["predict_tensor"](image=np.array(Image.open(path))[None])["class_map"].numpy()[0]
        np.add.at(matrix, (label, ids), 1)
    expected = metrics.summarize(matrix, ("sky", "ground", "house"))["mIoU"]
    assert exporter.exported_accuracy(one.place, split.dataset, split)["mIoU"] == expected


@needs_camvid
def test_real_pictures(case):
    for path in sorted(Path(CAMVID, "test", "images").iterdir())[:2]:
        image = np.array(Image.open(path).convert("RGB"))
        ids = maps(case.signatures["serving_default"](image_bytes=tf.constant([png(image)])))[0]
        assert case.close_calls(image, case.predict(image), ids)[1] == 0
