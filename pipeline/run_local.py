"""The whole pipeline on this machine: from a data set to a blessed, pushed SavedModel.

    python -m pipeline.run_local --config encnet_shapes --root runs/pipeline --set train.steps=100

Started again, it does again only what has changed, and continues where a process was killed. Exit status 0 only where
the model is pushed; 1 where it was refused; 2 where something outside of the program has to change.
"""

import argparse
import fcntl
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kseg import cli
from kseg.config import Config
from kseg.errors import ConfigError, UserError
from kseg.system.signals import Stopped

if TYPE_CHECKING:
    from tfx.orchestration.data_types import RuntimeParameter

    from pipeline.definition import Settings
    from pipeline.components.infra_validator import Platform

# Characters that are kept of why a run ended.
LONGEST = 4000


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m pipeline.run_local", description=__doc__.splitlines()[0])
    cli.add_config_arguments(result)
    result.add_argument("--root", type=Path, required=True, metavar="DIR",
                        help="where artifacts, metadata and unfinished trainings are kept")
    add_arguments(result)
    result.add_argument("--span", type=int, metavar="N",
                        help="the number that stands for {SPAN} in data.directory (default: the highest there is)")
    result.add_argument("--no-cache", action="store_true", help="run every component, whatever is known")
    return result


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


def quiet() -> None:
    """Keep what TFX, Beam and TensorFlow tell of their inner life off the terminal."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> int:
    values = parser().parse_args(arguments)
    config = cli.load_config(values)
    root = values.root.resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process runs a pipeline in {root}") from None
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror}") from None
    with lock:
        return run(values, config, root)


def run(values: argparse.Namespace, config: Config, root: Path) -> int:
    """Run the pipeline in a directory that is ours, tell what it did and return the exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from pipeline import containers, definition
    from pipeline.components import ingest
    from pipeline.metadata import metadata_store, summary

    if values.infra_validator:
        containers.require()
    # It takes long to import, and what is wrong with the command line is told before.
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner
    from tfx.proto import infra_validator_pb2

    quiet()
    config, span = ingest.located(config, values.span)
    if values.serving:
        values.serving = str(Path(values.serving).resolve())
    fingerprint = ingest.fingerprint(config.data, (config.data.train_split, config.data.val_split))
    docker = infra_validator_pb2.LocalDockerConfig(client_base_url=containers.address())
    chosen = settings(values, config, str(root), fingerprint, docker, span)
    created = definition.create(chosen, str(root / metadata_store.DATABASE), cache=not values.no_cache)
    known = len(list(metadata_store.runs(metadata_store.open_store(root)))) if (root / metadata_store.DATABASE).is_file() else 0
    failure = None
    try:
        LocalDagRunner().run(created)
    except Exception as error:
        failure = error
    store = metadata_store.open_store(root)
    found = list(metadata_store.runs(store))
    if len(found) == known:
        raise failure
    if failure is not None:
        metadata_store.keep_failure(store, found[-1], said(failure))
        found = list(metadata_store.runs(store))
    nodes = [component.id for component in created.components]
    print(summary.table(found[-1], nodes, found[-2] if len(found) > 1 else None))
    if failure is not None:
        return tell(failure)
    version = summary.pushed(found[-1])
    if version is None:
        reasons = summary.refusals(found[-1]) or ["the version that was pushed before is gone; run with --no-cache"]
        print("\n".join(["not pushed:", *reasons]), file=sys.stderr)
        return 1
    print(f"pushed: {version.properties['pushed_destination']}")
    return 0


def settings(values: argparse.Namespace, config: Config, root: str, fingerprint: "str | RuntimeParameter",
             platform: "Platform", span: int = 0) -> "Settings":
    """Return the pipeline's settings of a command line with `add_arguments`' values.

    `platform` is where TFX's InfraValidator would start a server.
    """
    from pipeline import beam_options, definition
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
        container=infra_validator.serving_spec(image, platform) if image else None, beam=beam_options.flags(values.beam))


def said(failure: Exception) -> str:
    """Return why a run ended, as the history keeps it."""
    kind = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    return f"{kind}{failure}"[:LONGEST]


def tell(failure: Exception) -> int:
    """Say why a component failed and return the exit status; what is no mistake of the user's keeps its traceback."""
    if isinstance(failure, Stopped):
        return 128 + failure.number
    if not isinstance(failure, UserError):
        raise failure
    print(f"error: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    cli.run(main)
