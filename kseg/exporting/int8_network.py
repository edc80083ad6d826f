"""Make a network that computes with 8-bit integers, and measure what it loses."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kseg.config import Config
from kseg.datasets.registry import Dataset, Split
from kseg.errors import ConfigError, UserError
from kseg.evaluation import metrics
from kseg.evaluation.counter import Counter
from kseg.exporting import quantized_layers
from kseg.exporting.calibration import Calibration, ChannelStatistics, calibration_images, measure
from kseg.exporting.int8_plan import Form, Plan, Step, is_depthwise, plan_integers
from kseg.exporting.precisions import Network, folded_model
from kseg.exporting.quantized_layers import LARGEST_CODE, Codes, Geometry, IntegerConvolution
from kseg.inference.prediction import Protocol, protocol_of
from kseg.system.progress import Progress

# A channel gets at least this fraction of the largest channel's scale. Otherwise the kernel of the next convolution
# would need steps for the largest and the smallest channel at once.
SMALLEST_RELATIVE_SCALE = 1e-3


class Quantized(NamedTuple):
    """Hold an int8 network and the facts about it that its export records."""

    network: Network
    facts: dict


def quantize_network(
    model: keras.Model,
    config: Config,
    dataset: Dataset,
    calibration: Calibration,
    report: Callable[[str], None] = print,
) -> Quantized:
    """Quantize a trained model, and refuse a result that loses too much accuracy.

    Args:
        model: A model of `kseg.models.build` with its trained weights.
        config: Its config; `evaluate` has the test protocol, and `export.largest_loss` the limit.
        dataset: Its dataset record.
        calibration: The images.
        report: Receives progress lines and the loss.

    Returns:
        The network, which runs only on CPUs, and its facts as JSON values.

    Raises:
        ConfigError: TensorFlow cannot compute with integers in this process, or no layer of the model can.
        DataError: An image of the splits cannot be read.
        UserError: The loss exceeds `export.largest_loss`.
    """
    quantized_layers.require_kernels()
    main, protocol = folded_model(model, "cpu"), protocol_of(config)
    plan = plan_integers(main)
    if not plan.convolutions:
        raise ConfigError(f"export.precision=int8: no convolution of {model.name} can compute with integers")
    split, test_split = calibration.split, calibration.test_split
    count = min(calibration.images, len(split.names))
    report(f"calibrating on {count} of {len(split.names)} images of {dataset.name} {split.name}")
    images = calibration_images(split, count)
    statistics = measure(main, plan, images, protocol, Progress(count, "images", report))
    classes = main.output.shape[-1]
    network = integer_network(main, plan, statistics)
    report(
        f"measuring the loss on {len(test_split.names)} images of {dataset.name} {test_split.name}, "
        "in float32 and in int8"
    )
    exact = Network(lambda images: main(images, training=False), [], classes)
    before, after = (mean_iou(each, dataset, test_split, protocol, report) for each in (exact, network))
    loss, limit = 100 * (before - after), config.export.largest_loss
    report(f"mIoU {100 * before:.2f} -> {100 * after:.2f} ({-loss:+.2f})")
    # A comparison with nan is false.
    if not loss <= limit:
        raise UserError(
            f"int8 costs {loss:.2f} points of mIoU on {dataset.name} {test_split.name}, and export.largest_loss is "
            f"{limit:g}: calibrate on more images, set export.largest_loss, or choose another export.precision"
        )
    integers = [step.layer.name for step in plan.convolutions]
    return Quantized(
        network,
        {
            "calibration": {"split": split.name, "images": count},
            "mIoU": {"split": test_split.name, "images": len(test_split.names), "float32": before, "int8": after},
            "runs_on": "x86-64 CPUs, by TensorFlow with oneDNN (TF_ENABLE_ONEDNN_OPTS=1)",
            "int8_layers": integers,
            "float32_layers": [layer.name for layer in main.layers if layer.weights and layer.name not in integers],
        },
    )


def mean_iou(
    model: keras.Model, dataset: Dataset, split: Split, protocol: Protocol, report: Callable[[str], None]
) -> float:
    """Return the mIoU of a model, a fraction, on a whole split."""
    counter = Counter(model, protocol, len(dataset.classes), tf.distribute.get_strategy())
    counts = counter.count(split, Progress(len(split.names), "images", report))
    return metrics.summarize(counts.matrix, dataset.classes)["mIoU"]


def integer_network(model: keras.Model, plan: Plan, statistics: dict[str, ChannelStatistics]) -> Network:
    """Return the network of a plan, with the ranges of its codes from statistics.

    Args:
        model: The functional model of the plan.
        plan: The plan.
        statistics: Those of `calibration.measure`.
    """
    scales = code_scales(plan, statistics)
    # The constants of a function are stored once, however many signatures call it.
    call = tf.function(
        _Execution(plan, scales, statistics).run,
        autograph=False,
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)],
    )
    variables = [variable.value for step in plan.steps if step.form is Form.FLOAT for variable in step.layer.variables]
    return Network(call, variables, model.output.shape[-1])


def code_scales(plan: Plan, statistics: dict[str, ChannelStatistics]) -> dict[str, np.ndarray]:
    """Return the scale of each channel, float32 (C,), for all tensors of a plan that have codes.

    The largest code stands for the largest value of the calibration. On trained models, ranges of the least squared
    error and percentiles were no better.
    """
    scales = {}
    for name in plan.scaled:
        largest = statistics[name].largest.astype(np.float64) + shift_of(statistics[name])
        # A tensor that is zero on all images gets an arbitrary scale.
        highest = largest.max() or 1.0
        smallest = highest if name in plan.uniform else highest * SMALLEST_RELATIVE_SCALE
        scales[name] = (np.maximum(largest, smallest) / LARGEST_CODE).astype(np.float32)
    for step in plan.steps:
        if step.form is Form.MOVED:
            scales[step.output] = np.concatenate([scales[name] for name in step.inputs])
    return scales


def shift_of(statistics: ChannelStatistics) -> np.ndarray:
    """Return the constant of each channel (C,), at least 0, whose sum with a tensor is not negative."""
    return np.maximum(-statistics.smallest.astype(np.float64), 0)


class _Execution:
    """The steps of a plan with their integers."""

    def __init__(self, plan: Plan, scales: dict[str, np.ndarray], statistics: dict[str, ChannelStatistics]):
        self.plan, self.scales = plan, scales
        shifted = {step.output for step in plan.steps if step.form is Form.SHIFTED}
        self.convolutions = {
            step.output: _integer_convolution(step, scales, statistics, shifted) for step in plan.convolutions
        }

    def run(self, images: tf.Tensor) -> tf.Tensor:
        tensors = _Tensors(self.plan.source, images, self.scales)
        for step in self.plan.steps:
            match step.form:
                case Form.FLOAT:
                    inputs = [tensors.floats_of(name) for name in step.inputs]
                    tensors.floats[step.output] = step.layer(inputs if len(inputs) > 1 else inputs[0])
                case Form.MOVED:
                    tensors.codes[step.output] = move(step.layer, [tensors.codes_of(name) for name in step.inputs])
                case Form.RECTIFIED | Form.SHIFTED:
                    codes = tensors.codes_of(step.inputs[0])
                    tensors.codes[step.output] = self.convolutions[step.output].rectified(codes)
                case Form.RECTIFIED_SUM:
                    codes, summand = (tensors.codes_of(name) for name in step.inputs)
                    tensors.codes[step.output] = self.convolutions[step.output].rectified_sum(codes, summand)
        return tensors.floats_of(self.plan.target)


class _Tensors:
    """The tensors computed so far, as floats, as codes or as both; each is converted once, where it is needed."""

    def __init__(self, source: str, images: tf.Tensor, scales: dict[str, np.ndarray]):
        self.floats, self.scales = {source: images}, scales
        self.codes: dict[str, Codes] = {}

    def floats_of(self, name: str) -> tf.Tensor:
        if name not in self.floats:
            self.floats[name] = quantized_layers.dequantize(self.codes[name])
        return self.floats[name]

    def codes_of(self, name: str) -> Codes:
        if name not in self.codes:
            self.codes[name] = quantized_layers.quantize(self.floats[name], self.scales[name])
        return self.codes[name]


def move(layer: layers.Layer, inputs: list[Codes]) -> Codes:
    """Apply a layer of int8_plan.MOVING to codes."""
    values, scale = inputs[0]
    match layer:
        case layers.Concatenate():
            return Codes(
                tf.concat([codes.values for codes in inputs], -1), np.concatenate([codes.scale for codes in inputs])
            )
        case layers.ZeroPadding2D():
            # The code of zero is zero.
            return Codes(tf.pad(values, [[0, 0], *layer.padding, [0, 0]]), scale)
        case layers.MaxPooling2D(pool_size=(1, 1)):
            return Codes(values[:, :: layer.strides[0], :: layer.strides[1]], scale)
    return Codes(tf.nn.max_pool2d(values, layer.pool_size, layer.strides, layer.padding.upper()), scale)


def _integer_convolution(
    step: Step, scales: dict[str, np.ndarray], statistics: dict[str, ChannelStatistics], shifted: set[str]
) -> IntegerConvolution:
    """Return the convolution of a step; `shifted` are the tensors that have a shift added to them."""
    layer, source = step.layer, step.inputs[0]
    kernel, *biases = layer.get_weights()
    bias = biases[0].astype(np.float64) if biases else np.zeros(scales[step.output].shape)
    if step.output in shifted:
        bias = bias + shift_of(statistics[step.output])
    if step.form is Form.RECTIFIED_SUM and step.inputs[1] in shifted:
        bias = bias - shift_of(statistics[step.inputs[1]])
    return IntegerConvolution(
        kernel,
        bias,
        is_depthwise(layer),
        Geometry(layer.strides, layer.padding, layer.dilation_rate),
        scales[source],
        statistics[source].mean,
        scales[step.output],
    )
