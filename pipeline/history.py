"""Print the runs of a pipeline, or the lineage of a pushed version, from ML Metadata.

python -m pipeline.history --root runs/pipeline
python -m pipeline.history --root runs/pipeline --version 1795290896
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from kseg import cli
from kseg.errors import UserError, unknown
from pipeline.metadata import metadata_store, summary
from pipeline.metadata.metadata_store import Execution, Run, StoredArtifact

# Components whose blessings contain the reasons for accepting or refusing a model.
BLESSING_NODES = ("Evaluator", "Validator", "InfraValidator")


def run_lines(runs: Iterable[Run]) -> Iterator[str]:
    """Yield lines for each run: its time, component states, blessings with reasons, failure and pushed version."""
    for run in runs:
        steps = [step for step in run.steps if not step.kind.endswith(summary.RESOLVER)]
        states = ", ".join(f"{step.node} {step.state}" for step in steps)
        yield f"{run.started:%Y-%m-%d %H:%M:%S}  {states or 'no component was run'}"
        for node in BLESSING_NODES:
            step = run.step(node)
            for artifact in step.outputs.get("blessing", ()) if step else ():
                message = artifact.properties.get("blessing_message", "no reason was recorded")
                yield from (f"    {line}" for line in message.splitlines())
        if run.failure:
            failed = next((step.node for step in steps if step.state == "failed"), "a component")
            yield from (f"    {line}" for line in f"{failed} failed: {run.failure}".splitlines())
        version = summary.pushed_version(run)
        yield f"    pushed: {version.properties['pushed_destination']}" if version else "    pushed: nothing"


def producing_steps(runs: Iterable[Run]) -> dict[int, Execution]:
    """Return the step that produced each artifact, by the artifact's id; cached steps produce none."""
    return {
        artifact.id: step
        for run in runs
        for step in run.steps
        if step.state == "complete" and not step.kind.endswith(summary.RESOLVER)
        for outputs in step.outputs.values()
        for artifact in outputs
    }


def lineage_lines(runs: list[Run], version: str) -> Iterator[str]:
    """Yield the artifacts behind a pushed version as an indented tree, with the details of each artifact once.

    Raises UserError with the pushed versions if the version was never pushed.
    """
    producers = producing_steps(runs)
    pushed = {
        artifact.properties["pushed_version"]: artifact
        for step in producers.values()
        for artifact in step.outputs.get("pushed_model", ())
        if artifact.properties.get("pushed") == 1
    }
    if version not in pushed:
        raise UserError(unknown("version", version, pushed) if pushed else "no version has been pushed yet")
    yield from _tree_lines(pushed[version], producers, "", set())


def _tree_lines(
    artifact: StoredArtifact, producers: dict[int, Execution], indent: str, shown: set[int]
) -> Iterator[str]:
    step = producers.get(artifact.id)
    repeated = " (see above)" if artifact.id in shown else ""
    yield f"{indent}{artifact.type} {artifact.id}, by {step.node if step else '?'}: {artifact.uri}{repeated}"
    if repeated or step is None:
        return
    shown.add(artifact.id)
    for text in artifact_facts(artifact, step):
        yield f"{indent}    {text}"
    for inputs in step.inputs.values():
        for source in inputs:
            yield from _tree_lines(source, producers, indent + "  ", shown)


def artifact_facts(artifact: StoredArtifact, step: Execution) -> list[str]:
    """Return details of an artifact: the source of examples, the config of a model, the reasons of a blessing."""
    values = artifact.properties
    if artifact.type == "Examples":
        return [
            f"{values.get('images')} images of {values.get('data')}, span {values.get('span', 0)}, fingerprint "
            f"{values.get('fingerprint')}"
        ]
    if artifact.type == "Model":
        config = json.loads(json.loads(step.properties["custom_config"])["config"])
        return [f"config {config['name']}: {json.dumps(config)}"]
    if artifact.type in ("ModelBlessing", "InfraBlessing"):
        return values.get("blessing_message", "").splitlines()
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=cli.program("pipeline.history"), description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="the --root of pipeline.run_local")
    parser.add_argument("--version", metavar="N", help="print the lineage of this pushed version")
    values = parser.parse_args(arguments)
    runs = list(metadata_store.read_runs(metadata_store.open_store(values.root)))
    print("\n".join(lineage_lines(runs, values.version) if values.version else run_lines(runs)))
    return 0


if __name__ == "__main__":
    cli.run(main)
