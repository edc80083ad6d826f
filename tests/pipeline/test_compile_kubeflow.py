"""Test the Kubeflow specification by comparing its structure with a reviewed golden file."""

import json
from pathlib import Path

import pytest

from pipeline import compile_kubeflow
from tests.helpers.running import run_here

GOLDEN = Path(__file__).with_name("kubeflow_structure.json")
# Differences and additions with TFX's InfraValidator.
WITH_INFRA_VALIDATOR = Path(__file__).with_name("kubeflow_infra_validator.json")
ARGUMENTS = ["--config", "encnet_camvid", "--image", "registry/kseg:1", "--pipeline-root", "gs://bucket/pipeline"]


def structure(specification):
    """Return the artifacts between tasks, the parameters of tasks, and the executors."""
    spec = specification["pipelineSpec"]
    tasks = {}
    for name, task in spec["root"]["dag"]["tasks"].items():
        inputs = task.get("inputs", {})
        tasks[name] = {
            "artifacts": {
                key: "{producerTask}.{outputArtifactKey}".format(**value["taskOutputArtifact"])
                for key, value in inputs.get("artifacts", {}).items()
            },
            "parameters": sorted(inputs.get("parameters", {})),
            "after": sorted(task.get("dependentTasks", [])),
            "outputs": {
                key: value["artifactType"]["instanceSchema"].split("title: ")[1].split("\n")[0]
                for key, value in spec["components"][name]["outputDefinitions"]["artifacts"].items()
            },
        }
    return {
        "tasks": tasks,
        "executors": spec["deploymentSpec"]["executors"],
        "parameters": spec["root"]["inputDefinitions"]["parameters"],
        "runtime": specification["runtimeConfig"],
    }


def test_structure(tmp_path, capsys):
    out = tmp_path / "specification" / "pipeline.json"
    run_here(compile_kubeflow.main, [*ARGUMENTS, "--out", out, "--set", "data.directory=/gcs/bucket/camvid"], capsys)
    specification = json.loads(out.read_text())
    assert structure(specification) == json.loads(GOLDEN.read_text())
    tasks = specification["pipelineSpec"]["root"]["dag"]["tasks"]

    def constant(task, key):
        return json.loads(tasks[task]["inputs"]["parameters"][key]["runtimeValue"]["constantValue"]["stringValue"])

    assert constant("Ingest", "data") == {"name": "camvid", "directory": "/gcs/bucket/camvid"}
    assert json.loads(constant("Trainer", "custom_config")["config"])["train"]["steps"] == 2400


def test_structure_with_the_infra_validator(tmp_path, capsys):
    out = tmp_path / "pipeline.json"
    run_here(
        compile_kubeflow.main,
        [
            *ARGUMENTS,
            "--out",
            out,
            "--infra-validator",
            "registry:5000/serving:2.19.1",
            "--set",
            "data.directory=/gcs/bucket/camvid",
        ],
        capsys,
    )
    specification, expected = json.loads(out.read_text()), json.loads(GOLDEN.read_text())
    for key, additions in json.loads(WITH_INFRA_VALIDATOR.read_text()).items():
        expected[key] |= additions
    assert structure(specification) == expected
    parameters = specification["pipelineSpec"]["root"]["dag"]["tasks"]["InfraValidator"]["inputs"]["parameters"]
    specs = {
        key: json.loads(parameters[key]["runtimeValue"]["constantValue"]["stringValue"])
        for key in ("serving_spec", "request_spec")
    }
    assert specs["serving_spec"] == {
        "tensorflow_serving": {"image_name": "registry:5000/serving", "tags": ["2.19.1"]},
        "kubernetes": {},
    }
    assert specs["request_spec"] == {
        "tensorflow_serving": {"signature_names": ["serve_tf_examples"]},
        "num_examples": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.directory=/gcs/bucket/camvid"], "--out"),
        (["--out", "x.json"], "data.directory"),
        (
            [
                "--out",
                "x.json",
                "--set",
                "data.directory=/gcs/bucket/camvid",
                "export.precision=int8",
                "export.device=cpu",
            ],
            "cannot calibrate export.precision=int8",
        ),
    ],
)
def test_missing_arguments_are_reported(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in run_here(compile_kubeflow.main, [*ARGUMENTS, *arguments], capsys, status=2)
    assert not list(tmp_path.iterdir())
