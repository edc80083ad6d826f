"""Convert the arguments of a pipeline command to the pipeline's settings."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kseg.config import Config
from kseg.errors import ConfigError, unknown

if TYPE_CHECKING:
    from tfx.orchestration.data_types import RuntimeParameter

    from pipeline.components.infra_validator import Platform
    from pipeline.definition import Settings

# "local" names FnApiRunner, because DirectRunner would first try to download a binary.
RUNNERS = {
    "local": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "dask": "apache_beam.runners.dask.dask_runner.DaskRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}


def beam_flags(values: Sequence[str]) -> tuple[str, ...]:
    """Return Beam's flags for texts KEY=VALUE.

    The key `runner` takes a name from RUNNERS. All other keys are Beam's, such as dask_client_address, flink_master,
    spark_master_url, or project and region. Raises ConfigError for other texts and runners.
    """
    pairs = [value.partition("=") for value in values]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"--beam takes KEY=VALUE, got {key}{equals}{value}")
    flags = {key: value for key, _, value in pairs}
    name = flags.pop("runner", "local")
    if name not in RUNNERS:
        raise ConfigError(unknown("runner", name, RUNNERS))
    if name == "dask" and not {"dask_npartitions", "dask_partition_size"} & flags.keys():
        # Otherwise one worker would get 128 elements, and an element is already a part of a dataset here.
        flags["dask_partition_size"] = "1"
    return (f"--runner={RUNNERS[name]}", *(f"--{key}={value}" for key, value in flags.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all runners of the pipeline share."""
    parser.add_argument(
        "--serving",
        metavar="DIR",
        help="directory that versions are pushed to, watched by a server (default: ROOT/serving)",
    )
    parser.add_argument(
        "--floor", type=float, default=0.0, metavar="FRACTION", help="minimum mIoU of a blessed model (default 0)"
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="maximum drop of mIoU below the last blessed model's (default 0.01)",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=0.1,
        metavar="FRACTION",
        help="maximum drop of the IoU of any class (default 0.1)",
    )
    parser.add_argument(
        "--force-bless", default="", metavar="REASON", help="bless the model against the rule, and record the reason"
    )
    parser.add_argument(
        "--largest-unreadable",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="maximum fraction of a split that is skipped as unreadable (default 0.01)",
    )
    parser.add_argument(
        "--drift",
        type=float,
        default=0.2,
        metavar="FRACTION",
        help="maximum change of a class's fraction of the pixels since the last blessed model's data (default 0.2)",
    )
    parser.add_argument(
        "--new-classes", action="store_true", help="accept other classes than those of the last blessed model"
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="start training from the last blessed model that was trained on other data",
    )
    parser.add_argument(
        "--latency",
        type=float,
        default=1000.0,
        metavar="MS",
        help="milliseconds that the served model may take for an image (default 1000)",
    )
    parser.add_argument(
        "--infra-validator",
        default="",
        metavar="IMAGE:TAG",
        help="also try the model in TensorFlow Serving with TFX's InfraValidator, in this container "
        "image, such as tensorflow/serving:2.19.1",
    )
    parser.add_argument(
        "--beam",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="Beam's runner and its options, such as runner=dask dask_client_address=tcp://HOST:8786 "
        "(default: run in this process)",
    )
    parser.add_argument(
        "--images-per-shard", type=int, default=256, metavar="N", help="images in a file of records (default 256)"
    )
    parser.add_argument(
        "--images-per-bundle",
        type=int,
        default=64,
        metavar="N",
        help="images that a Beam worker evaluates at a time (default 64)",
    )


def pipeline_settings(
    values: argparse.Namespace,
    config: Config,
    root: str,
    fingerprint: "str | RuntimeParameter",
    platform: "Platform",
    span: int = 0,
) -> "Settings":
    """Return the pipeline's settings for the values of `add_arguments`.

    `platform` is the place where TFX's InfraValidator would start a server.
    """
    from pipeline import definition
    from pipeline.components import infra_validator
    from pipeline.metadata import blessing

    if values.images_per_shard < 1 or values.images_per_bundle < 1:
        raise ConfigError("--images-per-shard and --images-per-bundle must be at least 1")
    if config.export.precision == "int8":
        raise ConfigError(
            "the pipeline cannot calibrate export.precision=int8: choose another one, and export with "
            "python -m kseg.export --calibrate"
        )
    image = values.infra_validator
    return definition.Settings(
        config=config,
        root=root,
        span=span,
        serving=values.serving or f"{root}/serving",
        fingerprint=fingerprint,
        rule=blessing.Rule(values.floor, values.epsilon, values.delta),
        force=values.force_bless,
        max_unreadable_fraction=values.largest_unreadable,
        images_per_shard=values.images_per_shard,
        images_per_bundle=values.images_per_bundle,
        drift=values.drift,
        new_classes=values.new_classes,
        warm_start=values.warm_start,
        max_latency_ms=values.latency,
        container=infra_validator.serving_spec(image, platform) if image else None,
        beam=beam_flags(values.beam),
    )
