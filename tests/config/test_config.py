"""Load configs, override their values, convert them to JSON and back, and refuse wrong values."""

import dataclasses
import json
from dataclasses import replace

import pytest

from kseg import config as configs
from kseg.config import Config, checks, values
from kseg.config.files import config_names
from kseg.config.sections import Augment, Init, Model, Train
from kseg.config.values import config_differences
from kseg.errors import ConfigError


def overridden(override):
    key = override.partition("=")[0].strip()
    value = values.set_value(Config(), override)
    for part in key.split("."):
        value = getattr(value, part)
    return value


def message(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", config_names())
def test_named_configs_load_and_survive_json(name):
    config = configs.load(name)
    assert config.name == name
    assert configs.from_json(configs.to_json(config)) == config
    # Python's parser accepts NaN and Infinity, which are not JSON.
    json.loads(configs.to_json(config), parse_constant=pytest.fail)


def test_named_configs_are_found():
    assert {"encnet_camvid", "encnet_cityscapes", "encnet_shapes"} <= set(config_names())


def test_json_keeps_values_that_differ_from_the_defaults():
    config = Config(
        augment=Augment(crop=(3, 5), scale=(7, 9)),
        model=Model(stem="7x7"),
        init=Init(skip=("fc.*",)),
        train=Train(learning_rate=0.1 + 0.2, deterministic=True),
    )
    copy = configs.from_json(configs.to_json(config))
    assert copy == config
    assert isinstance(copy.augment.crop, tuple) and copy.train.learning_rate == 0.30000000000000004


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.steps=7", 7),
        ("train.steps = 7 ", 7),
        ("train.learning_rate=2.5e-3", 0.0025),
        ("train.learning_rate=1", 1.0),
        ("train.deterministic=true", True),
        ("train.deterministic=False", False),
        ("augment.crop=256,320", (256, 320)),
        ("augment.crop=(256, 320)", (256, 320)),
        ("augment.crop=[256,320]", (256, 320)),
        ("augment.scale_range=1,2", (1.0, 2.0)),
        ("augment.scale=", ()),
        ("augment.scale=()", ()),
        ("init.skip=fc.*,1", ("fc.*", "1")),
        ("init.backbone=", ""),
        ("data.directory=2024", "2024"),
        ("data.directory=a=b", "a=b"),
        ("data.train_split=True", "True"),
        ("model.output_stride=16", 16),
        ("model.stem=7x7", "7x7"),
        ("model.encnet.codewords=64", 64),
    ],
)
def test_overrides_have_the_type_of_their_field(override, expected):
    value = overridden(override)
    assert value == expected and type(value) is type(expected)
    if isinstance(value, tuple):
        assert [type(item) for item in value] == [type(item) for item in expected]


def test_overrides_apply_in_order_and_change_nothing_else():
    config = configs.load("encnet_shapes", ["train.steps=50", "train.steps=60", "model.channels=8"])
    assert config_differences(configs.load("encnet_shapes"), config) == [
        ("model.channels", 64, 8),
        ("train.steps", 300, 60),
    ]


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.step=5", ["'train.step'", "Did you mean train.steps"]),
        ("trian.steps=5", ["'trian'", "Did you mean train or tracking?", "Choices: augment, data"]),
        ("model.encnet.codeword=5", ["Did you mean model.encnet.codewords?"]),
        ("train..steps=5", ["'train.'", "train.steps"]),
        ("=5", ["unknown config key"]),
        ("train=5", ["train is a group", "train.steps"]),
        ("model.encnet=5", ["model.encnet is a group", "model.encnet.codewords"]),
        ("train.steps.more=5", ["train.steps is a value, not a group"]),
        ("train.steps.more.still=5", ["train.steps is a value, not a group"]),
        ("train.steps", ["KEY=VALUE", "'train.steps'"]),
        ("train.steps=", ["train.steps takes int, got ''"]),
        ("train.steps=five", ["train.steps takes int, got 'five'"]),
        ("train.steps=1.5", ["train.steps takes int, got 1.5"]),
        ("train.steps=True", ["train.steps takes int, got True"]),
        ("train.learning_rate=fast", ["train.learning_rate takes float"]),
        ("train.learning_rate=True", ["train.learning_rate takes float"]),
        ("train.deterministic=1", ["train.deterministic takes bool, got 1"]),
        ("augment.crop=5.5,6", ["augment.crop takes int, got 5.5"]),
        ("augment.crop=(256)", ["augment.crop takes a list such as a,b; got 256"]),
        ("model.stem=depp", ["model.stem", "'depp'", "Did you mean deep?", "7x7"]),
        ("model.output_stride=32", ["model.output_stride", "'32'", "16", "8"]),
        ("model.output_stride=8.0", ["model.output_stride", "'8.0'"]),
        ("loss.average=some", ["loss.average", "all", "valid"]),
        ("steps=100", ["'steps'", "Did you mean train.steps?", "augment"]),
        ("stps=100", ["Did you mean train.steps?"]),
        ("backbone=resnet50", ["Did you mean init.backbone or model.backbone?"]),
        ("model.crop=64,64", ["Did you mean augment.crop?", "model.head"]),
    ],
)
def test_wrong_overrides_name_the_key_and_the_choices(override, words):
    text = message(values.set_value, Config(), override)
    for word in words:
        assert word in text


