"""Compare every variant with the published configuration of its original, value by value."""

import ast
import csv
import dataclasses
import re
from operator import attrgetter

import pytest

from kseg import config as configs
from kseg.config import files as config_files
from kseg.config import variants
from kseg.config.sections import Init
from kseg.datasets import registry
from kseg.weights import downloads
from tests.helpers.shared_files import SHARED

RECIPES = {name: SHARED / "reference" / f"RECIPES_{name}.tsv" for name in ("mmseg", "sss")}
needs_recipes = pytest.mark.skipif(
    not all(path.is_file() for path in RECIPES.values()),
    reason="the published configurations are missing (../shared/reference/RECIPES_*.tsv)",
)

CONFIGS = [name for name in config_files.config_names() if config_files.read_config_file(name).variants]
VARIANTS = [(name, variant) for name in CONFIGS for variant in config_files.read_config_file(name).variants]

HEADS = {
    "EncHead": "encnet",
    "ASPPHead": "deeplabv3",
    "DepthwiseSeparableASPPHead": "deeplabv3plus",
    "APCHead": "apcnet",
}
STRIDES = {("(1, 2, 1, 1)", "(1, 1, 2, 4)"): 8, ("(1, 2, 2, 1)", "(1, 1, 1, 2)"): 16}
# The models' defaults by output stride (DeepLabV3, section 3.3).
PYRAMIDS = {8: (1, 12, 24, 36), 16: (1, 6, 12, 18)}
MMSEG_DATA = {
    "CityscapesDataset": ("cityscapes", "train"),
    "ADE20KDataset": ("ade20k", "train"),
    "VOC train+aug": ("voc2012", "trainaug"),
}
SSS_DATA = {"cityscapes": ("cityscapes", 372), "ade20k": ("ade20k", 1263), "voc": ("voc2012", 661)}


def published(name):
    """Return the rows of a table for kseg's datasets, by the name of the original config."""
    with RECIPES[name].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {row["config"]: row for row in rows if "pascal" not in row["config"]}


def variants_of(source):
    """Return (full name, variant) of every variant of a source, by the name of the original config."""
    return {
        row.original: (f"{name}:{variant}", row)
        for name in CONFIGS
        for variant, row in config_files.read_config_file(name).variants.items()
        if row.source == source
    }


def parse_value(text):
    return None if text == "None" else ast.literal_eval(text)


def height_width(text):
    return tuple(reversed(ast.literal_eval(text)))


def compare(full_name, row, values, data, published_values):
    """Return the differences between a variant and its published configuration, as text."""
    config = configs.load(full_name)
    pairs = [(key, attrgetter(key)(config), expected) for key, expected in values.items()]
    pairs += [
        ("classes", len(registry.DATASETS[config.data.name].classes), data),
        ("published", (row.miou, row.miou_ms_flip, row.weights), published_values),
    ]
    return [f"{full_name} {key}: {actual} for {expected}" for key, actual, expected in pairs if actual != expected]


def common_values(head, stride):
    """Return the values that all variants of a head have."""
    pyramid = {"model.deeplab.dilations": ()} if head.startswith("deeplab") else {}
    return pyramid | {
        "model.head": head,
        "model.output_stride": stride,
        "model.width": 64,
        "model.stride_on": "3x3",
        "model.downsample": "convolution",
        "model.contract_dilation": True,
        "model.encnet.codewords": 32,
        "model.encnet.lateral": False,
        "model.encnet.se": True,
        "model.apcnet.pool_scales": (1, 2, 3, 6),
        "model.apcnet.fusion": True,
        "model.pspnet.pool_scales": (1, 2, 3, 6),
        "init.weights": "",
        "init.channels": "RGB",
        "loss.main": 1.0,
        "loss.class_weights": (),
        "loss.ohem_threshold": 0.0,
        "train.warmup_steps": 0,
        "train.seed": 0,
        "augment.flip": 0.5,
        "augment.photometric": True,
        "data.mean": (123.675, 116.28, 103.53),
        "data.std": (58.395, 57.12, 57.375),
        "data.val_split": "val",
    }


