"""Check that the values of a config are within their limits and fit together."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from kseg.config.limits import LENGTHS
from kseg.errors import ConfigError


def check_config(config: Any) -> Any:
    """Return the `kseg.config.Config` unchanged; raises ConfigError with the key, the rule and the refused value."""
    for key, value, limits in limited_values(config):
        _check_limits(key, value, limits)
    _check_together(config)
    return config


def limited_values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple]]:
    """Yield (dotted key, value, limits) for every value of nested dataclasses."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from limited_values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value, getattr(field.type, "__metadata__", ())


def _check_limits(key: str, value: Any, limits: tuple) -> None:
    items = value if isinstance(value, tuple) else (value,)
    _require(all(math.isfinite(item) for item in items if isinstance(item, float)), key, "must be finite", value)
    for limit in limits:
        if isinstance(limit, LENGTHS):
            _require(limit.accepts(len(items)), key, f"takes {limit}", value)
    bounds = [limit for limit in limits if not isinstance(limit, LENGTHS)]
    _require(
        all(bound.accepts(item) for bound in bounds for item in items),
        key,
        f"must be {' and '.join(map(str, bounds))}",
        value,
    )


def _check_together(config: Any) -> None:
    model, init, loss, train, evaluate = config.model, config.init, config.loss, config.train, config.evaluate
    if config.data.service:
        host_and_port(config.data.service)
    if re.match(r"\w+://[^/@]*:[^/@]*@", config.tracking.mlflow):
        raise ConfigError(
            "tracking.mlflow must not contain a password, because the config is written into reports and exports; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if config.data.value_range:
        lowest, highest = config.data.value_range
        _require(lowest < highest, "data.value_range", "must increase", (lowest, highest))
    low, high = config.augment.scale_range
    _require(low <= high, "augment.scale_range", "must not decrease", (low, high))
    stem = "model.stem_channels" if model.stem_channels else "model.width"
    _require(
        model.stem != "deep" or (model.stem_channels or model.width) % 2 == 0,
        stem,
        "must be even with the deep stem",
        model.stem_channels or model.width,
    )
    _require(
        not (init.backbone and init.weights),
        "init.weights",
        f"already contains a backbone; set init.backbone= instead of init.backbone={init.backbone}",
        init.weights,
    )
    _require(
        not loss.ohem_threshold or loss.ohem_kept,
        "loss.ohem_threshold",
        "needs loss.ohem_kept above 0",
        loss.ohem_threshold,
    )
    _require(
        bool(evaluate.window) == bool(evaluate.stride),
        "evaluate.stride",
        "must be set together with evaluate.window",
        evaluate.stride,
    )
    _require(
        all(step <= side for step, side in zip(evaluate.stride, evaluate.window)),
        "evaluate.stride",
        f"must not exceed evaluate.window {evaluate.window}, which would skip pixels",
        evaluate.stride,
    )
    _require(
        train.accumulate == 1 or not loss.ohem_kept,
        "train.accumulate",
        "cannot be combined with loss.ohem_kept, which compares all pixels of the batch",
        train.accumulate,
    )
    _require(
        not train.loss_scale_growth or train.precision == "mixed_float16",
        "train.loss_scale_growth",
        "needs train.precision=mixed_float16",
        train.loss_scale_growth,
    )
    _require(
        config.export.precision != "int8" or config.export.device == "cpu",
        "export.device",
        "must be cpu with export.precision=int8, which no GPU computes",
        config.export.device,
    )
    _require(
        train.end_learning_rate <= train.learning_rate,
        "train.end_learning_rate",
        f"must not exceed train.learning_rate {train.learning_rate}",
        train.end_learning_rate,
    )


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and port of a tf.data service's address; raises ConfigError for another form."""
    parts = re.fullmatch(r"grpc://([\w.-]+):(\d{1,5})", address)
    if not parts or not 0 < int(parts[2]) < 2**16:
        raise ConfigError(f"a tf.data service has an address such as grpc://host:5050, got {address!r}")
    return parts[1], int(parts[2])


def _require(condition: bool, key: str, rule: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"{key} {rule}, got {value}")
