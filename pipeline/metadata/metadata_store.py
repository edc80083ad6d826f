"""What ML Metadata knows of the pipeline's runs, read without TFX: runs, steps, artifacts and where they come from."""

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
# The type of the contexts that stand for runs, and our property of theirs.
RUN, FAILURE = "pipeline_run", "failure"
STATES = metadata_store_pb2.Execution.State


@dataclass(frozen=True)
class Stored:
    """An artifact: its id, type, place and properties."""

    id: int
    type: str
    uri: str
    properties: dict


@dataclass(frozen=True)
class Step:
    """One execution of a component: `inputs` and `outputs` are artifacts by their keys, `seconds` it took."""

    id: int
    kind: str
    node: str
    state: str
    seconds: float
    properties: dict
    inputs: dict[str, tuple[Stored, ...]]
    outputs: dict[str, tuple[Stored, ...]]


@dataclass(frozen=True)
class Run:
    """One run of a pipeline, its steps in the order they began; `failure` is why it ended, where a component failed."""

    name: str
    started: datetime
    steps: tuple[Step, ...]
    failure: str = ""

    def step(self, node: str) -> Step | None:
        """Return the step of a component; None where the run did not come to it."""
        return next((step for step in self.steps if step.node == node), None)


def open_store(root: Path) -> MetadataStore:
    """Return the metadata of a pipeline's directory; raises UserError where there is none."""
    path = root / DATABASE
    if not path.is_file():
        raise UserError(f"no file {path}: python -m pipeline.run_local --root {root} writes it")
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READWRITE
    try:
        return MetadataStore(config)
    except errors.StatusError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def runs(store: MetadataStore) -> Iterator[Run]:
    """Yield all runs, the oldest first."""
    nodes = {execution.id: node.name.rsplit(".", 1)[-1] for node in _contexts(store, "node")
             for execution in store.get_executions_by_context(node.id)}
    for context in sorted(_contexts(store, RUN), key=lambda each: each.id):
        yield _run(store, context, nodes)


def _contexts(store: MetadataStore, kind: str) -> list[metadata_store_pb2.Context]:
    try:
        return store.get_contexts_by_type(kind)
    # Before the first run nothing has a type.
    except errors.NotFoundError:
        return []


def _run(store: MetadataStore, context: metadata_store_pb2.Context, nodes: dict[int, str]) -> Run:
    executions = sorted(store.get_executions_by_context(context.id), key=lambda each: each.id)
    steps = tuple(_step(store, execution, nodes.get(execution.id, "?")) for execution in executions)
    started = datetime.fromtimestamp(context.create_time_since_epoch / 1000).astimezone()
    return Run(context.name, started, steps, _values(context).get(FAILURE, ""))


def keep_failure(store: MetadataStore, run: Run, text: str) -> None:
    """Write why a run ended, which TFX itself does not keep."""
    context = store.get_context_by_type_and_name(RUN, run.name)
    context.custom_properties[FAILURE].string_value = text
    store.put_contexts([context])


def _step(store: MetadataStore, execution: metadata_store_pb2.Execution, node: str) -> Step:
    inputs: dict[str, list[int]] = {}
    outputs: dict[str, list[int]] = {}
    kinds = {metadata_store_pb2.Event.INPUT: inputs, metadata_store_pb2.Event.OUTPUT: outputs}
    for event in store.get_events_by_execution_ids([execution.id]):
        if event.type in kinds:
            kinds[event.type].setdefault(event.path.steps[0].key, []).append(event.artifact_id)
    milliseconds = execution.last_update_time_since_epoch - execution.create_time_since_epoch
    state = STATES.Name(execution.last_known_state).lower()
    return Step(execution.id, execution.type, node, state, milliseconds / 1000,
                _settings(execution), *({key: artifacts(store, ids) for key, ids in found.items()}
                                      for found in (inputs, outputs)))


def artifacts(store: MetadataStore, ids: list[int]) -> tuple[Stored, ...]:
    """Return the artifacts of some ids, in their order."""
    found = {each.id: each for each in store.get_artifacts_by_id(ids)}
    return tuple(Stored(each, found[each].type, found[each].uri, _values(found[each])) for each in ids)


def _settings(execution: metadata_store_pb2.Execution) -> dict:
    """Return what a component was told; what TFX keeps as JSON, of a cached one only, is parsed."""
    values = _values(execution)
    return {name: json.loads(value) if f"__schema__{name}__" in values and isinstance(value, str) else value
            for name, value in values.items() if not name.startswith("__schema__")}


def _values(owner: metadata_store_pb2.Execution | metadata_store_pb2.Artifact) -> dict:
    both = [*owner.properties.items(), *owner.custom_properties.items()]
    return {name: getattr(value, value.WhichOneof("value")) for name, value in both if value.WhichOneof("value")}
