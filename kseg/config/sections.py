"""The values of a config, one frozen dataclass for each section; kseg.config puts them together."""

from dataclasses import dataclass, field
from typing import Literal

# The label value of pixels that no loss and no metric counts, everywhere.
IGNORED = 255


@dataclass(frozen=True)
class Data:
    """Where examples come from. `directory` is the data set's own; empty means $KSEG_DATA/NAME, else data/NAME."""

    name: str = "shapes"
    directory: str = ""
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    # What an example that cannot be read does to training: it stops it, or is left out and counted, and the next one
    # of the split stands in for it.
    unreadable: Literal["stop", "skip"] = "stop"
    # GiB that reading ahead may fill with examples for training.
    memory: float = 1.0
    # An address like grpc://host:port of a tf.data service that reads in this process's stead; empty: none.
    service: str = ""
    # RGB mean and standard deviation on the 0..255 scale.
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Augment:
    """Training augmentation, in the order it is applied; sizes are (height, width)."""

    # The box that the random factor multiplies and the picture is fitted into; empty: the picture's own size.
    scale: tuple[int, ...] = ()
    scale_range: tuple[float, ...] = (0.5, 2.0)
    crop: tuple[int, ...] = (512, 512)
    # A crop is drawn again while one class fills at least this share of its labelled pixels, `crop_tries` times.
    cat_max_ratio: float = 0.75
    crop_tries: int = 10
    flip: float = 0.5
    photometric: bool = True
    # Where a picture smaller than the crop stands in it (MMSegmentation: corner, SSSegmentation: centre), and on what:
    # the mean colour, or black (MMSegmentation on VOC). Its label is 255 there.
    pad: Literal["corner", "centre"] = "corner"
    pad_colour: Literal["mean", "black"] = "mean"
    # Layers of KerasCV that follow, by their names in kseg.input_pipeline.kerascv_augmentations; the extra [dev] installs them.
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encnet:
    """Context encoding head."""

    codewords: int = 32
    lateral: bool = False
    se: bool = True


@dataclass(frozen=True)
class Fcn:
    """Fully convolutional head used as the main one."""

    convolutions: int = 2
    concat_input: bool = True


@dataclass(frozen=True)
class Deeplab:
    """Atrous spatial pyramid pooling of the heads deeplabv3 and deeplabv3plus."""

    # Empty: 1, 12, 24, 36 at output stride 8 and 1, 6, 12, 18 at 16, as published.
    dilations: tuple[int, ...] = ()
    # Channels to which deeplabv3plus reduces stage 1 before it joins it; 0: it joins none and stays at its stride.
    shortcut_channels: int = 48


