"""Diagnose why a weight file does not fit a model, from the names and shapes of their weights."""

import re
from collections.abc import Mapping

from kseg.weights.names import mmseg_head

Shapes = Mapping[str, tuple[int, ...]]

# (blocks of the four stages, whether the blocks are bottlenecks) -> backbone.
BACKBONES = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# Prefix of a weight's name -> system whose checkpoints are not supported.
UNSUPPORTED_SYSTEMS = {
    "backbone.bottom_up.": "Detectron2",
    "backbone.res2.": "Detectron2",
    "classifier.": "torchvision's segmentation",
    "backbone.body.": "torchvision's detection",
    "encoder.": "segmentation_models.pytorch",
    "segformer.": "Hugging Face transformers",
    "model.backbone.": "Lightning",
    "pretrained.": "PyTorch-Encoding",
    "resnet.": "PaddleSeg or another system",
}
# Config key -> {weight of the backbone: the value with which it exists}; the first weight that exists decides.
BACKBONE_VARIANTS = {
    "model.stem": {"stem.0.weight": "deep", "conv1.weight": "7x7"},
    "model.downsample": {"layer2.0.downsample.2.weight": "average", "layer2.0.downsample.0.weight": "convolution"},
}
# Prefix of weights of a head -> config key that decides whether they exist.
OPTIONAL_PARTS = {
    "decode_head.lateral_convs.": "model.encnet.lateral",
    "decode_head.se_layer.": "model.encnet.se",
    "decode_head.conv_cat.": "model.fcn.concat_input",
    "decode_head.acm_modules.0.fusion_conv.": "model.apcnet.fusion",
    "decode_head.c1_bottleneck.": "model.deeplab.shortcut_channels",
}
# Weight -> config key that is its first dimension.
WIDTHS = {
    "layer1.0.conv1.weight": "model.width",
    "decode_head.bottleneck.conv.weight": "model.channels",
    "decode_head.convs.0.conv.weight": "model.channels",
    "decode_head.c1_bottleneck.conv.weight": "model.deeplab.shortcut_channels",
    "decode_head.enc_module.encoding.0.codewords": "model.encnet.codewords",
}
CLASS_LAYERS = ("decode_head.conv_seg.weight", "auxiliary_head.conv_seg.weight", "decode_head.se_layer.weight")


def diagnose(file: Shapes, model: Shapes, head: str = "") -> str:
    """Return why a file does not fit a model, such as "has 150 classes; the dataset has 19".

    Args:
        file: Shapes of the file's weights in PyTorch's layout, by MMSegmentation's names.
        model: Shapes of the model's weights, likewise.
        head: The model's main head; "" if only a backbone is loaded, by torchvision's names.

    Returns:
        A clause that continues the file's name, or "" if no reason is known.
    """
    for check in (
        _system,
        _backbone_or_model,
        _head,
        _depth,
        _variant,
        _classes,
        _auxiliary,
        _optional_parts,
        _width,
        _coverage,
    ):
        if reason := check(file, model, head):
            return reason
    return ""


def _system(file: Shapes, model: Shapes, head: str) -> str:
    if file.keys() & model.keys():
        return ""
    for prefix, system in UNSUPPORTED_SYSTEMS.items():
        if any(name.startswith(prefix) for name in file):
            return f"is a checkpoint of {system}, judging by its names ({prefix}*), which is not supported"
    return ""


def _backbone_or_model(file: Shapes, model: Shapes, head: str) -> str:
    heads = any(name.startswith(("decode_head.", "auxiliary_head.")) for name in file)
    if head and not heads and _blocks(file):
        return "contains only a backbone: load it by init.backbone, or convert it with --backbone"
    if not head and heads:
        return (
            "contains a whole model, not only a backbone: load it by init.weights, convert it without --backbone, "
            "or skip its heads (init.skip=decode_head.*,auxiliary_head.*)"
        )
    return ""


