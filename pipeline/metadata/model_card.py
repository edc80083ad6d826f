"""Write the model card of a pushed version: its data, metrics, blessing, lineage and config."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kseg.evaluation.metrics import percent_points
from pipeline import artifacts

if TYPE_CHECKING:
    from tfx.types import Artifact

NAME = "model_card.md"


def model_card_text(version: str, inputs: dict[str, "Artifact"]) -> str:
    """Return the model card of a version in Markdown.

    `inputs` are the artifacts that the version was pushed from: model, model_blessing, examples, evaluation, ...
    """
    metrics = json.loads(
        (Path(artifacts.mounted_path(inputs["evaluation"].uri)) / "metrics.json").read_text(encoding="utf-8")
    )
    config, provenance = metrics["config"], metrics["provenance"]
    examples = inputs["examples"]
    source = json.loads(examples.get_string_custom_property("data"))
    lines = [
        f"# {config['name']}, version {version}",
        "",
        f"{config['model']['head']} on {config['model']['backbone']}, {len(metrics['classes'])} classes; trained for "
        f"{config['train']['steps']} steps of {config['train']['global_batch']} crops; evaluated "
        f"{provenance['date']}.",
        "",
        "## Data",
        "",
        f"{source['name']} in `{source['directory']}`: {examples.get_int_custom_property('images')} examples, "
        f"{examples.get_int_custom_property('unreadable')} skipped as unreadable; fingerprint "
        f"`{examples.get_string_custom_property('fingerprint')}`, span {examples.span}.",
        "",
        "## Metrics",
        "",
        f"On {metrics['images']} images of {metrics['split']}: mIoU {_points(metrics['mIoU'])}, aAcc "
        f"{_points(metrics['aAcc'])}, mAcc {_points(metrics['mAcc'])}.",
        "",
        "| class | IoU | accuracy | pixels |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {name} | {_points(row['iou'])} | {_points(row['accuracy'])} | {row['pixels']:,} |"
        for name, row in metrics["classes"].items()
    ]
    lines += [
        "",
        "## Blessing",
        "",
        "```",
        inputs["model_blessing"].get_string_custom_property("blessing_message"),
        "```",
        "",
        "## Made with",
        "",
        *(f"- {key}: {provenance[key]}" for key in ("kseg", "git", "tensorflow", "keras", "python", "weights_sha256")),
        "",
        "## Lineage",
        "",
        "| artifact | id | location |",
        "|---|--:|---|",
    ]
    lines += [f"| {key} | {artifact.id} | `{artifact.uri}` |" for key, artifact in inputs.items()]
    return "\n".join([*lines, "", "## Config", "", "```json", json.dumps(config, indent=2), "```", ""])


def _points(value: float | None) -> str:
    return "-" if value is None else percent_points(value)
