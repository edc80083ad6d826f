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

from kseg import cli
from kseg.config import Config
from kseg.errors import UserError
from kseg.system.signals import Stopped
from pipeline import options

# Characters that are kept of why a run ended.
LONGEST = 4000


def docker_address() -> str:
    """Return where Docker is said to listen; empty: where it does by default."""
    return os.environ.get("DOCKER_HOST", "")


def require_docker() -> None:
    """Raise UserError where Docker does not answer."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=docker_address() or None)
        try:
            client.ping()
        finally:
            client.close()
    except DockerException as error:
        raise UserError(f"--infra-validator: docker does not answer at {docker_address() or 'its usual place'}: {error}; "
                        "start it, or leave the flag out") from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(prog="python -m pipeline.run_local", description=__doc__.splitlines()[0])
    cli.add_config_arguments(result)
    result.add_argument("--root", type=Path, required=True, metavar="DIR",
                        help="where artifacts, metadata and unfinished trainings are kept")
    options.add_arguments(result)
    result.add_argument("--span", type=int, metavar="N",
                        help="the number that stands for {SPAN} in data.directory (default: the highest there is)")
    result.add_argument("--no-cache", action="store_true", help="run every component, whatever is known")
    return result


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
    from pipeline import definition, run_local
    from pipeline.components import ingest
    from pipeline.metadata import metadata_store, summary

    if values.infra_validator:
        run_local.require_docker()
    # It takes long to import, and what is wrong with the command line is told before.
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner
    from tfx.proto import infra_validator_pb2

    quiet()
    config, span = ingest.located(config, values.span)
    if values.serving:
        values.serving = str(Path(values.serving).resolve())
    fingerprint = ingest.fingerprint(config.data, (config.data.train_split, config.data.val_split))
    docker = infra_validator_pb2.LocalDockerConfig(client_base_url=run_local.docker_address())
    chosen = options.settings(values, config, str(root), fingerprint, docker, span)
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
        metadata_store.keep_failure(store, found[-1], failure_text(failure))
        found = list(metadata_store.runs(store))
    nodes = [component.id for component in created.components]
    print(summary.table(found[-1], nodes, found[-2] if len(found) > 1 else None))
    if failure is not None:
        return report_failure(failure)
    version = summary.pushed(found[-1])
    if version is None:
        reasons = summary.refusals(found[-1]) or ["the version that was pushed before is gone; run with --no-cache"]
        print("\n".join(["not pushed:", *reasons]), file=sys.stderr)
        return 1
    print(f"pushed: {version.properties['pushed_destination']}")
    return 0


def failure_text(failure: Exception) -> str:
    """Return why a run ended, as the history keeps it."""
    kind = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    return f"{kind}{failure}"[:LONGEST]


def report_failure(failure: Exception) -> int:
    """Say why a component failed and return the exit status; what is no mistake of the user's keeps its traceback."""
    if isinstance(failure, Stopped):
        return 128 + failure.number
    if not isinstance(failure, UserError):
        raise failure
    print(f"error: {failure}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    cli.run(main)
