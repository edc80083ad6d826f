"""What the pipeline's runs did, and where a pushed version comes from, from ML Metadata.

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
from pipeline.metadata.metadata_store import Run, Step, Stored

# Of a run, why a model was refused or blessed.
REASON = ("Evaluator", "Validator", "InfraValidator")


def lines(runs: Iterable[Run]) -> Iterator[str]:
    """Yield what each run did: when, what became of its components, its blessings with reasons, what it pushed."""
    for run in runs:
        steps = [step for step in run.steps if not step.kind.endswith(summary.RESOLVER)]
        states = ", ".join(f"{step.node} {step.state}" for step in steps)
        yield f"{run.started:%Y-%m-%d %H:%M:%S}  {states or 'nothing was run'}"
        for node in REASON:
            step = run.step(node)
            for artifact in step.outputs.get("blessing", ()) if step else ():
                message = artifact.properties.get("blessing_message", "no reason is known")
                yield from (f"    {line}" for line in message.splitlines())
        if run.failure:
            failed = next((step.node for step in steps if step.state == "failed"), "a component")
            yield from (f"    {line}" for line in f"{failed} failed: {run.failure}".splitlines())
        version = summary.pushed(run)
        yield f"    pushed: {version.properties['pushed_destination']}" if version else "    pushed: nothing"


def makers(runs: Iterable[Run]) -> dict[int, Step]:
    """Return which step made each artifact, by the artifact's id; cached steps made none."""
    return {artifact.id: step for run in runs for step in run.steps if step.state == "complete"
            and not step.kind.endswith(summary.RESOLVER) for found in step.outputs.values() for artifact in found}


def lineage(runs: list[Run], version: str) -> Iterator[str]:
    """Yield what a pushed version was made of, and that in turn, indented, each once.

    Raises UserError with the versions that there are where it was never pushed.
    """
    made = makers(runs)
    pushed = {artifact.properties["pushed_version"]: artifact for step in made.values()
              for artifact in step.outputs.get("pushed_model", ()) if artifact.properties.get("pushed") == 1}
    if version not in pushed:
        raise UserError(unknown("version", version, pushed) if pushed else "no version was pushed yet")
    yield from _tree(pushed[version], made, "", set())


def _tree(artifact: Stored, made: dict[int, Step], indent: str, told: set[int]) -> Iterator[str]:
    step = made.get(artifact.id)
    again = " (see above)" if artifact.id in told else ""
    yield f"{indent}{artifact.type} {artifact.id}, by {step.node if step else '?'}: {artifact.uri}{again}"
    if again or step is None:
        return
    told.add(artifact.id)
    for text in facts(artifact, step):
        yield f"{indent}    {text}"
    for found in step.inputs.values():
        for each in found:
            yield from _tree(each, made, indent + "  ", told)


def facts(artifact: Stored, step: Step) -> list[str]:
    """Return what is to be known of an artifact: of examples their source, of a model its config, of blessings why."""
    values = artifact.properties
    if artifact.type == "Examples":
        return [f"{values.get('images')} images of {values.get('data')}, span {values.get('span', 0)}, fingerprint "
                f"{values.get('fingerprint')}"]
    if artifact.type == "Model":
        config = json.loads(json.loads(step.properties["custom_config"])["config"])
        return [f"config {config['name']}: {json.dumps(config)}"]
    if artifact.type in ("ModelBlessing", "InfraBlessing"):
        return values.get("blessing_message", "").splitlines()
    return []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.history", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="what pipeline.run_local was given")
    parser.add_argument("--version", metavar="N", help="tell what this pushed version was made of")
    values = parser.parse_args(arguments)
    runs = list(metadata_store.runs(metadata_store.open_store(values.root)))
    print("\n".join(lineage(runs, values.version) if values.version else lines(runs)))
    return 0


if __name__ == "__main__":
    cli.run(main)
