"""Run the whole pipeline on this machine, from a dataset to a blessed, pushed SavedModel.

    python -m pipeline.run_local --config encnet_shapes --root runs/pipeline --set train.steps=100

The same command, run again, repeats only the components that changed, and resumes where a process was killed. The exit
status is 0 if the model is pushed, 1 if it was refused, and 2 for an error that the user must fix.
"""

import argparse
import fcntl
import logging
import os
import sys
from pathlib import Path

from kseg import cli
from kseg.config import Config
from kseg.errors import UserError
from kseg.system import quiet_start
from kseg.system.paths import path_fault
from kseg.system.signals import Stopped
from pipeline import options

# Number of characters of a failure's message that the history keeps.
MAX_FAILURE_LENGTH = 4000


def docker_address() -> str:
    """Return Docker's address from the environment, empty for the default address."""
    return os.environ.get("DOCKER_HOST", "")


def require_docker() -> None:
    """Raise UserError if Docker does not answer."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=docker_address() or None)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        raise UserError(
            f"--infra-validator: Docker does not answer at {docker_address() or 'its default address'}: "
            f"{error}; start it, or omit the flag"
        ) from None


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=cli.program("pipeline.run_local"), description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of artifacts, metadata and unfinished trainings",
    )
    options.add_arguments(parser)
    parser.add_argument(
        "--span",
        type=int,
        metavar="N",
        help="number that replaces {SPAN} in data.directory (default: the highest existing number)",
    )
    parser.add_argument("--no-cache", action="store_true", help="run all components, even with cached results")
    return parser


def silence_libraries() -> None:
    """Hide the log messages of TFX, Beam and TensorFlow below errors."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> int:
    values = build_parser().parse_args(arguments)
    config = cli.load_config(values)
    root = values.root.resolve()
    for option, path in (("--root", root), ("--serving", Path(values.serving or root).resolve())):
        if fault := path_fault(path):
            raise UserError(f"{option} {path} {fault}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("a", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is running a pipeline in {root}") from None
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror}") from None
    with lock:
        return run_pipeline(values, config, root)


def run_pipeline(values: argparse.Namespace, config: Config, root: Path) -> int:
    """Run the pipeline in a locked directory, print its table, and return the exit status."""
    quiet_start.import_tensorflow(for_training=True)
    from pipeline import definition
    from pipeline.components import ingest
    from pipeline.metadata import metadata_store, summary

    if values.infra_validator:
        require_docker()
    # TFX takes long to import, so errors in the arguments are reported first.
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner
    from tfx.proto import infra_validator_pb2

    silence_libraries()
    config, span = ingest.locate_span(config, values.span)
    if values.serving:
        values.serving = str(Path(values.serving).resolve())
    fingerprint = ingest.source_fingerprint(config.data, (config.data.train_split, config.data.val_split))
    docker = infra_validator_pb2.LocalDockerConfig(client_base_url=docker_address())
    settings = options.pipeline_settings(values, config, str(root), fingerprint, docker, span)
    created = definition.create(settings, str(root / metadata_store.DATABASE), cache=not values.no_cache)
    previous_runs = (
        len(list(metadata_store.read_runs(metadata_store.open_store(root))))
        if (root / metadata_store.DATABASE).is_file()
        else 0
    )
    failure = None
    try:
        LocalDagRunner().run(created)
    except Exception as error:
        failure = error
    store = metadata_store.open_store(root)
    runs = list(metadata_store.read_runs(store))
    if len(runs) == previous_runs:
        raise failure
    if failure is not None:
        metadata_store.record_failure(store, runs[-1], failure_text(failure))
        runs = list(metadata_store.read_runs(store))
    nodes = [component.id for component in created.components]
    print(summary.run_table(runs[-1], nodes, runs[-2] if len(runs) > 1 else None))
    if failure is not None:
        return report_failure(failure)
    version = summary.pushed_version(runs[-1])
    if version is None:
        reasons = summary.refusals(runs[-1]) or ["the version pushed by a previous run is gone; run with --no-cache"]
        print("\n".join(["not pushed:", *reasons]), file=sys.stderr)
        return 1
    print(f"pushed: {version.properties['pushed_destination']}")
    return 0


def failure_text(failure: Exception) -> str:
    """Return the message of a failure for the history."""
    kind = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    return f"{kind}{failure}"[:MAX_FAILURE_LENGTH]


def report_failure(failure: Exception) -> int:
    """Print the failure of a component, and return the exit status.

    Exceptions other than UserError and Stopped are raised, so that their traceback is printed.
    """
    if isinstance(failure, Stopped):
        return 128 + failure.number
    if not isinstance(failure, UserError):
        raise failure
    print(f"error: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    cli.run(main)