def test_an_unknown_config_is_refused_with_the_nearest_name():
    text = message(configs.load, "encnet_shape")
    assert "'encnet_shape'" in text and "Did you mean encnet_shapes" in text and "encnet_cityscapes" in text


def test_a_config_may_be_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from kseg.config import Config, Train\ndef config(): return Config(train=Train(steps=12))\n")
    config = configs.load(str(path), ["train.global_batch=2"])
    assert (config.name, config.train.steps, config.train.global_batch) == ("mine", 12, 2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("steps = 5\n", ["no function config()"]),
        ("config = 5\n", ["no function config()"]),
        ("def config(): return 5\n", ["config() returned int"]),
        (
            "from kseg.config import *\ndef config(): return Config(train=Train(steps='5'))\n",
            ["train.steps takes int, got '5'"],
        ),
        ("from kseg.config import *\ndef config(): return Config(train=None)\n", ["train is a group", "None"]),
        (
            "from kseg.config import *\ndef config(): return Config(augment=Augment(crop=5))\n",
            ["augment.crop takes a list"],
        ),
    ],
)
def test_a_config_file_without_a_config_is_refused(tmp_path, text, words):
    path = tmp_path / "mine.py"
    path.write_text(text)
    for word in words:
        assert word in message(configs.load, str(path))


FILE_WITH_VARIANTS = """
from kseg.config import Config, Train
from kseg.variants import Variant
def config(): return Config(train=Train(steps=12))
VARIANTS = {"long": Variant({"train.steps": 90, "augment.crop": (64, 96)}), "odd": Variant({"train.steps": "90"}),
            "unknown": Variant({"train.step": 90}), "group": Variant({"train": 90}),
            "none": Variant({"train.steps": 0})}
"""


def test_a_variant_changes_the_config_and_overrides_apply_after_it(tmp_path):
    # A colon in the path does not separate a variant.
    path = tmp_path / "a:b" / "mine.py"
    path.parent.mkdir()
    path.write_text(FILE_WITH_VARIANTS)
    plain, row = configs.load(str(path)), configs.load(f"{path}:long", ["train.global_batch=2", "augment.crop=8,8"])
    assert (plain.name, plain.train.steps) == ("mine", 12) and row.name == "mine:long"
    assert config_differences(replace(plain, name="mine:long"), row) == [
        ("augment.crop", (512, 512), (8, 8)),
        ("train.global_batch", 8, 2),
        ("train.steps", 12, 90),
    ]


@pytest.mark.parametrize(
    "variant, words",
    [
        ("odd", ["mine.py, variant odd: train.steps takes int, got '90'"]),
        ("unknown", ["variant unknown: unknown config key 'train.step'", "Did you mean train.steps"]),
        ("group", ["variant group: train is a group"]),
        ("none", ["train.steps must be above 0"]),
        ("lon", ["unknown variant of mine: 'lon'. Did you mean long", "Choices: group, long, none, odd, unknown"]),
        ("", ["unknown variant of mine: ''"]),
    ],
)
def test_wrong_variants_are_refused(tmp_path, variant, words):
    path = tmp_path / "mine.py"
    path.write_text(FILE_WITH_VARIANTS)
    for word in words:
        assert word in message(configs.load, f"{path}:{variant}")


def test_named_variants_and_similar_names():
    assert configs.load("encnet_cityscapes:r101-d8-769x769-80k").model.backbone == "resnet101"
    text = message(configs.load, "encnet_cityscapes:r101-d8-769x769-160k")
    assert "Did you mean r101-d8-769x769-80k" in text and "r50-d16-512x1024-220e" in text
    assert "has no variants" in message(configs.load, "encnet_shapes:r18")
    assert "unknown config 'encnet_cityscape'" in message(configs.load, "encnet_cityscape:r50-d8-512x1024-40k")


@pytest.mark.parametrize("table", ["[]", "{'a': {'train.steps': 5}}"])
def test_variants_of_another_type_are_refused(tmp_path, table):
    path = tmp_path / "mine.py"
    path.write_text(f"from kseg.config import Config\ndef config(): return Config()\nVARIANTS = {table}\n")
    assert "mine.py: VARIANTS must be a dict of kseg.config.variants.Variant" in message(configs.load, str(path))


