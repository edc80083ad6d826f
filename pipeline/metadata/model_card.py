"""The model card of a pushed version: what it is, what it was trained on, how good it is, and where all that stands."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kseg.evaluation.metrics import percent_points
from pipeline import artifacts

if TYPE_CHECKING:
    from tfx.types import Artifact

NAME = "model_card.md"


def model_card_text(version: str, inputs: dict[str, "Artifact"]) -> str:
    """Return the card, in Markdown, of a version pushed from `model`, `model_blessing`, `examples`, `evaluation`."""
    found = json.loads(
        (Path(artifacts.mounted_path(inputs["evaluation"].uri)) / "metrics.json").read_text(encoding="utf-8"))
    config, made = found["config"], found["provenance"]
    examples = inputs["examples"]
    source = json.loads(examples.get_string_custom_property("data"))
    lines = [
        f"# {config['name']}, version {version}", "",
        f"{config['model']['head']} on {config['model']['backbone']}, {len(found['classes'])} classes; trained "
        f"{config['train']['steps']} steps of {config['train']['global_batch']} crops; evaluated {made['date']}.", "",
        "## Data", "",
        f"{source['name']} in `{source['directory']}`: {examples.get_int_custom_property('images')} examples, "
        f"{examples.get_int_custom_property('unreadable')} left out as unreadable; fingerprint "
        f"`{examples.get_string_custom_property('fingerprint')}`, span {examples.span}.", "",
        "## Metrics", "",
        f"On {found['images']} images of {found['split']}: mIoU {_points(found['mIoU'])}, aAcc "
        f"{_points(found['aAcc'])}, mAcc {_points(found['mAcc'])}.", "",
        "| class | IoU | accuracy | pixels |", "|---|--:|--:|--:|"]
    lines += [f"| {name} | {_points(row['iou'])} | {_points(row['accuracy'])} | {row['pixels']:,} |"
              for name, row in found["classes"].items()]
    lines += ["", "## Blessing", "", "```", inputs["model_blessing"].get_string_custom_property("blessing_message"),
              "```", "", "## Made with", "",
              *(f"- {key}: {made[key]}" for key in ("kseg", "git", "tensorflow", "keras", "python", "weights_sha256")),
              "", "## Lineage", "", "| artifact | id | place |", "|---|--:|---|"]
    lines += [f"| {key} | {artifact.id} | `{artifact.uri}` |" for key, artifact in inputs.items()]
    return "\n".join([*lines, "", "## Config", "", "```json", json.dumps(config, indent=2), "```", ""])


def _points(value: float | None) -> str:
    return "-" if value is None else percent_points(value)
