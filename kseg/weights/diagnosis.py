"""What a file of weights is, in one sentence, where it does not fit the model.

Everything here is told from names and shapes: those of the file, and those that the model has.
"""

import re
from collections.abc import Mapping

from kseg.weights.names import mmseg_head

Shapes = Mapping[str, tuple[int, ...]]

# Blocks of the four stages and whether a block is a bottleneck -> the network.
DEPTHS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

# Beginnings of names that tell of systems whose checkpoints are not read here.
FOREIGN_SIGNS = {
    "backbone.bottom_up.": "Detectron2", "backbone.res2.": "Detectron2", "classifier.": "torchvision's segmentation",
    "backbone.body.": "torchvision's detection", "encoder.": "segmentation_models.pytorch",
    "segformer.": "Hugging Face transformers", "model.backbone.": "Lightning", "pretrained.": "PyTorch-Encoding",
    "resnet.": "PaddleSeg or another system",
}
# Weights that tell how a backbone was built, by the config's key and its values; the first one found counts.
FORMS = {
    "model.stem": {"stem.0.weight": "deep", "conv1.weight": "7x7"},
    "model.downsample": {"layer2.0.downsample.2.weight": "average", "layer2.0.downsample.0.weight": "convolution"},
}
# Parts of heads that a value of the config decides on.
OPTIONS = {
    "decode_head.lateral_convs.": "model.encnet.lateral", "decode_head.se_layer.": "model.encnet.se",
    "decode_head.conv_cat.": "model.fcn.concat_input", "decode_head.acm_modules.0.fusion_conv.": "model.apcnet.fusion",
    "decode_head.c1_bottleneck.": "model.deeplab.shortcut_channels",
}
# Weights whose first length is a value of the config.
WIDTHS = {
    "layer1.0.conv1.weight": "model.width", "decode_head.bottleneck.conv.weight": "model.channels",
    "decode_head.convs.0.conv.weight": "model.channels",
    "decode_head.c1_bottleneck.conv.weight": "model.deeplab.shortcut_channels",
    "decode_head.enc_module.encoding.0.codewords": "model.encnet.codewords",
}
CLASSIFIERS = ("decode_head.conv_seg.weight", "auxiliary_head.conv_seg.weight", "decode_head.se_layer.weight")


def diagnose(file: Shapes, model: Shapes, head: str = "") -> str:
    """Return a clause on why a file does not fit, such as "has 150 classes, the config's data set has 19", or "".

    `file` and `model` are shapes in PyTorch's layout by MMSegmentation's names; `head` is the model's main head, or ""
    where only a backbone, by torchvision's names, is to be loaded.
    """
    for check in (_foreign, _backbone_alone, _head, _depth, _stem, _classes, _auxiliary, _options, _width,
                  _coverage):
        if sentence := check(file, model, head):
            return sentence
    return ""


def _foreign(file: Shapes, model: Shapes, head: str) -> str:
    if file.keys() & model.keys():
        return ""
    for sign, system in FOREIGN_SIGNS.items():
        if any(name.startswith(sign) for name in file):
            return f"is a checkpoint of {system} by its names ({sign}*), which are not read here"
    return ""


def _backbone_alone(file: Shapes, model: Shapes, head: str) -> str:
    if head and not any(name.startswith(("decode_head.", "auxiliary_head.")) for name in file) and _blocks(file):
        return "holds a backbone alone; name it by init.backbone, or convert it with --backbone"
    if not head and any(name.startswith("decode_head.") for name in file):
        return ("is a whole model and no backbone alone; name it by init.weights or convert it without --backbone, or "
                "leave its heads out (init.skip=decode_head.*,auxiliary_head.*)")
    return ""


def _head(file: Shapes, model: Shapes, head: str) -> str:
    if not head or not any(name.startswith("decode_head.") for name in file):
        return ""
    found = mmseg_head(file)
    if not found:
        modules = sorted({name.split(".")[1] for name in file if name.startswith("decode_head.")})
        return f"is a checkpoint of an unknown head of modules {', '.join(modules)}; the config asks for {head}"
    return "" if found == head else f"is a checkpoint of head {found}, the config asks for {head}"