def test_a_missing_config_file_is_refused(tmp_path):
    assert str(tmp_path / "none.py") in message(configs.load, str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ["not a JSON config"]),
        ("[1]", ["group of values", "[1]"]),
        ('{"train": 5}', ["train is a group of values, got 5"]),
        ('{"train": {"stepz": 5}}', ["'train.stepz'", "Did you mean train.steps"]),
        ('{"train": {"steps": "5"}}', ["train.steps takes int"]),
        ('{"train": {"learning_rate": NaN}}', ["train.learning_rate must be finite"]),
        ('{"augment": {"crop": [5]}}', ["augment.crop takes 2 values"]),
    ],
)
def test_json_that_is_not_a_config_is_refused(text, words):
    for word in words:
        assert word in message(configs.from_json, text)


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=-5",
        "train.steps=0",
        "train.global_batch=0",
        "train.learning_rate=0",
        "train.learning_rate=1e999",
        "train.learning_rate=-1e999",
        "train.end_learning_rate=-0.1",
        "train.end_learning_rate=0.02",
        "train.power=-1",
        "train.end_step=-1",
        "train.warmup_steps=-1",
        "train.warmup_start=1.5",
        "train.warmup_start=-0.5",
        "train.momentum=1",
        "train.momentum=-0.1",
        "train.weight_decay=-1e-4",
        "train.seed=-1",
        "train.seed=2147483648",
        "train.log_every=0",
        "train.validate_every=0",
        "train.checkpoint_every=0",
        "train.keep_checkpoints=0",
        "augment.crop=5,6,7",
        "augment.crop=5",
        "augment.crop=0,5",
        "augment.crop=",
        "augment.scale=5",
        "augment.scale=5,-5",
        "augment.scale_range=2,1",
        "augment.scale_range=0,1",
        "augment.scale_range=1",
        "augment.scale_range=1,1e999",
        "augment.flip=1.01",
        "augment.flip=-0.01",
        "augment.cat_max_ratio=2",
        "augment.crop_tries=-1",
        "model.dropout=1.5",
        "model.dropout=1",
        "model.dropout=-0.1",
        "model.width=0",
        "model.width=7",
        "model.channels=0",
        "model.auxiliary_channels=-1",
        "model.encnet.codewords=0",
        "model.fcn.convolutions=0",
        "data.std=1,0,1",
        "data.std=1,1",
        "data.mean=1,2,3,4",
        "data.mean=1,1e999,2",
        "data.memory=0",
        "loss.main=-1",
        "loss.auxiliary=-0.4",
        "loss.se=1e999",
        "evaluate.resize=5",
        "evaluate.resize=5,0",
    ],
)
def test_values_outside_their_limits_are_refused_by_name(override):
    base = Config(train=Train(steps=300, learning_rate=0.01))
    assert override.partition("=")[0] in message(checks.check_config, values.set_value(base, override))


@pytest.mark.parametrize("key", ["train.learning_rate", "loss.se", "augment.flip", "model.dropout"])
def test_nan_is_refused(key):
    group, name = key.split(".")
    config = dataclasses.replace(
        Config(), **{group: dataclasses.replace(getattr(Config(), group), **{name: float("nan")})}
    )
    text = message(checks.check_config, config)
    assert key in text and "finite" in text and "nan" in text


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=1",
        "train.seed=2147483647",
        "train.warmup_steps=39999",
        "train.end_learning_rate=0.01",
        "train.momentum=0",
        "model.dropout=0",
        "model.auxiliary_channels=0",
        "augment.scale_range=1,1",
        "augment.crop_tries=0",
        "augment.flip=1",
        "augment.cat_max_ratio=1",
        "augment.scale=",
        "evaluate.resize=512,1024",
        "data.mean=-1,0,0",
        "loss.se=0",
    ],
)
def test_values_at_their_limits_are_accepted(override):
    config = values.set_value(Config(), override)
    assert checks.check_config(config) == config


def test_an_odd_width_needs_the_plain_stem():
    config = values.set_value(values.set_value(Config(), "model.width=7"), "model.stem=7x7")
    assert checks.check_config(config) == config


def test_load_checks_after_the_overrides():
    assert "train.steps" in message(configs.load, "encnet_shapes", ["train.steps=-1"])


@pytest.mark.parametrize("node", [Config(), Train(), Model(), Model().encnet])
def test_configs_are_frozen(node):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(node, dataclasses.fields(node)[0].name, "else")


def test_differences_list_the_changed_values():
    old = Config()
    new = values.set_value(values.set_value(old, "model.encnet.se=false"), "augment.crop=1,2")
    assert config_differences(old, old) == []
    assert config_differences(old, new) == [("augment.crop", (512, 512), (1, 2)), ("model.encnet.se", True, False)]
