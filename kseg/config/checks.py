"""Which values of a config make sense, by themselves and together."""

import math
import re
from operator import attrgetter
from typing import Any

from kseg.config.values import leaves
from kseg.errors import ConfigError

LENGTHS = {"data.mean": 3, "data.std": 3, "augment.scale_range": 2, "augment.crop": 2,
           "train.betas": 2}
OPTIONAL_LENGTHS = {"augment.scale": 2, "evaluate.resize": 2, "evaluate.window": 2, "evaluate.stride": 2,
                    "export.size": 2}

ABOVE_ZERO = (
    "data.std", "data.memory", "augment.scale", "augment.scale_range", "augment.crop", "model.width", "model.channels",
    "model.multi_grid", "model.encnet.codewords", "model.fcn.convolutions", "model.deeplab.dilations",
    "model.apcnet.pool_scales", "model.pspnet.pool_scales", "train.global_batch", "train.steps", "train.learning_rate",
    "train.log_every", "train.validate_every", "train.checkpoint_every", "train.keep_checkpoints", "train.loss_scale",
    "train.epsilon", "train.accumulate", "train.steps_per_call", "evaluate.resize", "evaluate.window",
    "evaluate.stride", "evaluate.scales", "export.size", "export.max_pixels", "export.warmup_batches")
AT_LEAST_ZERO = (
    "augment.crop_tries", "model.stem_channels", "model.auxiliary_channels", "model.deeplab.shortcut_channels",
    "loss.main", "loss.auxiliary", "loss.se", "loss.class_weights", "loss.ohem_kept", "train.end_learning_rate",
    "train.power", "train.end_step", "train.warmup_steps", "train.weight_decay", "train.backbone_rate",
    "train.loss_scale_growth", "train.nonfinite_batches", "train.patience")
SHARES = ("augment.cat_max_ratio", "augment.flip", "loss.ohem_threshold", "train.warmup_start")
# These divide by what is left of 1.
SHARES_BELOW_ONE = ("model.dropout", "train.momentum", "train.betas", "train.average_decay")
# Random numbers are drawn from pairs of int32.
LARGEST_SEED = 2**31 - 1


def check(config: Any) -> Any:
    """Return the `kseg.config.Config` if its values make sense, else raise ConfigError naming the key and the value."""
    _check_each(config)
    _check_together(config)
    return config


def _check_each(config: Any) -> None:
    for key, value in leaves(config):
        _require(all(math.isfinite(item) for item in _items(value) if isinstance(item, float)),
                 key, "must be finite", value)
    for key, length in LENGTHS.items():
        value = attrgetter(key)(config)
        _require(len(value) == length, key, f"takes {length} values", value)
    for key, length in OPTIONAL_LENGTHS.items():
        value = attrgetter(key)(config)
        _require(len(value) in (0, length), key, f"takes no or {length} values", value)
    limits = ((ABOVE_ZERO, "above 0", lambda item: item > 0),
              (AT_LEAST_ZERO, "at least 0", lambda item: item >= 0),
              (SHARES, "between 0 and 1", lambda item: 0 <= item <= 1),
              (SHARES_BELOW_ONE, "at least 0 and below 1", lambda item: 0 <= item < 1),
              (("train.seed",), f"between 0 and {LARGEST_SEED}", lambda item: 0 <= item <= LARGEST_SEED))
    for keys, limit, fits in limits:
        for key in keys:
            value = attrgetter(key)(config)
            _require(all(map(fits, _items(value))), key, f"must be {limit}", value)


def _check_together(config: Any) -> None:
    if config.data.service:
        host_and_port(config.data.service)
    low, high = config.augment.scale_range
    _require(low <= high, "augment.scale_range", "must not fall", (low, high))
    model, train = config.model, config.train
    stem = "model.stem_channels" if model.stem_channels else "model.width"
    _require(model.stem != "deep" or (model.stem_channels or model.width) % 2 == 0,
             stem, "must be even with the deep stem", model.stem_channels or model.width)
    for key in ("model.apcnet.pool_scales", "model.pspnet.pool_scales"):
        _require(len(attrgetter(key)(config)) > 0, key, "takes at least one value", ())
    init = config.init
    _require(not (init.backbone and init.weights), "init.weights",
             f"already has a backbone; leave init.backbone={init.backbone} empty", init.weights)
    loss, evaluate = config.loss, config.evaluate
    _require(not loss.ohem_threshold or loss.ohem_kept, "loss.ohem_threshold",
             "needs loss.ohem_kept above 0", loss.ohem_threshold)
    _require(bool(evaluate.window) == bool(evaluate.stride), "evaluate.stride",
             "goes together with evaluate.window", evaluate.stride)
    _require(all(step <= side for step, side in zip(evaluate.stride, evaluate.window)), "evaluate.stride",
             f"must not be above evaluate.window {evaluate.window}, or pixels would be left out", evaluate.stride)
    _require(train.accumulate == 1 or not loss.ohem_kept, "train.accumulate",
             "does not go with loss.ohem_kept, which compares all pixels of the batch", train.accumulate)
    _require(not train.loss_scale_growth or train.precision == "mixed_float16", "train.loss_scale_growth",
             "needs train.precision=mixed_float16", train.loss_scale_growth)
    _require(train.end_learning_rate <= train.learning_rate, "train.end_learning_rate",
             f"must not be above train.learning_rate {train.learning_rate}", train.end_learning_rate)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of a tf.data service's address; raises ConfigError where it is none."""
    parts = re.fullmatch(r"grpc://([\w.-]+):(\d{1,5})", address)
    if not parts or not 0 < int(parts[2]) < 2**16:
        raise ConfigError(f"the address of a tf.data service is like grpc://host:5050, got {address!r}")
    return parts[1], int(parts[2])


def _require(true: bool, key: str, rule: str, value: Any) -> None:
    if not true:
        raise ConfigError(f"{key} {rule}, got {value}")


def _items(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)