def _head(file: Shapes, model: Shapes, head: str) -> str:
    if not head or not any(name.startswith("decode_head.") for name in file):
        return ""
    file_head = mmseg_head(file)
    if not file_head:
        modules = sorted({name.split(".")[1] for name in file if name.startswith("decode_head.")})
        return f"has an unsupported head with modules {', '.join(modules)}; the config has model.head={head}"
    return "" if file_head == head else f"has the head {file_head}; the config has model.head={head}"


def _depth(file: Shapes, model: Shapes, head: str) -> str:
    file_backbone, model_backbone = _backbone(file), _backbone(model)
    if not file_backbone or not model_backbone or file_backbone == model_backbone:
        return ""
    return f"has the backbone {file_backbone}; the config has {model_backbone}"


def _backbone(shapes: Shapes) -> str:
    blocks = _blocks(shapes)
    bottleneck = any(re.match(r"(?:backbone\.)?layer1\.0\.conv3\.", name) for name in shapes)
    return BACKBONES.get((tuple(blocks[stage] for stage in sorted(blocks)), bottleneck), "")


def _blocks(shapes: Shapes) -> dict[int, int]:
    """Return {stage, from 1: number of blocks}."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if match := re.match(r"(?:backbone\.)?layer(\d)\.(\d+)\.", name):
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    return blocks


def _variant(file: Shapes, model: Shapes, head: str) -> str:
    for key, values in BACKBONE_VARIANTS.items():
        file_value, model_value = (
            next((value for weight, value in values.items() if weight in shapes or f"backbone.{weight}" in shapes), "")
            for shapes in (file, model)
        )
        if file_value and model_value and file_value != model_value:
            return f"was trained with {key}={file_value}; the config has {key}={model_value}"
    return ""


def _classes(file: Shapes, model: Shapes, head: str) -> str:
    for name in CLASS_LAYERS:
        if name in file and name in model and file[name][0] != model[name][0]:
            modules = [weight.removesuffix("weight") for weight in CLASS_LAYERS if weight in model]
            if any(
                file.get(weight) != model.get(weight)
                for weight in file.keys() | model.keys()
                if not weight.startswith(tuple(modules))
            ):
                return ""
            return (
                f"has {file[name][0]} classes; the dataset has {model[name][0]} "
                f"(init.skip={','.join(module + '*' for module in modules)} loads everything else)"
            )
    return ""


def _auxiliary(file: Shapes, model: Shapes, head: str) -> str:
    file_channels, model_channels = (
        shapes.get("auxiliary_head.convs.0.conv.weight", (0,))[0] for shapes in (file, model)
    )
    # A file without a single name of the model tells nothing about its heads.
    if not head or file_channels == model_channels or not file.keys() & model.keys():
        return ""
    auxiliary = f"an auxiliary head with {file_channels} channels" if file_channels else "no auxiliary head"
    return f"has {auxiliary} (model.auxiliary_channels={file_channels}); the config has {model_channels}"


def _optional_parts(file: Shapes, model: Shapes, head: str) -> str:
    for prefix, key in OPTIONAL_PARTS.items():
        in_file, in_model = (any(name.startswith(prefix) for name in shapes) for shapes in (file, model))
        if head and in_file != in_model:
            return f"has {'' if in_file else 'no '}weights {prefix}*, unlike the model: change {key}"
    return ""


def _width(file: Shapes, model: Shapes, head: str) -> str:
    for name, key in WIDTHS.items():
        file_width, model_width = (
            (shapes.get(name) or shapes.get(f"backbone.{name}") or (0,))[0] for shapes in (file, model)
        )
        if file_width and model_width and file_width != model_width:
            return f"was trained with {key}={file_width}; the config has {key}={model_width}"
    return ""


def _coverage(file: Shapes, model: Shapes, head: str) -> str:
    shared = len(file.keys() & model.keys())
    if not shared:
        return (
            f"has none of the model's {len(model)} weights; its names are those of another system, such as "
            f"{', '.join(sorted(file)[:3])}"
        )
    missing = len(model) - shared
    return f"lacks {missing} of the model's {len(model)} weights" if missing else ""
