"""Which model a new one follows: strategies of TFX's Resolver.

A run that is made again finds the same one again, so that what it gave is still valid: neither the candidate itself nor
what was trained on the same examples counts as a model before it.
"""

from collections.abc import Callable

import ml_metadata
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types import Artifact


def last_blessed(found: dict[str, list[Artifact]], fits: Callable[[Artifact], bool]) -> dict[str, list[Artifact]]:
    """Return the model that was blessed last among those that fit, and its blessing; nothing: empty lists."""
    models = {model.id: model for model in found["model"]}
    for blessing in sorted(found["model_blessing"], key=lambda each: each.id, reverse=True):
        model = models.get(blessing.get_int_custom_property("current_model_id"))
        if blessing.get_int_custom_property("blessed") == 1 and model and fits(model):
            return found | {"model": [model], "model_blessing": [blessing]}
    return found | {"model": [], "model_blessing": []}


class LastBlessedBefore(ResolverStrategy):
    """The model that was blessed last and is not `candidate`."""

    def resolve_artifacts(self, store: ml_metadata.MetadataStore,
                          input_dict: dict[str, list[Artifact]]) -> dict[str, list[Artifact]]:
        candidates = {model.id for model in input_dict["candidate"]}
        return last_blessed(input_dict, lambda model: model.id not in candidates)


class LastBlessedOnOtherExamples(ResolverStrategy):
    """The model that was blessed last of those that were not trained on `examples`."""

    def resolve_artifacts(self, store: ml_metadata.MetadataStore,
                          input_dict: dict[str, list[Artifact]]) -> dict[str, list[Artifact]]:
        examples = {artifact.id for artifact in input_dict["examples"]}
        return last_blessed(input_dict, lambda model: not examples & trained_on(store, model.id))


def trained_on(store: ml_metadata.MetadataStore, model: int) -> set[int]:
    """Return the ids of all artifacts that went into the making of a model."""
    made = [event.execution_id for event in store.get_events_by_artifact_ids([model])
            if event.type == metadata_store_pb2.Event.OUTPUT]
    return {event.artifact_id for event in store.get_events_by_execution_ids(made)
            if event.type == metadata_store_pb2.Event.INPUT}
