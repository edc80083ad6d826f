"""The values of a config, one frozen dataclass for each section, with their limits; kseg.config combines them.

The comment above a field describes it and becomes its row in docs/configuration.md (kseg.config.fields).
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from kseg.config.limits import Above, AtLeast, Below, Between, Length, NotEmpty
from kseg.config.renames import accept_old_names

# The label value of pixels that losses and metrics ignore.
IGNORED = 255

# Random numbers are drawn from pairs of int32.
LARGEST_SEED = 2**31 - 1

Fraction = Annotated[float, Between(0, 1)]
# Divisors are computed as 1 - value, so 1 itself is excluded.
FractionBelowOne = Annotated[float, AtLeast(0), Below(1)]
OptionalSize = Annotated[tuple[int, ...], Length(2, optional=True), Above(0)]


@dataclass(frozen=True)
class Data:
    """The dataset, how it is read, and the pixel statistics that normalize its images."""

    # Name of the dataset: shapes, camvid, cityscapes, ade20k, voc2012, or folder for your own.
    name: str = "shapes"
    # Directory of the dataset; empty: $KSEG_DATA/NAME, or data/NAME without KSEG_DATA.
    directory: str = ""
    # Split to train on.
    train_split: str = "train"
    # Split to validate on during training.
    val_split: str = "val"
    # Split of held-out images; no command reads it by default (`kseg.evaluate --split`).
    test_split: str = "test"
    # "stop": raise on the first unreadable example. "skip": log it and use the next example of the split instead.
    unreadable: Literal["stop", "skip"] = "stop"
    # Memory for training examples that are read ahead, in GiB.
    memory: Annotated[float, Above(0)] = 1.0
    # Address of a tf.data service that reads for this process, such as grpc://host:5050; empty: read in this process.
    service: str = ""
    # Values (low, high) of images with more than 8 bits that become 0 and 255, such as 0,4095 for 12 bits; empty: 0 and
    # 65535. Images of 8 bits do not change.
    value_range: Annotated[tuple[float, ...], Length(2, optional=True)] = ()
    # RGB mean on the 0..255 scale.
    mean: Annotated[tuple[float, ...], Length(3)] = (123.675, 116.28, 103.53)
    # RGB standard deviation on the 0..255 scale.
    std: Annotated[tuple[float, ...], Length(3), Above(0)] = (58.395, 57.12, 57.375)


@accept_old_names("augment")
@dataclass(frozen=True)
class Augment:
    """Training augmentation, in the order in which it is applied; sizes are (height, width)."""

    # Box that is multiplied by the random factor and into which the image is fitted; empty: the image's own size.
    scale: OptionalSize = ()
    # Range of the random factor.
    scale_range: Annotated[tuple[float, ...], Length(2), Above(0)] = (0.5, 2.0)
    # Size of the random crop.
    crop: Annotated[tuple[int, ...], Length(2), Above(0)] = (512, 512)
    # A crop is redrawn while one class fills at least this fraction of its labeled pixels.
    cat_max_ratio: Fraction = 0.75
    # Maximum number of times that a crop is redrawn.
    crop_tries: Annotated[int, AtLeast(0)] = 10
    # Probability of mirroring the image.
    flip: Fraction = 0.5
    # Whether to apply MMSegmentation's random brightness, contrast, saturation and hue.
    photometric: bool = True
    # Position of an image smaller than the crop: corner (MMSegmentation) or center (SSSegmentation).
    pad: Literal["corner", "center"] = "corner"
    # Color around an image smaller than the crop: the mean, or black (MMSegmentation on VOC). Its label is ignored.
    pad_color: Literal["mean", "black"] = "mean"
    # KerasCV layers applied last, by their names in kseg.input_pipeline.kerascv_augmentations; the extra [dev] installs
    # KerasCV.
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encnet:
    """Context encoding head of EncNet."""

    # Number of codewords.
    codewords: Annotated[int, Above(0)] = 32
    # Whether lateral connections join stages 2 and 3 to the last stage.
    lateral: bool = False
    # Whether to predict which classes are present (semantic encoding loss).
    se: bool = True


@dataclass(frozen=True)
class Fcn:
    """Fully convolutional main head."""

    # Number of 3x3 convolutions.
    convolutions: Annotated[int, Above(0)] = 2
    # Whether to concatenate the backbone's features with the convolutions' output.
    concat_input: bool = True


@dataclass(frozen=True)
class Deeplab:
    """Atrous spatial pyramid pooling of the heads deeplabv3 and deeplabv3plus."""

    # Dilations of the branches; empty: 1, 12, 24, 36 at output stride 8 and 1, 6, 12, 18 at 16, as published.
    dilations: Annotated[tuple[int, ...], Above(0)] = ()
    # Channels to which deeplabv3plus reduces stage 1 before it joins it; 0: stage 1 is not joined.
    shortcut_channels: Annotated[int, AtLeast(0)] = 48


@dataclass(frozen=True)
class Apcnet:
    """Adaptive context head of APCNet."""

    # Pool sizes, one adaptive context module for each.
    pool_scales: Annotated[tuple[int, ...], NotEmpty(), Above(0)] = (1, 2, 3, 6)
    # Whether each context module ends with a 1x1 convolution.
    fusion: bool = True


@dataclass(frozen=True)
class Pspnet:
    """Pyramid pooling head of PSPNet."""

    # Pool sizes, one branch for each.
    pool_scales: Annotated[tuple[int, ...], NotEmpty(), Above(0)] = (1, 2, 3, 6)


@dataclass(frozen=True)
class Model:
    """Backbone, main head and auxiliary head.

    The ResNet variants differ in stem, stride_on and downsample: v1 strides on the 1x1 convolution, v1b on the 3x3 one,
    v1c adds the deep stem to v1b, and v1d adds average pooling on the shortcuts to v1c.
    """

    # Backbone: resnet18, resnet50 or resnet101.
    backbone: str = "resnet50"
    # "deep": three 3x3 convolutions (v1c, v1d). "7x7": one convolution (v1, v1b, torchvision).
    stem: Literal["deep", "7x7"] = "deep"
    # Channels of the first stage; a bottleneck multiplies them by 4.
    width: Annotated[int, Above(0)] = 64
    # Channels of the stem; 0: the same as width.
    stem_channels: Annotated[int, AtLeast(0)] = 0
    # Convolution of a bottleneck that strides.
    stride_on: Literal["3x3", "1x1"] = "3x3"
    # Strided shortcuts: a strided 1x1 convolution, or average pooling before a 1x1 convolution (v1d).
    downsample: Literal["convolution", "average"] = "convolution"
    # Ratio of the input size to the size of the backbone's features.
    output_stride: Literal[8, 16] = 8
    # Whether the first block of a dilated stage uses half the dilation.
    contract_dilation: bool = True
    # Dilations of the last stage's blocks, which replace the stage's dilation; empty: the stage's dilation.
    multi_grid: Annotated[tuple[int, ...], Above(0)] = ()
    # Main head: encnet, fcn, deeplabv3, deeplabv3plus, apcnet or pspnet.
    head: str = "encnet"
    # Channels of the main head.
    channels: Annotated[int, Above(0)] = 512
    # Channels of the auxiliary FCN head on stage 3; 0: no auxiliary head.
    auxiliary_channels: Annotated[int, AtLeast(0)] = 256
    # Dropout rate before the classifiers.
    dropout: FractionBelowOne = 0.1
    # Whether bilinear resizing aligns the corner pixels of input and output.
    align_corners: bool = False
    # Initialization of weights without a file: Kaiming normal with a zero last gamma in each block (MMSegmentation), or
    # PyTorch's uniform defaults (SSSegmentation).
    initial_weights: Literal["kaiming", "uniform"] = "kaiming"
    encnet: Encnet = field(default_factory=Encnet)
    fcn: Fcn = field(default_factory=Fcn)
    deeplab: Deeplab = field(default_factory=Deeplab)
    apcnet: Apcnet = field(default_factory=Apcnet)
    pspnet: Pspnet = field(default_factory=Pspnet)


@dataclass(frozen=True)
class Init:
    """The files that training starts from. Loading is strict: every mismatch that `skip` does not list is an error."""

    # Backbone weights with PyTorch's names (.npz, .pth) or of keras.applications (.h5): a path, or the name of a
    # published file such as resnet50_v1c; empty: random weights.
    backbone: str = ""
    # Weights of the whole model (.weights.h5, .pth, .npz): a path; empty: random weights.
    weights: str = ""
    # Names of weights to skip, or prefixes that end in "*", whether the file or the model has them.
    skip: tuple[str, ...] = ()
    # Channel order of the images that the file was trained on; kseg's images are RGB.
    channels: Literal["RGB", "BGR"] = "RGB"


@dataclass(frozen=True)
class Loss:
    """Weights of the loss terms, and the pixels that count."""

    # Divisor of the cross-entropy: "all" pixels, ignored ones included (MMSegmentation's recipes), "valid" labeled
    # pixels, or labeled pixels "kept" by hard example mining.
    average: Literal["all", "valid", "kept"] = "all"
    # Weight of the main head's cross-entropy.
    main: Annotated[float, AtLeast(0)] = 1.0
    # Weight of the auxiliary head's cross-entropy.
    auxiliary: Annotated[float, AtLeast(0)] = 0.4
    # Weight of EncNet's semantic encoding loss.
    se: Annotated[float, AtLeast(0)] = 0.2
    # One weight for each class, whose sum over the pixels replaces their number in averages; empty: 1 for each class.
    class_weights: Annotated[tuple[float, ...], AtLeast(0)] = ()
    # Hard example mining on the main head: minimum number of pixels for each image of the batch, those with the largest
    # loss; 0: all pixels.
    ohem_kept: Annotated[int, AtLeast(0)] = 0
    # Hard example mining also keeps pixels whose labeled class has a lower probability; 0: none.
    ohem_threshold: Fraction = 0.0


@dataclass(frozen=True)
class Train:
    """The training loop, which counts steps."""

    # Number of images in a step, over all replicas.
    global_batch: Annotated[int, Above(0)] = 8
    # Number of steps.
    steps: Annotated[int, Above(0)] = 40_000
    # Initial learning rate of the polynomial schedule.
    learning_rate: Annotated[float, Above(0)] = 0.01
    # Final learning rate.
    end_learning_rate: Annotated[float, AtLeast(0)] = 1e-4
    # Exponent of the polynomial schedule.
    power: Annotated[float, AtLeast(0)] = 0.9
    # Step at which the schedule ends; 0: the last one, `steps - 1` (mmengine). SSSegmentation and mmcv 0.x end at
    # `steps`.
    end_step: Annotated[int, AtLeast(0)] = 0
    # Number of steps of the linear warm-up; 0: no warm-up.
    warmup_steps: Annotated[int, AtLeast(0)] = 0
    # Factor on the learning rate at the first step of the warm-up.
    warmup_start: Fraction = 0.1
    # "sgd": momentum SGD with L2 weight decay. "adamw": AdamW with decoupled weight decay.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    # Momentum of SGD.
    momentum: FractionBelowOne = 0.9
    # Decay rates of AdamW's moments.
    betas: Annotated[tuple[float, ...], Length(2), AtLeast(0), Below(1)] = (0.9, 0.999)
    # Epsilon of AdamW.
    epsilon: Annotated[float, Above(0)] = 1e-8
    # Weight decay of kernels.
    weight_decay: Annotated[float, AtLeast(0)] = 5e-4
    # Whether weight decay includes biases and the gammas and betas of norms, as in both original systems.
    decay_all: bool = True
    # Factor on the learning rate of the backbone's weights.
    backbone_rate: Annotated[float, AtLeast(0)] = 1.0
    # Names of layers to freeze, or prefixes that end in "*"; a frozen norm normalizes with its stored statistics.
    freeze: tuple[str, ...] = ()
    # Number of parts into which each replica splits its batch to add up their gradients; batch norm sees one part.
    accumulate: Annotated[int, Above(0)] = 1
    # Whether to recompute the outputs inside residual blocks for the gradient: less memory, a third more time.
    recompute: bool = False
    # Decay of an exponential moving average of all weights, which is evaluated and exported; 0: no average.
    average_decay: FractionBelowOne = 0.0
    # Seed of all random numbers.
    seed: Annotated[int, Between(0, LARGEST_SEED)] = 0
    # Whether to use kernels that are reproducible bit for bit, at some cost in speed.
    deterministic: bool = False
    # Whether XLA compiles the step.
    jit_compile: bool = False
    # Precision of the layers; variables, logits and losses stay float32.
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    # Whether GPUs may compute float32 convolutions and products with 10-bit fractions: faster, but logits then
    # differ from the original systems' by more than 1e-4.
    tensor_float_32: bool = False
    # Factor on the loss, by which gradients are divided, so that small gradients survive float16. With mixed_float16 a
    # step with non-finite gradients is skipped.
    loss_scale: Annotated[float, Above(0)] = 1.0
    # With mixed_float16: a skipped step halves the loss scale, and this many finite steps in a row double it; 0: the
    # loss scale is constant.
    loss_scale_growth: Annotated[int, AtLeast(0)] = 0
    # Maximum number of recoveries from a non-finite loss (restore the newest checkpoint, skip the batch). 0: stop at
    # the first.
    nonfinite_batches: Annotated[int, AtLeast(0)] = 3
    # Number of steps between returns to Python, which then checks signals and losses. On one host fewer steps are taken
    # if they would last more than a few seconds.
    steps_per_call: Annotated[int, Above(0)] = 1
    # Number of validations without a better mIoU after which training stops; 0: never.
    patience: Annotated[int, AtLeast(0)] = 0
    # Number of steps between log lines.
    log_every: Annotated[int, Above(0)] = 50
    # Number of steps between validations.
    validate_every: Annotated[int, Above(0)] = 4_000
    # Number of steps between checkpoints.
    checkpoint_every: Annotated[int, Above(0)] = 1_000
    # Number of newest checkpoints to keep.
    keep_checkpoints: Annotated[int, Above(0)] = 3


@dataclass(frozen=True)
class Evaluate:
    """The test protocol. Labels are never resized: predictions are resized to the size of the label."""

    # Box (height, width) into which an image is fitted before the network; empty: the image's own size.
    resize: OptionalSize = ()
    # Size (height, width) of a sliding window; empty: the whole image at once.
    window: OptionalSize = ()
    # Step (vertical, horizontal) of the sliding window.
    stride: OptionalSize = ()
    # "twice": logits are resized to the network's input size and then to the label's size (MMSegmentation). "once":
    # directly to the label's size (SSSegmentation).
    resize_logits: Literal["twice", "once"] = "twice"
    # Factors of test-time augmentation; empty: the image as it is.
    scales: Annotated[tuple[float, ...], Above(0)] = ()
    # Whether test-time augmentation includes the mirrored image.
    flip: bool = False
    # Size multiplied by the factors: the "picture"'s own size instead of `resize` (MMSegmentation), or the network's
    # "input" size (SSSegmentation).
    scale_of: Literal["picture", "input"] = "picture"
    # Quantity averaged over scales and mirrored images: "probabilities" at the label's size (MMSegmentation), "logits"
    # (SSSegmentation), or probabilities "before resizing" (an option of SSSegmentation).
    average: Literal["probabilities", "logits", "before resizing"] = "probabilities"


@dataclass(frozen=True)
class Export:
    """The form of the exported model and its signatures."""

    # Precision of the layers: float32, bfloat16, float32 with kernels stored as int8 ("dynamic-range"), which take a
    # quarter of the space, or convolutions computed in int8 ("int8"), which needs device=cpu and --calibrate.
    precision: Literal["float32", "bfloat16", "dynamic-range", "int8"] = "float32"
    # Maximum loss of mIoU by precision=int8, in points of 100; a model that loses more is not exported.
    largest_loss: Annotated[float, AtLeast(0)] = 0.5
    # "any": the same operations on every device. "cpu": wide convolutions as matrix products with fewer
    # multiplications, which is faster on CPUs in float32 and slower on GPUs.
    device: Literal["any", "cpu"] = "any"
    # Size (height, width) of the results of predict_map, and of the images that other formats than the SavedModel take;
    # empty: the size of the crop, and any size if the format can.
    size: OptionalSize = ()
    # Maximum number of pixels of an image; larger images are rejected before they are decoded.
    max_pixels: Annotated[int, Above(0)] = 64_000_000
    # Whether to add a signature that returns all scores as float32, 4 bytes for each class and pixel.
    all_scores: bool = False
    # Numbers of images in the requests that a server replays before it answers the first one.
    warmup_batches: Annotated[tuple[int, ...], Above(0)] = (1, 2, 4)


@dataclass(frozen=True)
class Tracking:
    """Servers that track experiments; they change nothing of a run."""

    # Address of an MLflow server such as http://host:5000, or a directory; empty: none. The extra [tracking] installs
    # its client.
    mlflow: str = ""
    # Name of the experiment that the run belongs to.
    experiment: str = "kseg"