def _depth(file: Shapes, model: Shapes, head: str) -> str:
    theirs, ours = _blocks(file), _blocks(model)
    stages = sorted(stage for stage in theirs if stage in ours)
    different = [stage for stage in stages if theirs[stage] != ours[stage]]
    found, wanted = _network(theirs, file), _network(ours, model)
    if not stages or found == wanted and not different:
        return ""
    if found and wanted and not different:
        return (f"has a backbone of {found.removeprefix('resnet')} layers of other blocks ({found}), "
                f"the config asks for {wanted}")
    if not different or not found and any(theirs[stage] < ours[stage] for stage in different):
        # A file that ends early is no network of another depth.
        return ""
    stage = max(different, key=lambda stage: abs(theirs[stage] - ours[stage]))
    blocks = f"{theirs[stage]} blocks in layer{stage}"
    layers = f"{found.removeprefix('resnet')} layers ({blocks})" if found else blocks
    return f"has a backbone of {layers}, the config asks for {wanted or f'{ours[stage]} blocks'}"


def _blocks(shapes: Shapes) -> dict[int, int]:
    """Return the number of blocks of each stage."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if found := re.match(r"(?:backbone\.)?layer(\d)\.(\d+)\.", name):
            blocks[int(found[1])] = max(blocks.get(int(found[1]), 0), int(found[2]) + 1)
    return blocks


def _network(blocks: Mapping[int, int], shapes: Shapes) -> str:
    bottleneck = any(re.match(r"(?:backbone\.)?layer1\.0\.conv3\.", name) for name in shapes)
    return DEPTHS.get((tuple(blocks[stage] for stage in sorted(blocks)), bottleneck), "")


def _stem(file: Shapes, model: Shapes, head: str) -> str:
    for key, signs in FORMS.items():
        theirs, ours = (next((value for sign, value in signs.items() if sign in names), "")
                        for names in (_backbone_names(file), _backbone_names(model)))
        if theirs and ours and theirs != ours:
            return f"was trained with {key}={theirs}, the config has {key}={ours}"
    return ""


def _backbone_names(shapes: Shapes) -> set[str]:
    return {name.removeprefix("backbone.") for name in shapes}


def _options(file: Shapes, model: Shapes, head: str) -> str:
    for sign, key in OPTIONS.items():
        theirs, ours = (any(name.startswith(sign) for name in shapes) for shapes in (file, model))
        if head and theirs != ours:
            return f"has {'' if theirs else 'no '}weights {sign}*, which {key} decides; the config has it otherwise"
    return ""


def _classes(file: Shapes, model: Shapes, head: str) -> str:
    for name in CLASSIFIERS:
        if name in file and name in model and file[name][0] != model[name][0]:
            kernels = [classifier for classifier in CLASSIFIERS if classifier in model]
            skip = ",".join(kernel.removesuffix("weight") + "*" for kernel in kernels)
            return (f"has {file[name][0]} classes, the config's data set has {model[name][0]} "
                    f"(init.skip={skip} loads everything else)")
    return ""


def _auxiliary(file: Shapes, model: Shapes, head: str) -> str:
    theirs, ours = (shapes.get("auxiliary_head.convs.0.conv.weight", (0,))[0] for shapes in (file, model))
    if not head or theirs == ours:
        return ""
    found = f"an auxiliary head of {theirs} channels" if theirs else "no auxiliary head"
    return f"has {found}, the config has model.auxiliary_channels={ours} instead of {theirs}"


def _width(file: Shapes, model: Shapes, head: str) -> str:
    for name, key in WIDTHS.items():
        theirs, ours = ((shapes.get(name) or shapes.get(f"backbone.{name}") or (0,))[0] for shapes in (file, model))
        if theirs and ours and theirs != ours:
            return f"was trained with {key}={theirs}, the config has {key}={ours}"
    return ""


def _coverage(file: Shapes, model: Shapes, head: str) -> str:
    shared = len(file.keys() & model.keys())
    if not shared:
        first = ", ".join(sorted(file)[:3])
        return f"has none of the model's {len(model)} weights; its names are of another system, such as {first}"
    missing = len(model) - shared
    return f"lacks {missing} of the model's {len(model)} weights" if missing else ""
