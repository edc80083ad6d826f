"""Test the digest of a component's code, and the reported reasons of a rerun."""

import json

import pytest
from tfx.dsl.components.common.resolver import Resolver
from tfx.proto import infra_validator_pb2

from kseg import config as configs
from pipeline import definition
from pipeline.components import infra_validator
from pipeline.metadata import code_digest, summary
from pipeline.metadata.metadata_store import Execution, StoredArtifact

SOURCES = {
    "pipeline/one.py": "from kseg import inner, number\nimport numpy\n\ndef f():\n    from kseg.lazy import g\n",
    "kseg/__init__.py": "from kseg import apart\n\nnumber = 1\n",
    "kseg/inner.py": "import pipeline.deep\n",
    "kseg/lazy.py": "def g(): pass\n",
    "kseg/apart.py": "",
    "pipeline/deep.py": "x = 1\n",
    "pipeline/other.py": "",
    "numpy.py": "",
}


@pytest.fixture
def sources(tmp_path, monkeypatch):
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code_digest, "ROOT", tmp_path)
    return tmp_path


def test_a_program_includes_all_its_imports(sources):
    assert sorted(code_digest.module_syntax("pipeline.one")) == [
        "kseg",
        "kseg.apart",
        "kseg.inner",
        "kseg.lazy",
        "pipeline.deep",
        "pipeline.one",
    ]
    # The __init__.py of an imported module's package does not count.
    assert sorted(code_digest.module_syntax("kseg.inner")) == ["kseg.inner", "pipeline.deep"]


@pytest.mark.parametrize(
    ("name", "text", "changes"),
    [
        ("pipeline/deep.py", "x = 2\n", True),
        ("kseg/lazy.py", "def g(): return 1\n", True),
        ("pipeline/deep.py", "# A comment.\nx  =  1\n", False),
        ("pipeline/other.py", "y = 1\n", False),
    ],
)
def test_only_code_changes_the_digest(sources, name, text, changes):
    before = code_digest.code_digest("pipeline.one")
    assert code_digest.code_digest("pipeline.one") == before
    (sources / name).write_text(text)
    assert (code_digest.code_digest("pipeline.one") != before) is changes


def test_the_version_changes_the_digest(sources, monkeypatch):
    before = code_digest.code_digest("pipeline.one")
    monkeypatch.setattr(code_digest.kseg, "__version__", "99")
    assert code_digest.code_digest("pipeline.one") != before


def test_imports_for_type_checkers_do_not_count():
    _, imported = code_digest.parse_module("""
if TYPE_CHECKING:
    from kseg.training import loop
else:
    import kseg.cli
def f():
    from kseg.training import step
""")
    assert set(imported) & {"kseg.training.loop", "kseg.cli", "kseg.training.step"} == {
        "kseg.cli",
        "kseg.training.step",
    }


def test_a_change_of_the_evaluator_does_not_retrain():
    trained = code_digest.module_syntax("pipeline.components.trainer")
    evaluated = code_digest.module_syntax("pipeline.components.evaluator")
    assert {"kseg.training.trainer", "kseg.training.optimizers"} <= trained.keys() - evaluated.keys()
    assert {"pipeline.components.evaluator", "pipeline.metadata.blessing"} <= evaluated.keys() - trained.keys()
    # The Validator starts the server as a process, without importing it.
    assert "serving.grpc_api.services" in code_digest.module_syntax(
        "pipeline.components.serving_validator", "serving.server"
    )


def test_each_component_gets_the_digest_of_its_program():
    container = infra_validator.serving_spec("a:1", infra_validator_pb2.LocalDockerConfig())
    settings = definition.Settings(configs.load("encnet_shapes"), "root", "serving", "0123", container=container)
    components = [component for component in definition.components(settings) if not isinstance(component, Resolver)]
    programs = {
        component.id: component.exec_properties.get("program")
        or json.loads(component.exec_properties["custom_config"])["program"]
        for component in components
    }
    modules = {
        "Ingest": ["ingest"],
        "Examiner": ["data_validator"],
        "Trainer": ["trainer"],
        "Evaluator": ["evaluator"],
        "Pusher": ["pusher"],
        "Validator": ["serving_validator"],
        "Requests": ["infra_validator"],
        "InfraValidator": ["infra_validator"],
    }
    expected = {node: [f"pipeline.components.{name}" for name in names] for node, names in modules.items()}
    expected["Validator"].append("serving.server")
    assert programs == {node: code_digest.code_digest(*names) for node, names in expected.items()}


def step(inputs=(), state="complete", **properties):
    return Execution(
        1,
        "pipeline.x.X",
        "X",
        state,
        1.0,
        properties,
        {key: tuple(StoredArtifact(number, "Examples", "", {}) for number in ids) for key, ids in inputs},
        {},
    )


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        (step(program="a"), step(program="b"), "changed: program"),
        (
            step(custom_config='{"config": "{\\"steps\\": 1}", "program": "a"}'),
            step(custom_config='{"config": "{\\"steps\\": 2}", "program": "a"}'),
            "changed: custom_config.config.steps",
        ),
        (
            step(custom_config='{"a": 1}'),
            step(custom_config='{"a": 1, "program": "b"}'),
            "changed: custom_config.program",
        ),
        (step(text="{no JSON"), step(text="{none"), "changed: text"),
        (step([("model", [1])]), step([("model", [2, 3])]), "changed: model 1 -> 2+3"),
        (step(state="failed"), step(), "failed in the previous run"),
        (step(state="running"), step(), "interrupted in the previous run"),
        (step(), step(**dict.fromkeys("abcdefg", 1)), "changed: a, b, c, d, e, 2 more"),
        (None, step(), "first run"),
        (step(), step(state="cached"), ""),
    ],
)
def test_reasons_of_a_rerun(before, now, reason):
    assert summary.rerun_reason(now, before) == reason
