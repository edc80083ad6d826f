"""No operation of training, counting and serving lacks a GPU kernel or sends maps through the memory of the host."""

import pytest
import tensorflow as tf

from kseg import models
from kseg.config import Config
from kseg.config.sections import Evaluate, Model, Train
from kseg.evaluation.counter import Counter
from kseg.exporting.precisions import export_network
from kseg.exporting.signatures import Served
from kseg.inference.prediction import Protocol
from kseg.models import layers, norms
from kseg.training import trainer
from kseg.training.step import Steps
from tests.helpers.exhaustive import all_of
from tests.helpers.gpu_kernels import crossings_and_missing, transposes

# The blocks of a stage have the same operations.

HEADS, PRECISIONS = tuple(models.HEADS), ("float32", "mixed_bfloat16", "mixed_float16")
# Every head and every precision once; the other pairs repeat them.
ALWAYS = [(head, PRECISIONS[index % 3]) for index, head in enumerate(HEADS)]
# Float32 convolutions run with the channels first, and what has no such kernel is transposed around. In half precision
# tensor cores take the channels last. A change that raises these counts slows down every step.
FLOAT32_TRANSPOSES = {"encnet": 30, "deeplabv3": 41, "deeplabv3plus": 79, "apcnet": 185, "pspnet": 107, "fcn": 19}
HALF_TRANSPOSES = {"encnet": 6}
# Handles of variables, shapes and seeds are smaller.
LARGEST_CROSSING = 1000


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    for module in (layers, norms):
        monkeypatch.setattr(module, "on_cpu", lambda: False)


def tiny(head):
    return Model(backbone="resnet18", width=8, head=head, channels=16)


def large_crossings(function):
    """Return the types of the operations to which a map crosses; fail if a kernel is missing."""
    crossings, missing = crossings_and_missing(function)
    assert not missing
    return {crossing.type for crossing in crossings if crossing.bytes > LARGEST_CROSSING}


def test_the_walk_finds_missing_kernels_and_crossings():
    @tf.function(input_signature=[tf.TensorSpec((64, 64), tf.int32), tf.TensorSpec((64, 64), tf.bool)])
    def function(ids, mask):
        return tf.cast(tf.roll(mask, 1, 0), tf.float32) + tf.cast(tf.cast(ids, tf.int64) == 1, tf.float32)

    crossings, missing = crossings_and_missing(function.get_concrete_function())
    assert missing == {"Roll"}
    assert {(crossing.type, crossing.bytes) for crossing in crossings} == {
        ("Roll", 64 * 64),
        ("Cast", 64 * 64),
        ("Cast", 64 * 64 * 4),
    }


# Statistics of small maps are computed by other operations, so the maps have their real size.
@pytest.mark.parametrize(
    "head, precision",
    all_of(
        ALWAYS, *((head, precision) for head in HEADS for precision in PRECISIONS if (head, precision) not in ALWAYS)
    ),
)
def test_a_training_step_stays_on_the_gpu(head, precision):
    config = Config(
        model=tiny(head),
        train=Train(global_batch=2, precision=precision, loss_scale_growth=2000 if precision == "mixed_float16" else 0),
    )
    strategy = tf.distribute.get_strategy()
    model, optimizer, average = trainer.build_training(config, 19, lambda line: None)
    step = Steps(model, optimizer, config, strategy, average).step.get_concrete_function(
        {
            "image": tf.TensorSpec((2, 512, 1024, 3), tf.uint8),
            "inside": tf.TensorSpec((2, 4), tf.int32),
            "label": tf.TensorSpec((2, 512, 1024), tf.uint8),
        }
    )
    assert large_crossings(step) == set()
    assert transposes(step) <= (FLOAT32_TRANSPOSES[head] if precision == "float32" else HALF_TRANSPOSES.get(head, 0))


@pytest.fixture(scope="module")
def model():
    return models.build(tiny("fcn"), classes=19)


# Images are resized in exact integers on the host, which has the decoded bytes anyway.
@pytest.mark.parametrize(
    "evaluate, expected",
    [
        (Evaluate(), set()),
        (Evaluate(resize=(1024, 2048)), {"Cast"}),
        (Evaluate(scales=(0.5, 1.0), flip=True), {"Cast"}),
    ],
)
def test_counting_stays_on_the_gpu(model, evaluate, expected):
    counter = Counter(model, Protocol((0.0,) * 3, (1.0,) * 3, evaluate, False), 19, tf.distribute.get_strategy())
    step = counter._make_step(
        {"image": tf.TensorSpec((None, None, 3), tf.uint8), "label": tf.TensorSpec((None, None), tf.uint8)}
    )
    assert large_crossings(step.get_concrete_function()) == expected


def test_deterministic_counting_stays_on_the_cpu(model):
    """TensorFlow refuses to count deterministically on a GPU."""
    counter = Counter(
        model, Protocol((0.0,) * 3, (1.0,) * 3, Evaluate(), False), 19, tf.distribute.get_strategy(), deterministic=True
    )
    step = counter._make_step(
        {"image": tf.TensorSpec((None, None, 3), tf.uint8), "label": tf.TensorSpec((None, None), tf.uint8)}
    ).get_concrete_function()
    counts = [operation for operation in step.graph.get_operations() if operation.type == "DenseBincount"]
    assert counts and all("CPU:0" in operation.device for operation in counts)


def test_exports_stay_on_the_gpu(model):
    network = export_network(model, tiny("fcn"), precision="float32", device="any")
    served = Served(network, Protocol((0.0,) * 3, (1.0,) * 3, Evaluate(), False), (64, 64), 10**6, all_scores=True)
    for name in ("predict_tensor", "predict_scores", "predict_all_scores"):
        assert large_crossings(served.functions[name].get_concrete_function()) == set(), name
