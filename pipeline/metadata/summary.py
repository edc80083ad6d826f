"""What a run did, as a table: of each component its state, its time, and what it gave, or why it was not cached."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.metadata.metadata_store import Run, Step, Stored

# Properties that TFX adds, which say nothing of what a component was asked for.
INNER = ("name", "state", "component_id", "pipeline_name", "run_id", "pipeline_root", "checksum_md5")

# Characters of a reason in the table, and changes that are named.
WIDEST, NAMED = 80, 5

# Looks something up, every time.
RESOLVER = ".Resolver"


def table(run: Run, nodes: Sequence[str], before: Run | None) -> str:
    """Return the table of a run of the components `nodes`; `before` is the run before it."""
    rows = [("component", "state", "seconds", "result", "why it ran")]
    for node in nodes:
        step = run.step(node)
        if step is None:
            rows.append((node, "not run", "", "", ""))
            continue
        state = {"complete": "done", "running": "cut off"}.get(step.state, step.state)
        reason = why(step, before.step(node) if before else None)
        result = shortened(run.failure) if step.state == "failed" else outcome(step)
        rows.append((node, state, f"{step.seconds:.1f}", result, reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def shortened(text: str) -> str:
    """Return the first line of a text, and no more than fits a column."""
    first = next(iter(text.splitlines()), "")
    return first if len(first) <= WIDEST else f"{first[:WIDEST - 3]}..."


def outcome(step: Step) -> str:
    """Return what a step gave, in a few words."""
    parts = []
    for found in step.outputs.values():
        parts += [f"{artifact.type} {artifact.id}{_note(artifact)}" for artifact in found]
    return ", ".join(parts)


def _note(artifact: Stored) -> str:
    values = artifact.properties
    if artifact.type == "Examples" and "images" in values:
        left_out = values.get("unreadable", 0)
        return f" ({values['images']} images" + (f", {left_out} unreadable)" if left_out else ")")
    if artifact.type in ("ModelBlessing", "InfraBlessing"):
        return " (blessed)" if values.get("blessed") == 1 else " (refused)"
    if artifact.type == "PushedModel":
        there = ", there already" if values.get("adopted") == 1 else ""
        return f" (version {values['pushed_version']}{there})" if values.get("pushed") == 1 else " (not pushed)"
    return ""


def why(step: Step, before: Step | None) -> str:
    """Return what differs from the run before, so that a step had to be taken; empty where it was cached."""
    if step.state == "cached" or step.kind.endswith(RESOLVER):
        return ""
    if before is None:
        return "first time"
    changes = [change for key in sorted(step.properties.keys() | before.properties.keys()) if key not in INNER
               for change in differing(key, before.properties.get(key), step.properties.get(key))]
    for key in sorted(step.inputs.keys() | before.inputs.keys()):
        old, new = ([artifact.id for artifact in each.inputs.get(key, ())] for each in (before, step))
        if old != new:
            changes.append(f"{key} {_ids(old)} -> {_ids(new)}")
    if not changes and before.state not in ("complete", "cached"):
        return f"{'cut off' if before.state == 'running' else before.state} the time before"
    if len(changes) > NAMED:
        changes = [*changes[:NAMED], f"{len(changes) - NAMED} more"]
    return "changed: " + ", ".join(changes) if changes else "caching is off, or its result is gone"


def differing(name: str, old: object, new: object) -> list[str]:
    """Return the names of what differs between two values; texts of JSON objects are looked into."""
    old, new = _parsed(old), _parsed(new)
    if isinstance(old, dict) and isinstance(new, dict):
        return [each for key in sorted(old.keys() | new.keys())
                for each in differing(f"{name}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [name]


def _parsed(value: object) -> object:
    if not (isinstance(value, str) and value.startswith("{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _ids(ids: list[int]) -> str:
    return "+".join(map(str, ids)) or "none"


def pushed(run: Run) -> Stored | None:
    """Return the pushed version that a run led to, now or when its result was cached; None where it led to none."""
    step = run.step("Pusher")
    found = step.outputs.get("pushed_model", ()) if step and step.state in ("complete", "cached") else ()
    for artifact in found:
        if artifact.properties.get("pushed") == 1 and Path(artifact.properties["pushed_destination"]).is_dir():
            return artifact
    return None


def refusals(run: Run) -> list[str]:
    """Return what the blessings of a run say that refused."""
    found = (artifact for step in run.steps for group in step.outputs.values() for artifact in group)
    return [artifact.properties.get("blessing_message", artifact.uri) for artifact in found
            if artifact.type in ("ModelBlessing", "InfraBlessing") and artifact.properties.get("blessed") != 1]
