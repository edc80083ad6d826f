"""Read the pipeline's runs, steps, artifacts and lineage from ML Metadata, without TFX."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ml_metadata import errors
from ml_metadata.metadata_store import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from kseg.errors import UserError

DATABASE = "metadata.sqlite"
# Type of the contexts that represent runs, and the property of such a context that holds the run's failure.
RUN, FAILURE = "pipeline_run", "failure"
STATES = metadata_store_pb2.Execution.State


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact: its id, type, location and properties."""

    id: int
    type: str
    uri: str
    properties: dict


@dataclass(frozen=True)
class Execution:
    """One execution of a component.

    Attributes:
        id: Id of the execution.
        kind: Type of the execution, the full name of the component's class.
        node: Id of the component in the pipeline.
        state: Lower-case name of its state, such as "complete", "cached", "failed" or "running".
        seconds: Duration.
        properties: Settings of the component.
        inputs: Input artifacts by key.
        outputs: Output artifacts by key.
    """

    id: int
    kind: str
    node: str
    state: str
    seconds: float
    properties: dict
    inputs: dict[str, tuple[StoredArtifact, ...]]
    outputs: dict[str, tuple[StoredArtifact, ...]]


@dataclass(frozen=True)
class Run:
    """One run of a pipeline with its steps in order of their start.

    `failure` is the message of the component that failed, empty if none did.
    """

    name: str
    started: datetime
    steps: tuple[Execution, ...]
    failure: str = ""

    def step(self, node: str) -> Execution | None:
        """Return the step of a component, None if the run did not reach it."""
        return next((step for step in self.steps if step.node == node), None)


def open_store(root: Path) -> MetadataStore:
    """Open the metadata in a pipeline's directory; raises UserError if there is none."""
    path = root / DATABASE
    if not path.is_file():
        raise UserError(f"{path} does not exist; python -m pipeline.run_local --root {root} creates it")
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE
    try:
        return MetadataStore(config)
    except errors.StatusError as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_runs(store: MetadataStore) -> Iterator[Run]:
    """Yield all runs, oldest first."""
    nodes = {
        execution.id: node.name.rsplit(".", 1)[-1]
        for node in _contexts(store, "node")
        for execution in store.get_executions_by_context(node.id)
    }
    for context in sorted(_contexts(store, RUN), key=lambda context: context.id):
        yield _run(store, context, nodes)


def _contexts(store: MetadataStore, kind: str) -> list[metadata_store_pb2.Context]:
    try:
        return store.get_contexts_by_type(kind)
    # The store has no types before the first run.
    except errors.NotFoundError:
        return []


def _run(store: MetadataStore, context: metadata_store_pb2.Context, nodes: dict[int, str]) -> Run:
    executions = sorted(store.get_executions_by_context(context.id), key=lambda execution: execution.id)
    steps = tuple(_step(store, execution, nodes.get(execution.id, "?")) for execution in executions)
    started = datetime.fromtimestamp(context.create_time_since_epoch / 1000).astimezone()
    return Run(context.name, started, steps, _all_properties(context).get(FAILURE, ""))


def record_failure(store: MetadataStore, run: Run, text: str) -> None:
    """Record the failure of a run, which TFX does not store."""
    context = store.get_context_by_type_and_name(RUN, run.name)
    context.custom_properties[FAILURE].string_value = text
    store.put_contexts([context])


def _step(store: MetadataStore, execution: metadata_store_pb2.Execution, node: str) -> Execution:
    inputs: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    kinds = {metadata_store_pb2.Event.INPUT: inputs, metadata_store_pb2.Event.OUTPUT: outputs}
    for event in store.get_events_by_execution_ids([execution.id]):
        if event.type in kinds:
            kinds[event.type].setdefault(event.path.steps[0].key, []).append(event.artifact_id)
    milliseconds = execution.last_update_time_since_epoch - execution.create_time_since_epoch
    state = STATES.Name(execution.last_known_state).lower()
    return Execution(
        execution.id,
        execution.type,
        node,
        state,
        milliseconds / 1000,
        _component_properties(execution),
        *({key: read_artifacts(store, ids) for key, ids in ids_by_key.items()} for ids_by_key in (inputs, outputs)),
    )


def read_artifacts(store: MetadataStore, ids: list[int]) -> tuple[StoredArtifact, ...]:
    """Return the artifacts with the given ids, in the same order."""
    by_id = {artifact.id: artifact for artifact in store.get_artifacts_by_id(ids)}
    return tuple(
        StoredArtifact(number, by_id[number].type, by_id[number].uri, _all_properties(by_id[number])) for number in ids
    )


def _component_properties(execution: metadata_store_pb2.Execution) -> dict:
    """Return the settings of a component.

    TFX stores some settings as JSON with a schema, but only for cached executions; these are parsed.
    """
    values = _all_properties(execution)
    return {
        name: json.loads(value) if f"__schema__{name}__" in values and isinstance(value, str) else value
        for name, value in values.items()
        if not name.startswith("__schema__")
    }


def _all_properties(owner: metadata_store_pb2.Execution | metadata_store_pb2.Artifact) -> dict:
    both = [*owner.properties.items(), *owner.custom_properties.items()]
    return {name: getattr(value, value.WhichOneof("value")) for name, value in both if value.WhichOneof("value")}
