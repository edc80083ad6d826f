"""Evaluate and bless a model with the component Evaluator; a Beam job counts the validation split."""

import dataclasses
import getpass
import json
import time
from pathlib import Path

from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from kseg.datasets import registry
from kseg.evaluation import evaluator, metrics, results
from kseg.inference import trained_model
from kseg.inference.prediction import predictor, protocol_of
from pipeline import artifacts
from pipeline.jobs import counting
from pipeline.jobs.counting import cached_counter, read_counts, trained_directory
from pipeline.metadata import blessing, code_digest

BLESSING = "blessing.json"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Count the candidate and the last blessed model on the same examples, then judge the candidate and report."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        candidate = artifact_utils.get_single_instance(input_dict["model"])
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        baseline = next(iter(input_dict.get("baseline_model") or []), None)
        evaluation = artifact_utils.get_single_instance(output_dict["evaluation"])
        output_blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        split = exec_properties["split"]
        counter, config = cached_counter(candidate.uri, examples.uri)
        opened, remarks = registry.open_split(config.data, split), ()
        dataset, names = opened.dataset, opened.names
        if baseline and trained_model.read_workdir(trained_directory(baseline.uri))[1].classes != dataset.classes:
            # The Examiner lets other classes pass only with --new-classes.
            remarks, baseline = ("the last blessed model has other classes and is not compared",), None
        baseline_blessing = next(iter(input_dict.get("baseline_blessing") or []), None)
        old = baseline and previous_metrics(baseline_blessing, examples, split)
        out = Path(artifacts.mounted_path(evaluation.uri))
        started = time.monotonic()
        with self._make_beam_pipeline() as job:
            models = {"new.npz": candidate} | ({"old.npz": baseline} if baseline and not old else {})
            for name, model in models.items():
                counting.add_counting(
                    job,
                    model.uri,
                    examples.uri,
                    split,
                    len(names),
                    exec_properties["images_per_bundle"],
                    str(out / name),
                )
        seconds = time.monotonic() - started
        counts = read_counts(str(out / "new.npz"), names)
        if baseline and not old:
            old = metrics.summarize(read_counts(str(out / "old.npz"), names).matrix, dataset.classes)
        weights = trained_model.best_weights(trained_directory(candidate.uri))
        new = results.summarize_split(counts, config, dataset.classes, split) | {
            "timing": {
                "seconds": seconds,
                "images_per_second": len(names) / seconds,
                "devices": f"Beam: {self._beam_pipeline_args[0].removeprefix('--runner=')}",
            },
            "provenance": results.provenance(dataset.name, config.data.directory, weights),
        }
        results.write_results(out, new, counts, dataset.classes)
        evaluator.write_evaluation_report(
            predictor(counter.model, protocol_of(config)), dataset, opened, counts, new, out
        )
        for name in ("new.npz", "old.npz"):
            (out / name).unlink(missing_ok=True)
        rule = blessing.Rule(**json.loads(exec_properties["rule"]))
        verdict = blessing.judge(rule, new, old)
        verdict = verdict._replace(reasons=verdict.reasons + remarks)
        write_blessing(output_blessing, verdict, new, rule, exec_properties["force"])
        output_blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, candidate.id)
        output_blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, candidate.uri)
        output_blessing.set_string_custom_property("examples", examples.uri)
        output_blessing.set_string_custom_property("split", split)
        if baseline:
            output_blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
            output_blessing.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)


def previous_metrics(baseline_blessing: types.Artifact | None, examples: types.Artifact, split: str) -> dict | None:
    """Return the last blessed model's metrics from its blessing, None if they are of other examples."""
    if (
        baseline_blessing is None
        or baseline_blessing.get_string_custom_property("examples") != examples.uri
        or baseline_blessing.get_string_custom_property("split") != split
    ):
        return None
    path = Path(artifacts.mounted_path(baseline_blessing.uri)) / BLESSING
    return json.loads(path.read_text(encoding="utf-8"))["summary"]


def write_blessing(
    artifact: types.Artifact, verdict: blessing.Verdict, summary: dict, rule: blessing.Rule, force: str
) -> None:
    """Write a ModelBlessing like TFX's Evaluator, and the reasons of the verdict.

    Args:
        artifact: The ModelBlessing.
        verdict: Decision about the model.
        summary: Metrics of the model.
        rule: The rule behind the verdict.
        force: Reason to bless the model against the verdict; empty: follow the verdict.
    """
    if force and not verdict.blessed:
        verdict = verdict._replace(blessed=True, reasons=(f"forced by {getpass.getuser()}: {force}", *verdict.reasons))
    message = blessing.verdict_text(verdict)
    print(message)
    out = Path(artifacts.mounted_path(artifact.uri))
    ious = {name: {"iou": row["iou"]} for name, row in summary["classes"].items()}
    content = {
        "blessed": verdict.blessed,
        "reasons": verdict.reasons,
        "rule": dataclasses.asdict(rule),
        "classes": [{"class": name, "old": old, "new": new} for name, old, new in verdict.rows],
        "summary": {"mIoU": summary["mIoU"], "classes": ious},
    }
    # The round trip replaces NaN, which is not JSON, with null.
    text = json.dumps(json.loads(json.dumps(content), parse_constant=lambda name: None), indent=1)
    (out / BLESSING).write_text(text + "\n", encoding="utf-8")
    name = constants.BLESSED_FILE_NAME if verdict.blessed else constants.NOT_BLESSED_FILE_NAME
    (out / name).write_text(message + "\n", encoding="utf-8")
    artifact.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(verdict.blessed))
    artifact.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, message)


class EvaluatorSpec(types.ComponentSpec):
    PARAMETERS = {
        "split": ExecutionParameter(type=str),
        "rule": ExecutionParameter(type=str),
        "force": ExecutionParameter(type=str),
        "images_per_bundle": ExecutionParameter(type=int),
        "program": ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True),
        "baseline_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True),
    }
    OUTPUTS = {
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "blessing": ChannelParameter(type=standard_artifacts.ModelBlessing),
    }


class Evaluator(base_beam_component.BaseBeamComponent):
    """TFX component that outputs the `evaluation` and the `blessing` of a model on a split.

    The evaluation contains metrics.json, report.html, confusion.npy and more. `rule` is a blessing.Rule as JSON.
    `force` is a reason to bless the model against the rule; empty: follow the rule.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        split: str,
        rule: str,
        force: str,
        images_per_bundle: int,
        baseline_model: types.BaseChannel | None = None,
        baseline_blessing: types.BaseChannel | None = None,
    ):
        super().__init__(
            EvaluatorSpec(
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                baseline_blessing=baseline_blessing,
                split=split,
                rule=rule,
                force=force,
                images_per_bundle=images_per_bundle,
                program=code_digest.code_digest(__name__),
                evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )
