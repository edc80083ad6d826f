"""The component Evaluator: a Beam job counts the validation split, and the result is a blessing or not."""

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
from pipeline.jobs.counting import counter_of, read_counts, trained_directory
from pipeline.metadata import blessing, code_digest

BLESSING = "blessing.json"


class Executor(base_beam_executor.BaseBeamExecutor):
    """Counts the candidate and, on the same examples, the last blessed model; judges and reports."""

    def Do(self, input_dict: dict, output_dict: dict, exec_properties: dict) -> None:
        candidate = artifact_utils.get_single_instance(input_dict["model"])
        stored = artifact_utils.get_single_instance(input_dict["examples"])
        baseline = next(iter(input_dict.get("baseline_model") or []), None)
        evaluation = artifact_utils.get_single_instance(output_dict["evaluation"])
        decided = artifact_utils.get_single_instance(output_dict["blessing"])
        split = exec_properties["split"]
        counter, config = counter_of(candidate.uri, stored.uri)
        opened, message = registry.open_split(config.data, split), ()
        dataset, names = opened.dataset, opened.names
        if baseline and trained_model.read_workdir(trained_directory(baseline.uri))[1].classes != dataset.classes:
            # The Examiner would have stopped, were they not said to be new.
            message, baseline = ("the last blessed model knows other classes, and is not compared with",), None
        old = baseline and earlier_metrics(next(iter(input_dict.get("baseline_blessing") or []), None), stored, split)
        out = Path(artifacts.mounted_path(evaluation.uri))
        started = time.monotonic()
        with self._make_beam_pipeline() as job:
            counted = {"new.npz": candidate} | ({"old.npz": baseline} if baseline and not old else {})
            for name, each in counted.items():
                counting.add_counting(job, each.uri, stored.uri, split, len(names), exec_properties["images_per_bundle"],
                                      str(out / name))
        seconds = time.monotonic() - started
        counts = read_counts(str(out / "new.npz"), names)
        if baseline and not old:
            old = metrics.summarize(read_counts(str(out / "old.npz"), names).matrix, dataset.classes)
        found = results.summarize_split(counts, config, dataset, split) | {
            "timing": {"seconds": seconds, "images_per_second": len(names) / seconds,
                       "devices": f"Beam: {self._beam_pipeline_args[0].removeprefix('--runner=')}"},
            "provenance": results.provenance(config, dataset, trained_model.best_weights(trained_directory(candidate.uri)))}
        results.write_results(out, found, counts, dataset.classes)
        evaluator.write_evaluation_report(predictor(counter.model, protocol_of(config)), dataset, opened, counts, found, out)
        for name in ("new.npz", "old.npz"):
            (out / name).unlink(missing_ok=True)
        rule = blessing.Rule(**json.loads(exec_properties["rule"]))
        verdict = blessing.judge(rule, found, old)
        verdict = verdict._replace(reasons=verdict.reasons + message)
        write_blessing(decided, verdict, found, rule, exec_properties["force"])
        decided.set_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY, candidate.id)
        decided.set_string_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY, candidate.uri)
        decided.set_string_custom_property("examples", stored.uri)
        decided.set_string_custom_property("split", split)
        if baseline:
            decided.set_int_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_ID_KEY, baseline.id)
            decided.set_string_custom_property(constants.ARTIFACT_PROPERTY_BASELINE_MODEL_URI_KEY, baseline.uri)


def earlier_metrics(decided: types.Artifact | None, stored: types.Artifact, split: str) -> dict | None:
    """Return what an earlier evaluation says of the last blessed model, where it was made on the same examples."""
    if (decided is None or decided.get_string_custom_property("examples") != stored.uri
            or decided.get_string_custom_property("split") != split):
        return None
    return json.loads((Path(artifacts.mounted_path(decided.uri)) / BLESSING).read_text(encoding="utf-8"))["summary"]


def write_blessing(decided: types.Artifact, verdict: blessing.Verdict, found: dict, rule: blessing.Rule, force: str) -> None:
    """Write a ModelBlessing as TFX's Evaluator does, with its reasons; `force` blesses whatever the verdict is."""
    if force and not verdict.blessed:
        verdict = verdict._replace(blessed=True, reasons=(f"forced by {getpass.getuser()}: {force}", *verdict.reasons))
    message = blessing.verdict_text(verdict)
    print(message)
    out = Path(artifacts.mounted_path(decided.uri))
    summary = {"mIoU": found["mIoU"], "classes": {name: {"iou": row["iou"]} for name, row in found["classes"].items()}}
    plain = {"blessed": verdict.blessed, "reasons": verdict.reasons, "rule": dataclasses.asdict(rule),
             "classes": [{"class": name, "old": old, "new": new} for name, old, new in verdict.rows],
             "summary": summary}
    text = json.dumps(json.loads(json.dumps(plain), parse_constant=lambda name: None), indent=1)
    (out / BLESSING).write_text(text + "\n", encoding="utf-8")
    name = constants.BLESSED_FILE_NAME if verdict.blessed else constants.NOT_BLESSED_FILE_NAME
    (out / name).write_text(message + "\n", encoding="utf-8")
    decided.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(verdict.blessed))
    decided.set_string_custom_property(constants.ARTIFACT_PROPERTY_BLESSING_MESSAGE_KEY, message)


class EvaluatorSpec(types.ComponentSpec):
    PARAMETERS = {"split": ExecutionParameter(type=str), "rule": ExecutionParameter(type=str),
                  "force": ExecutionParameter(type=str), "images_per_bundle": ExecutionParameter(type=int),
                  "program": ExecutionParameter(type=str)}
    INPUTS = {"examples": ChannelParameter(type=standard_artifacts.Examples),
              "model": ChannelParameter(type=standard_artifacts.Model),
              "baseline_model": ChannelParameter(type=standard_artifacts.Model, optional=True),
              "baseline_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True)}
    OUTPUTS = {"evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
               "blessing": ChannelParameter(type=standard_artifacts.ModelBlessing)}


class Evaluator(base_beam_component.BaseBeamComponent):
    """Gives `evaluation` (metrics.json, report.html, confusion.npy ...) and `blessing` of a model on a split.

    `rule` is a blessing.Rule as JSON; `force`, unless empty, is why the model is blessed whatever the rule says.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(self, examples: types.BaseChannel, model: types.BaseChannel, split: str, rule: str, force: str,
                 images_per_bundle: int, baseline_model: types.BaseChannel | None = None,
                 baseline_blessing: types.BaseChannel | None = None):
        super().__init__(EvaluatorSpec(
            examples=examples, model=model, baseline_model=baseline_model, baseline_blessing=baseline_blessing,
            split=split, rule=rule, force=force, images_per_bundle=images_per_bundle,
            program=code_digest.code_digest(__name__), evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
            blessing=types.Channel(type=standard_artifacts.ModelBlessing)))
