"""Create artifacts and run the pipeline's executors without ML Metadata."""

import json

from pipeline.components import ingest

RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"


def artifact(kind, directory, number=1, **properties):
    """Return an artifact of a TFX type in a new directory."""
    result = kind()
    result.uri, result.id = str(directory), number
    directory.mkdir(parents=True, exist_ok=True)
    for key, value in properties.items():
        (result.set_int_custom_property if isinstance(value, int) else result.set_string_custom_property)(key, value)
    return result


def ingested(data, directory, splits=("train", "val"), max_unreadable_fraction=0.0, per_shard=2, flags=(RUNNER,)):
    """Ingest a dataset with the component's executor, and return the Examples artifact."""
    from tfx.types import standard_artifacts

    examples = artifact(standard_artifacts.Examples, directory)
    ingest.Executor(ingest.Executor.Context(beam_pipeline_args=list(flags))).Do(
        {},
        {"examples": [examples]},
        {
            "data": json.dumps({"name": data.name, "directory": data.directory}),
            "splits": json.dumps(splits),
            "fingerprint": ingest.source_fingerprint(data, tuple(splits)),
            "span": 3,
            "images_per_shard": per_shard,
            "largest_unreadable_share": max_unreadable_fraction,
        },
    )
    return examples