@dataclass(frozen=True)
class Apcnet:
    """Adaptive context modules, one for each pool scale."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    fusion: bool = True


@dataclass(frozen=True)
class Pspnet:
    """Pyramid pooling."""

    pool_scales: tuple[int, ...] = (1, 2, 3, 6)


@dataclass(frozen=True)
class Model:
    """Backbone, main head and auxiliary head. The ResNet variants v1, v1b, v1c, v1d are values of stem, stride_on and
    downsample: v1 strides on the 1x1, v1b on the 3x3, v1c has the deep stem too, and v1d averages on its shortcuts."""

    backbone: str = "resnet50"
    # "deep": three 3x3 convolutions (v1c, v1d); "7x7": one (v1, v1b, torchvision).
    stem: Literal["deep", "7x7"] = "deep"
    # Channels of the first stage; a bottleneck multiplies them by 4.
    width: int = 64
    # Channels of the stem; 0: as many as width.
    stem_channels: int = 0
    # Which convolution of a bottleneck strides.
    stride_on: Literal["3x3", "1x1"] = "3x3"
    # What a strided shortcut does: a strided 1x1 convolution, or average pooling before one (v1d).
    downsample: Literal["convolution", "average"] = "convolution"
    output_stride: Literal[8, 16] = 8
    # The first block of a dilated stage takes half the dilation.
    contract_dilation: bool = True
    # Dilations of the last stage's blocks, instead of the stage's own and not multiplied by it; empty: the stage's.
    multi_grid: tuple[int, ...] = ()
    head: str = "encnet"
    channels: int = 512
    # Channels of the auxiliary FCN head on stage 3; 0: none.
    auxiliary_channels: int = 256
    dropout: float = 0.1
    align_corners: bool = False
    # How weights start that no file gives: Kaiming normal and a last gamma of 0 in each block (MMSegmentation), or
    # PyTorch's uniform defaults everywhere (SSSegmentation).
    initial_weights: Literal["kaiming", "uniform"] = "kaiming"
    encnet: Encnet = field(default_factory=Encnet)
    fcn: Fcn = field(default_factory=Fcn)
    deeplab: Deeplab = field(default_factory=Deeplab)
    apcnet: Apcnet = field(default_factory=Apcnet)
    pspnet: Pspnet = field(default_factory=Pspnet)


@dataclass(frozen=True)
class Init:
    """The files a training run starts from. Loading is strict: what does not fit is an error unless `skip` lists it."""

    # Backbone weights in PyTorch's names (.npz, .pth) or of keras.applications (.h5): a path, or the name of a
    # published file, such as resnet50_v1c; empty: random.
    backbone: str = ""
    # Weights of the whole model (.weights.h5, .pth, .npz): a path; empty: random.
    weights: str = ""
    # Names of weights that are not loaded, or beginnings that end in "*", whichever side has them.
    skip: tuple[str, ...] = ()
    # The order of the input channels that the file was trained with; pictures are RGB here.
    channels: Literal["RGB", "BGR"] = "RGB"


@dataclass(frozen=True)
class Loss:
    """Weights of the loss terms, which pixels count, and what the cross-entropy is divided by."""

    # "all": every pixel, ignored ones too (MMSegmentation's recipes); "valid": the labelled ones only; "kept": those
    # of them that hard example mining keeps.
    average: Literal["all", "valid", "kept"] = "all"
    main: float = 1.0
    auxiliary: float = 0.4
    se: float = 0.2
    # One weight for each class; empty: all 1. Averages divide by the sum of the weights.
    class_weights: tuple[float, ...] = ()
    # Online hard example mining on the main head: at least this many pixels for each image of the batch count, those
    # with the largest loss; 0: all count.
    ohem_kept: int = 0
    # Beyond those, all pixels whose true class has a lower probability; 0: none.
    ohem_threshold: float = 0.0


@dataclass(frozen=True)
class Train:
    """The step loop. `global_batch` is the sum over all replicas; everything counts steps."""

    global_batch: int = 8
    steps: int = 40_000
    learning_rate: float = 0.01
    end_learning_rate: float = 1e-4
    power: float = 0.9
    # The step at which the poly schedule reaches its end; 0: the last one, `steps - 1` (mmengine). SSSegmentation and
    # mmcv 0.x end at `steps`.
    end_step: int = 0
    warmup_steps: int = 0
    warmup_start: float = 0.1
    # Momentum SGD whose decay is an L2 term, or AdamW, whose decay stands beside the gradient.
    optimizer: Literal["sgd", "adamw"] = "sgd"
    # SGD's; AdamW has `betas` and `epsilon`.
    momentum: float = 0.9
    betas: tuple[float, ...] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    # Whether biases and the gammas and betas of norms decay like kernels (both original systems), or not at all.
    decay_all: bool = True
    # What the learning rate of the backbone's weights is multiplied by.
    backbone_rate: float = 1.0
    # Names of layers, or beginnings that end in "*", whose weights stay as they are; a norm among them normalises with
    # the statistics it has.
    freeze: tuple[str, ...] = ()
    # Parts that each replica takes its share of the batch in, one after another, adding up their gradients. Batch norm
    # sees a part at a time.
    accumulate: int = 1
    # Whether the outputs inside a residual block are computed again for its gradient, and not kept: less memory, a
    # third more time.
    recompute: bool = False
    # A moving average of all weights with this decay is kept, evaluated and exported in their place; 0: none.
    average_decay: float = 0.0
    seed: int = 0
    # Bit-for-bit repeatable kernels, at some cost in speed.
    deterministic: bool = False
    jit_compile: bool = False
    # What the layers compute in; variables, logits and losses stay float32.
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    # On GPUs that have it: convolutions and products of float32 with 10-bit fractions, which is faster and not equal to
    # the original systems to 1e-4.
    tensor_float_32: bool = False
    # The loss is multiplied by it and the gradients divided, so that small ones survive float16. With mixed_float16 a
    # step whose gradients are not finite is left out.
    loss_scale: float = 1.0
    # With mixed_float16: such a step halves the scale, and so many others after another double it; 0: it stays.
    loss_scale_growth: int = 0
    # How often in all a run that met a loss that is not finite may go back to its newest checkpoint and go on without
    # that batch; 0: it stops at the first.
    nonfinite_batches: int = 3
    # Steps that are taken without Python in between; it looks at signals and losses after each call. On one host fewer
    # where they would take more than a few seconds.
    steps_per_call: int = 1
    # Training ends after so many validations without a better mIoU; 0: never.
    patience: int = 0
    log_every: int = 50
    validate_every: int = 4_000
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 3


@dataclass(frozen=True)
class Evaluate:
    """The test protocol. Labels are never resized: predictions are brought to the label's own size."""

    # The (height, width) box a picture is fitted into before the network; empty: its own size.
    resize: tuple[int, ...] = ()
    # (height, width) of the windows that slide over the picture and their step; empty: the whole picture at once.
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    # "twice": logits go to the network's input size and from there to the label's (MMSegmentation); "once": straight
    # to the label's (SSSegmentation).
    resize_logits: Literal["twice", "once"] = "twice"
    # Test-time augmentation: factors under which a picture is looked at, and whether it is looked at mirrored, too.
    # Empty: as it is.
    scales: tuple[float, ...] = ()
    flip: bool = False
    # What the factors multiply: the "picture"'s own size, in place of `resize` (MMSegmentation), or the network's
    # "input" (SSSegmentation).
    scale_of: Literal["picture", "input"] = "picture"
    # What is averaged over scales and mirrored pictures: "probabilities" at the label's size (MMSegmentation),
    # "logits" (SSSegmentation), or probabilities "before resizing" (its option).
    average: Literal["probabilities", "logits", "before resizing"] = "probabilities"


@dataclass(frozen=True)
class Export:
    """What the exported model answers."""

    # What its layers compute in: float32; bfloat16; or float32 from kernels stored as int8, a quarter of the size.
    precision: Literal["float32", "bfloat16", "dynamic-range"] = "float32"
    # "any": the same operations on every device; "cpu": wide convolutions as matrix products of fewer multiplications,
    # faster on CPUs in float32 and slower on GPUs.
    device: Literal["any", "cpu"] = "any"
    # (height, width) of predict_map's answers; empty: the crop's.
    size: tuple[int, ...] = ()
    # Larger pictures are refused before they are decoded.
    max_pixels: int = 64_000_000
    # Whether there is a signature that gives all scores as float32: 4 bytes for each class of each pixel.
    all_scores: bool = False
    # Numbers of pictures in the requests that a server runs before it answers the first one.
    warmup_batches: tuple[int, ...] = (1, 2, 4)
