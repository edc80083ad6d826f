"""Find the model that precedes a new one, as strategies of TFX's Resolver.

A repeated run must find the same model again, so that its cached results stay valid. Neither the candidate itself nor
models trained on the same examples are therefore considered.
"""

from collections.abc import Callable

import ml_metadata
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types import Artifact


def last_blessed(inputs: dict[str, list[Artifact]], accepts: Callable[[Artifact], bool]) -> dict[str, list[Artifact]]:
    """Return the inputs with the last blessed model that `accepts` and its blessing; both are empty without one."""
    models = {model.id: model for model in inputs["model"]}
    for blessing in sorted(inputs["model_blessing"], key=lambda blessing: blessing.id, reverse=True):
        model = models.get(blessing.get_int_custom_property("current_model_id"))
        if blessing.get_int_custom_property("blessed") == 1 and model and accepts(model):
            return inputs | {"model": [model], "model_blessing": [blessing]}
    return inputs | {"model": [], "model_blessing": []}


class LastBlessedBefore(ResolverStrategy):
    """Strategy that finds the last blessed model other than `candidate`."""

    def resolve_artifacts(
        self, store: ml_metadata.MetadataStore, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        candidates = {model.id for model in input_dict["candidate"]}
        return last_blessed(input_dict, lambda model: model.id not in candidates)


class LastBlessedOnOtherExamples(ResolverStrategy):
    """Strategy that finds the last blessed model that was not trained on `examples`."""

    def resolve_artifacts(
        self, store: ml_metadata.MetadataStore, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        examples = {artifact.id for artifact in input_dict["examples"]}
        return last_blessed(input_dict, lambda model: not examples & training_inputs(store, model.id))


def training_inputs(store: ml_metadata.MetadataStore, model: int) -> set[int]:
    """Return the ids of the input artifacts of the execution that produced a model."""
    executions = [
        event.execution_id
        for event in store.get_events_by_artifact_ids([model])
        if event.type == metadata_store_pb2.Event.OUTPUT
    ]
    return {
        event.artifact_id
        for event in store.get_events_by_execution_ids(executions)
        if event.type == metadata_store_pb2.Event.INPUT
    }
