"""Turn the arguments of a pipeline command into the pipeline's settings."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kseg.config import Config
from kseg.errors import ConfigError, unknown

if TYPE_CHECKING:
    from tfx.orchestration.data_types import RuntimeParameter

    from pipeline.components.infra_validator import Platform
    from pipeline.definition import Settings

# DirectRunner would first try to download a program of its own.
RUNNERS = {
    "local": "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "dask": "apache_beam.runners.dask.dask_runner.DaskRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
    "dataflow": "DataflowRunner",
}


def beam_flags(values: Sequence[str]) -> tuple[str, ...]:
    """Return Beam's flags of KEY=VALUE texts, of which `runner` is one of RUNNERS; raises ConfigError for others.

    All other keys are Beam's own, such as dask_client_address, flink_master, spark_master_url, or project and region.
    """
    pairs = [value.partition("=") for value in values]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"--beam {key}{equals}{value}: KEY=VALUE is needed")
    chosen = dict((key, value) for key, _, value in pairs)
    name = chosen.pop("runner", "local")
    if name not in RUNNERS:
        raise ConfigError(unknown("runner", name, RUNNERS))
    if name == "dask" and not {"dask_npartitions", "dask_partition_size"} & chosen.keys():
        # Else 128 elements, which are parts of a data set here, would go to one worker.
        chosen["dask_partition_size"] = "1"
    return (f"--runner={RUNNERS[name]}", *(f"--{key}={value}" for key, value in chosen.items()))


def add_arguments(result: argparse.ArgumentParser) -> None:
    """Add what every runner of the pipeline is told."""
    result.add_argument("--serving", metavar="DIR", help="the directory that a server watches (default: ROOT/serving)")
    result.add_argument("--floor", type=float, default=0.0, metavar="SHARE", help="least mIoU of a blessed model")
    result.add_argument("--epsilon", type=float, default=0.01, metavar="SHARE",
                        help="how far below the last blessed model's its mIoU may be (default 0.01)")
    result.add_argument("--delta", type=float, default=0.1, metavar="SHARE",
                        help="how far the IoU of a class may fall (default 0.1)")
    result.add_argument("--force-bless", default="", metavar="REASON", help="bless the model whatever the rule says")
    result.add_argument("--largest-unreadable", type=float, default=0.01, metavar="SHARE",
                        help="share of a split that may be left out as unreadable (default 0.01)")
    result.add_argument("--drift", type=float, default=0.2, metavar="SHARE",
                        help="how far a class's share of the pixels may move from the last blessed model's data")
    result.add_argument("--new-classes", action="store_true", help="the data may have other classes than before")
    result.add_argument("--warm-start", action="store_true", help="train on from the last blessed model on other data")
    result.add_argument("--latency", type=float, default=1000.0, metavar="MS",
                        help="milliseconds that the served model may take for a picture (default 1000)")
    result.add_argument("--infra-validator", default="", metavar="IMAGE",
                        help="let TFX's InfraValidator try the model in TensorFlow Serving as well: an image with its "
                             "tag, tensorflow/serving:2.19.1 say")
    result.add_argument("--beam", nargs="+", default=[], metavar="KEY=VALUE",
                        help="what Beam steps run on, such as runner=dask dask_client_address=tcp://HOST:8786; "
                             "by default this process")
    result.add_argument("--images-per-shard", type=int, default=256, metavar="N", help="of a file of records")
    result.add_argument("--images-per-bundle", type=int, default=64, metavar="N", help="of a part of the evaluation")


def settings(values: argparse.Namespace, config: Config, root: str, fingerprint: "str | RuntimeParameter",
             platform: "Platform", span: int = 0) -> "Settings":
    """Return the pipeline's settings of a command line with `add_arguments`' values.

    `platform` is where TFX's InfraValidator would start a server.
    """
    from pipeline import definition, options
    from pipeline.components import infra_validator
    from pipeline.metadata import blessing

    if values.images_per_shard < 1 or values.images_per_bundle < 1:
        raise ConfigError("--images-per-shard and --images-per-bundle are at least 1")
    image = values.infra_validator
    return definition.Settings(
        config=config, root=root, span=span, serving=values.serving or f"{root}/serving", fingerprint=fingerprint,
        rule=blessing.Rule(values.floor, values.epsilon, values.delta), force=values.force_bless,
        largest_unreadable_share=values.largest_unreadable, images_per_shard=values.images_per_shard,
        images_per_bundle=values.images_per_bundle, drift=values.drift, new_classes=values.new_classes,
        warm_start=values.warm_start, budget=values.latency,
        container=infra_validator.serving_spec(image, platform) if image else None, beam=options.beam_flags(values.beam))
