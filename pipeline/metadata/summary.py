"""Summarize a run as a table: the state, duration, result and rerun reason of each component."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.metadata.metadata_store import Execution, Run, StoredArtifact

# Properties that TFX adds, which do not influence the result of a component.
INTERNAL_PROPERTIES = ("name", "state", "component_id", "pipeline_name", "run_id", "pipeline_root", "checksum_md5")
# Limits of the table: characters of a failure, and number of listed changes.
MAX_WIDTH, MAX_CHANGES = 80, 5
# Suffix of the resolvers' execution type. Resolvers are never cached.
RESOLVER = ".Resolver"


def run_table(run: Run, nodes: Sequence[str], previous_run: Run | None) -> str:
    """Return the table of a run with the components `nodes`."""
    rows = [("component", "state", "seconds", "result", "why it ran")]
    for node in nodes:
        step = run.step(node)
        if step is None:
            rows.append((node, "not run", "", "", ""))
            continue
        state = {"complete": "done", "running": "interrupted"}.get(step.state, step.state)
        reason = rerun_reason(step, previous_run.step(node) if previous_run else None)
        result = shortened(run.failure) if step.state == "failed" else execution_outcome(step)
        rows.append((node, state, f"{step.seconds:.1f}", result, reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def shortened(text: str) -> str:
    """Return the first line of a text, truncated to the width of a column."""
    first = next(iter(text.splitlines()), "")
    return first if len(first) <= MAX_WIDTH else f"{first[: MAX_WIDTH - 3]}..."


def execution_outcome(step: Execution) -> str:
    """Return a short description of a step's output artifacts."""
    parts = []
    for outputs in step.outputs.values():
        parts += [f"{artifact.type} {artifact.id}{_artifact_note(artifact)}" for artifact in outputs]
    return ", ".join(parts)


def _artifact_note(artifact: StoredArtifact) -> str:
    values = artifact.properties
    if artifact.type == "Examples" and "images" in values:
        unreadable = values.get("unreadable", 0)
        return f" ({values['images']} images" + (f", {unreadable} unreadable)" if unreadable else ")")
    if artifact.type in ("ModelBlessing", "InfraBlessing"):
        return " (blessed)" if values.get("blessed") == 1 else " (refused)"
    if artifact.type == "PushedModel":
        existing = ", already present" if values.get("adopted") == 1 else ""
        return f" (version {values['pushed_version']}{existing})" if values.get("pushed") == 1 else " (not pushed)"
    return ""


def rerun_reason(step: Execution, previous_step: Execution | None) -> str:
    """Return the difference to the previous run that made a step run again; empty if it was cached."""
    if step.state == "cached" or step.kind.endswith(RESOLVER):
        return ""
    if previous_step is None:
        return "first run"
    changes = [
        change
        for key in sorted(step.properties.keys() | previous_step.properties.keys())
        if key not in INTERNAL_PROPERTIES
        for change in changed_names(key, previous_step.properties.get(key), step.properties.get(key))
    ]
    for key in sorted(step.inputs.keys() | previous_step.inputs.keys()):
        old, new = ([artifact.id for artifact in one.inputs.get(key, ())] for one in (previous_step, step))
        if old != new:
            changes.append(f"{key} {_join_ids(old)} -> {_join_ids(new)}")
    if not changes and previous_step.state not in ("complete", "cached"):
        return f"{'interrupted' if previous_step.state == 'running' else previous_step.state} in the previous run"
    if len(changes) > MAX_CHANGES:
        changes = [*changes[:MAX_CHANGES], f"{len(changes) - MAX_CHANGES} more"]
    return "changed: " + ", ".join(changes) if changes else "the cache is disabled or the result is gone"


def changed_names(name: str, old: object, new: object) -> list[str]:
    """Return the names of the differences between two values, within JSON objects as NAME.KEY."""
    old, new = _parse_object(old), _parse_object(new)
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in sorted(old.keys() | new.keys())
            for change in changed_names(f"{name}.{key}", old.get(key), new.get(key))
        ]
    return [] if old == new else [name]


def _parse_object(value: object) -> object:
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _join_ids(ids: list[int]) -> str:
    return "+".join(map(str, ids)) or "none"


def pushed_version(run: Run) -> StoredArtifact | None:
    """Return the version that a run pushed, also from a cached result; None if there is none on disk."""
    step = run.step("Pusher")
    outputs = step.outputs.get("pushed_model", ()) if step and step.state in ("complete", "cached") else ()
    for artifact in outputs:
        if artifact.properties.get("pushed") == 1 and Path(artifact.properties["pushed_destination"]).is_dir():
            return artifact
    return None


def refusals(run: Run) -> list[str]:
    """Return the messages of the blessings that refused the model."""
    outputs = (artifact for step in run.steps for group in step.outputs.values() for artifact in group)
    return [
        artifact.properties.get("blessing_message", artifact.uri)
        for artifact in outputs
        if artifact.type in ("ModelBlessing", "InfraBlessing") and artifact.properties.get("blessed") != 1
    ]
