"""What stands for a component's program, and what is told of changes."""

import json

import pytest
from tfx.dsl.components.common.resolver import Resolver
from tfx.proto import infra_validator_pb2

from kseg import config as configs
from pipeline import definition
from pipeline.components import infra_validator
from pipeline.metadata import code_digest, summary
from pipeline.metadata.metadata_store import Step, Stored

SOURCES = {
    "pipeline/one.py": "from kseg import inner, number\nimport numpy\n\ndef f():\n    from kseg.lazy import g\n",
    "kseg/__init__.py": "from kseg import apart\n\nnumber = 1\n", "kseg/inner.py": "import pipeline.deep\n",
    "kseg/lazy.py": "def g(): pass\n", "kseg/apart.py": "", "pipeline/deep.py": "x = 1\n", "pipeline/other.py": "",
    "numpy.py": ""}


@pytest.fixture
def sources(tmp_path, monkeypatch):
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_digest, "ROOT", tmp_path)
    return tmp_path


def test_a_program_is_all_that_it_imports(sources):
    assert sorted(code_digest.modules("pipeline.one")) == [
        "kseg", "kseg.apart", "kseg.inner", "kseg.lazy", "pipeline.deep", "pipeline.one"]
    # Of a package only what is named: not what its own file gathers.
    assert sorted(code_digest.modules("kseg.inner")) == ["kseg.inner", "pipeline.deep"]


@pytest.mark.parametrize(("name", "text", "changes"), [
    ("pipeline/deep.py", "x = 2\n", True), ("kseg/lazy.py", "def g(): return 1\n", True),
    ("pipeline/deep.py", "# Of no matter.\nx  =  1\n", False), ("pipeline/other.py", "y = 1\n", False)])
def test_what_changes_a_digest(sources, name, text, changes):
    before = code_digest.digest("pipeline.one")
    assert code_digest.digest("pipeline.one") == before
    (sources / name).write_text(text)
    assert (code_digest.digest("pipeline.one") != before) is changes


def test_the_version_counts(sources, monkeypatch):
    before = code_digest.digest("pipeline.one")
    monkeypatch.setattr(code_digest.kseg, "__version__", "99")
    assert code_digest.digest("pipeline.one") != before


def test_a_change_of_the_evaluation_trains_nothing_again():
    trained, evaluated = code_digest.modules("pipeline.components.trainer"), code_digest.modules("pipeline.components.evaluator")
    assert {"kseg.train", "kseg.training.optimizers"} <= trained.keys() - evaluated.keys()
    assert {"pipeline.components.evaluator", "pipeline.metadata.blessing"} <= evaluated.keys() - trained.keys()
    # What the Validator starts is no import of its.
    assert "serving.grpc_api.services" in code_digest.modules("pipeline.components.serving_validator", "serving.server")


def test_each_component_is_told_its_program():
    container = infra_validator.serving_spec("a:1", infra_validator_pb2.LocalDockerConfig())
    settings = definition.Settings(configs.load("encnet_shapes"), "root", "serving", "0123", container=container)
    made = [each for each in definition.components(settings) if not isinstance(each, Resolver)]
    told = {each.id: each.exec_properties.get("program") or json.loads(each.exec_properties["custom_config"])["program"]
            for each in made}
    alone = {name: code_digest.digest(f"pipeline.{name.lower()}") for name in (
        "Ingest", "Examiner", "Trainer", "Evaluator", "Pusher")}
    assert told == alone | {"Validator": code_digest.digest("pipeline.components.serving_validator", "serving.server")} | dict.fromkeys(
        ("Requests", "InfraValidator"), code_digest.digest("pipeline.components.infra_validator"))


def step(inputs=(), state="complete", **properties):
    return Step(1, "pipeline.x.X", "X", state, 1.0, properties, {
        key: tuple(Stored(each, "Examples", "", {}) for each in ids) for key, ids in inputs}, {})


@pytest.mark.parametrize(("before", "now", "reason"), [
    (step(program="a"), step(program="b"), "changed: program"),
    (step(custom_config='{"config": "{\\"steps\\": 1}", "program": "a"}'),
     step(custom_config='{"config": "{\\"steps\\": 2}", "program": "a"}'), "changed: custom_config.config.steps"),
    (step(custom_config='{"a": 1}'), step(custom_config='{"a": 1, "program": "b"}'), "changed: custom_config.program"),
    (step(text="{no JSON"), step(text="{none"), "changed: text"),
    (step([("model", [1])]), step([("model", [2, 3])]), "changed: model 1 -> 2+3"),
    (step(state="failed"), step(), "failed the time before"),
    (step(state="running"), step(), "cut off the time before"),
    (step(), step(**dict.fromkeys("abcdefg", 1)), "changed: a, b, c, d, e, 2 more"),
    (None, step(), "first time"), (step(), step(state="cached"), "")])
def test_why_a_component_ran(before, now, reason):
    assert summary.why(now, before) == reason