def mmseg_values(row):
    assert (row["optimizer"], row["paramwise"], row["clip"]) == ("SGD", "None", "None")
    kind, depth = row["backbone"].rsplit("-", 1)
    head, stride = HEADS[row["head"]], STRIDES[row["strides"], row["dilations"]]
    name, split = MMSEG_DATA[row["dataset"]]
    crop, mixed = ast.literal_eval(row["crop"]), row["opt_wrapper"] == "AmpOptimWrapper"
    # Padding before the normalization is black.
    black = "Pad" in row["pipeline"].split(">")
    sampler = parse_value(row["sampler"])
    if row["head_dilations"] != "None":
        assert ast.literal_eval(row["head_dilations"]) == PYRAMIDS[stride]
    assert ast.literal_eval(row["pad_size"]) == crop and row["poly_end"] == row["iters"]
    wider = int(row["stem_channels"]) != 64
    shortcut = {"model.deeplab.shortcut_channels": ast.literal_eval(row["c1"])[1]} if row["c1"] != "None" else {}
    return (
        common_values(head, stride)
        | shortcut
        | {
            "data.name": name,
            "data.train_split": split,
            "model.backbone": f"resnet{depth}",
            "model.stem": {"ResNetV1c": "deep", "ResNet": "7x7"}[kind],
            "init.backbone": row["pretrained"].split("://")[1],
            "init.skip": ("stem.*", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight") if wider else (),
            "model.stem_channels": int(row["stem_channels"]) if wider else 0,
            "model.multi_grid": parse_value(row["multi_grid"]) or (),
            "model.channels": int(row["channels"]),
            "model.auxiliary_channels": int(row["aux_channels"]),
            "model.dropout": float(row["dropout"]),
            "model.align_corners": parse_value(row["align_corners"]),
            "model.initial_weights": "kaiming",
            "loss.auxiliary": float(row["aux_weight"]),
            "loss.se": 0.2,
            "loss.average": "all",
            "loss.ohem_kept": sampler["min_kept"] if sampler else 0,
            "train.global_batch": int(row["gpus"]) * int(row["bs_per_gpu"]),
            "train.steps": int(row["iters"]),
            "train.validate_every": int(row["iters"]) // 10,
            "train.end_step": 0,
            "train.learning_rate": float(row["lr"]),
            "train.momentum": float(row["momentum"]),
            "train.weight_decay": float(row["wd"]),
            "train.power": float(row["poly_power"]),
            "train.end_learning_rate": float(row["eta_min"]),
            "train.precision": "mixed_float16" if mixed else "float32",
            "train.loss_scale": 512.0 if mixed else 1.0,
            "augment.scale": height_width(row["resize_scale"]),
            "augment.scale_range": parse_value(row["ratio_range"]),
            "augment.crop": crop,
            "augment.cat_max_ratio": float(row["cat_max_ratio"]),
            "augment.pad": "corner",
            "augment.crop_tries": 10,
            "augment.pad_color": "black" if black else "mean",
            "evaluate.resize": height_width(row["test_scale"]),
            "evaluate.resize_logits": "twice",
            "evaluate.window": parse_value(row["test_crop"]) or (),
            "evaluate.stride": parse_value(row["test_stride"]) or (),
        }
    )


def sss_values(row):
    original, stride = row["config"], int(row["outstride"])
    head, losses = original.partition("_")[0], ast.literal_eval(row["losses"])
    name, steps_per_epoch = SSS_DATA[original.rsplit("_", 1)[1]]
    options, auxiliary = ast.literal_eval(row["head"]), ast.literal_eval(row["aux"])
    resize, crop = ast.literal_eval(row["resize"]), ast.literal_eval(row["crop"])
    steps = int(row["epochs"]) * steps_per_epoch
    assert ast.literal_eval(row["infer"])["mode"] == "whole" and row["min_lr"] == "0.01*lr (default)"
    assert row["params_rules"] == "{}" and options["dropout"] == auxiliary["dropout"]
    if "dilations" in options:
        assert tuple(options["dilations"]) == PYRAMIDS[stride]
    if head in ("apcnet", "pspnet"):
        assert tuple(options["pool_scales"]) == (1, 2, 3, 6)
    if head == "encnet":
        assert options["num_codes"] == 32 and options["extra"] == {"use_se_loss": True, "add_lateral": False}
        assert losses["loss_se"] == (0.2, True)
    head_values = {
        "deeplabv3plus": {"model.deeplab.shortcut_channels": options.get("shortcut_channels")},
        "fcn": {"model.fcn.concat_input": False},
    }
    return (
        common_values(head, stride)
        | head_values.get(head, {})
        | {
            "data.name": name,
            "data.train_split": row["trainset"],
            "model.backbone": f"resnet{row['depth']}",
            "model.stem": "deep",
            "model.stem_channels": 0,
            "model.multi_grid": (),
            "init.skip": (),
            "init.backbone": f"resnet{row['depth']}_v1c",
            "model.channels": options["feats_channels"],
            "model.auxiliary_channels": auxiliary["out_channels"],
            "model.dropout": options["dropout"],
            "model.align_corners": parse_value(row["align_corners"]),
            "model.initial_weights": "uniform",
            "loss.auxiliary": losses["loss_aux"][0],
            "loss.main": losses["loss_cls"][0],
            "loss.se": 0.2,
            "loss.average": "valid",
            "loss.ohem_kept": 0,
            "train.global_batch": int(row["total_bs"]),
            "train.steps": steps,
            "train.end_step": steps,
            "train.validate_every": steps // 10,
            "train.learning_rate": float(row["lr"]),
            "train.end_learning_rate": 0.01 * float(row["lr"]),
            "train.momentum": float(row["momentum"]),
            "train.weight_decay": float(row["wd"]),
            "train.power": float(row["power"]),
            "train.precision": "float32",
            "train.loss_scale": 1.0,
            "augment.scale": tuple(reversed(resize["output_size"])),
            "augment.scale_range": resize["scale_range"],
            "augment.crop": crop["crop_size"],
            "augment.cat_max_ratio": crop["one_category_max_ratio"],
            "augment.crop_tries": 9,
            "augment.pad": "center",
            "augment.pad_color": "mean",
            "evaluate.resize": height_width(row["test_resize"]),
            "evaluate.resize_logits": "once",
            "evaluate.window": (),
            "evaluate.stride": (),
        }
    )


@needs_recipes
def test_variants_of_mmsegmentation_have_the_published_values():
    rows, named = published("mmseg"), variants_of(variants.MMSEGMENTATION)
    assert len(rows) == 83 and set(named) == set(rows)
    faults = []
    for original, row in rows.items():
        address = row["weights"] if row["weights"] != "None" else ""
        faults += compare(
            *named[original],
            mmseg_values(row),
            int(row["classes"]),
            (parse_value(row["mIoU"]), parse_value(row["mIoU_ms_flip"]), address),
        )
    assert faults == []


@needs_recipes
def test_variants_of_sssegmentation_have_the_published_values():
    rows, named = published("sss"), variants_of(variants.SSSEGMENTATION)
    assert len(rows) == 72 and set(named) == set(rows)
    faults = []
    for original, row in rows.items():
        faults += compare(
            *named[original],
            sss_values(row),
            int(row["classes"]),
            (float(row["mIoU"].rstrip("%")), None, row["weights"]),
        )
    assert faults == []


def name_of(source, original):
    """Return the full name of the variant of an original config."""
    if source == variants.MMSEGMENTATION:
        pattern = r"(\w+?)_(r\d+[bs]?-d\d+(?:-mg124)?)_4xb[24]-((?:amp-)?\d+k)_(cityscapes|ade20k|voc12aug)-(\d+x\d+)"
        head, network, schedule, data, crop = re.fullmatch(pattern, original).groups()
    else:
        head, depth, stride, data = re.fullmatch(r"(\w+?)_resnet(\d+)os(\d+)_(\w+)", original).groups()
        network = f"r{depth}-d{stride}"
        crop, schedule = {"cityscapes": ("512x1024", "220e"), "ade20k": ("512x512", "130e"), "voc": ("512x512", "60e")}[
            data
        ]
    return f"{head}_{'voc2012' if data.startswith('voc') else data}:{network}-{crop}-{schedule}"


@pytest.mark.parametrize("name, variant", VARIANTS)
def test_a_variant_is_named_after_its_original_and_is_a_valid_config(name, variant):
    row = config_files.read_config_file(name).variants[variant]
    assert name_of(row.source, row.original) == f"{name}:{variant}"
    config = configs.load(f"{name}:{variant}")
    assert config.name == f"{name}:{variant}"
    assert configs.from_json(configs.to_json(config)) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_equals_its_first_variant_and_all_variants_differ(name):
    names = [name, *(f"{name}:{variant}" for variant in config_files.read_config_file(name).variants)]
    nameless = [dataclasses.replace(configs.load(full_name), name="") for full_name in names]
    assert nameless[0] == nameless[1]
    assert all(one != other for index, one in enumerate(nameless[1:], 1) for other in nameless[index + 1 :])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_initial_backbone_is_a_published_file(name):
    names = config_files.read_config_file(name).variants
    backbones = {configs.load(f"{name}:{variant}").init.backbone for variant in names}
    assert backbones and backbones <= set(downloads.BACKBONES)


def test_a_dry_run_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KSEG_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config, lines = configs.load("encnet_ade20k:r50s-d8-512x512-80k"), []
    without = downloads.without_download(config, lines.append)
    assert (without.init, without.model) == (Init(), config.model)
    assert len(lines) == 1 and "https://" in lines[0] and str(tmp_path / "resnet50_v1c-2cccc1ad.pth") in lines[0]
    (tmp_path / "resnet50_v1c-2cccc1ad.pth").touch()
    assert downloads.without_download(config, lines.append) == config and len(lines) == 1
    # A path set by the user is kept, whether or not it exists.
    own_file = configs.load("encnet_ade20k", ["init.backbone=mine.pth"])
    assert downloads.without_download(own_file, lines.append) == own_file and len(lines) == 1
