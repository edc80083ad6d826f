"""Which values of a config make sense, by themselves and together."""

import dataclasses
import math
from operator import attrgetter
from typing import Any

from kseg.errors import ConfigError

LENGTHS = {"data.mean": 3, "data.std": 3, "augment.scale_range": 2, "augment.crop": 2}
OPTIONAL_LENGTHS = {"augment.scale": 2, "evaluate.resize": 2}

ABOVE_ZERO = (
    "data.std", "augment.scale", "augment.scale_range", "augment.crop", "model.width", "model.channels",
    "model.encnet.codewords", "model.fcn.convolutions", "train.global_batch", "train.steps", "train.learning_rate",
    "train.log_every", "train.validate_every", "train.checkpoint_every", "train.keep_checkpoints", "evaluate.resize")
AT_LEAST_ZERO = (
    "augment.crop_tries", "model.auxiliary_channels", "loss.main", "loss.auxiliary", "loss.se",
    "train.end_learning_rate", "train.power", "train.end_step", "train.warmup_steps", "train.weight_decay")
SHARES = ("augment.cat_max_ratio", "augment.flip", "train.warmup_start")
# These divide by what is left of 1.
SHARES_BELOW_ONE = ("model.dropout", "train.momentum")
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
    low, high = config.augment.scale_range
    _require(low <= high, "augment.scale_range", "must not fall", (low, high))
    model, train = config.model, config.train
    _require(model.stem != "deep" or model.width % 2 == 0,
             "model.width", "must be even with the deep stem", model.width)
    _require(train.end_learning_rate <= train.learning_rate, "train.end_learning_rate",
             f"must not be above train.learning_rate {train.learning_rate}", train.end_learning_rate)


def _require(true: bool, key: str, rule: str, value: Any) -> None:
    if not true:
        raise ConfigError(f"{key} {rule}, got {value}")


def _items(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) for each value of nested dataclasses."""
    pairs = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        key = prefix + field.name
        pairs += leaves(value, f"{key}.") if dataclasses.is_dataclass(value) else [(key, value)]
    return pairs
