"""The model benchmark: its forms, its workers, its table and its errors."""

import json
import os

import numpy as np
import pytest

from kseg import benchmark, models
from kseg import config as configs
from kseg.config import Config
from kseg.config.sections import Evaluate
from kseg.datasets import registry
from kseg.errors import ConfigError
from kseg.inference import prediction
from kseg.profiling import model_benchmark, model_forms
from kseg.profiling.model_benchmark import Form, ModelFigures
from kseg.profiling.model_forms import Facts, Job
from kseg.profiling.worker import Worker
from tests.helpers.exhaustive import exhaustive
from tests.helpers.running import TINY
from tests.helpers.small_models import tiny

ARGUMENTS = ["model", "--config", "encnet_shapes", "--set", *TINY, "model.head=fcn"]
FACTS = Facts(1_234_567, 1_200_000, 1_000_000, 4_500_000, 987_654_321, "processor, 2 threads", {"TensorFlow": "2.0"})


@exhaustive
def test_command_prints_and_writes_all_forms(tmp_path, capfd):
    path = tmp_path / "figures.json"
    assert (
        benchmark.main(
            [
                *ARGUMENTS,
                "--size",
                "32,48",
                "--batch",
                "2",
                "--rounds",
                "2",
                "--seconds",
                "0.05",
                "--threads",
                "1",
                "--json",
                str(path),
            ]
        )
        == 0
    )
    stored, (output, errors) = json.loads(path.read_text()), capfd.readouterr()
    assert stored["missing"] == {}
    # The processes of the forms start TensorFlow quietly.
    assert "InitializeLog" not in errors and "cuInit" not in errors
    facts = Facts(**stored.pop("facts"))
    forms = tuple(Form(**form) for form in stored.pop("forms"))
    figures = ModelFigures(**stored, facts=facts, forms=forms)
    assert model_benchmark.model_table(figures) in output
    assert (figures.config, figures.size, figures.batch) == ("encnet_shapes", [32, 48], 2)
    assert [form.name for form in forms] == ["eager", "compiled", "exported"]
    for form in forms:
        assert form.calls >= 2 and 0 < form.latencies["p50"] <= form.latencies["p99"] <= form.first_call
        # TensorFlow alone needs that much.
        assert form.peak_memory > 100 * 2**20
    classes = len(registry.find_dataset(configs.load("encnet_shapes").data).classes)
    model = models.build(tiny(head="fcn", output_stride=16), classes)
    assert facts.parameters == model.count_params()
    assert facts.trainable == sum(np.prod(weight.shape) for weight in model.trainable_weights)
    main = models.main_only(model)
    # Norms are folded into the preceding convolutions.
    kernels = sum(np.prod(weight.shape) for weight in main.weights if len(weight.shape) == 4)
    assert kernels < facts.exported < main.count_params() < facts.parameters
    assert facts.exported_bytes > 4 * facts.exported
    assert ", 1 threads" in facts.device
    assert [line for line in output.splitlines() if line.startswith("round ")][-1].startswith("round 2 of 2: eager ")


@exhaustive
def test_all_forms_return_the_same_class_ids(tmp_path, monkeypatch):
    job = Job(Config(model=tiny(head="encnet"), evaluate=Evaluate()), 5, (33, 50))
    model = models.build(job.config.model, job.classes)
    monkeypatch.setattr(model_forms, "build_job_model", lambda job: model)
    model_forms.model_facts(job, str(tmp_path))
    image = np.random.default_rng(1).integers(0, 256, (1, 33, 50, 3), np.uint8)
    expected = prediction.predictor(model, prediction.protocol_of(job.config))(image[0])
    assert len(np.unique(expected)) > 1
    for form in model_forms.FORMS.values():
        class_ids = form(job, str(tmp_path))(image).numpy()
        assert class_ids.shape == (1, 33, 50)
        # XLA rounds differently.
        assert (class_ids[0] == expected).mean() > 0.99


@pytest.mark.parametrize(
    "words, message",
    [
        (["--size", "512"], "--size is '512'; it must be HEIGHT,WIDTH"),
        (["--size", "1,2,3"], "'1,2,3'"),
        (["--size", "a,b"], "'a,b'"),
        (["--size=-1,2"], "'-1,2'"),
        (["--size", "0,64"], "height is 0"),
        (["--size", "64,0"], "width is 0"),
        (["--batch", "0"], "batch is 0"),
        (["--rounds", "0"], "rounds is 0"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_invalid_arguments_are_errors(words, message):
    with pytest.raises(ConfigError, match=message):
        benchmark.main([*ARGUMENTS, *words])


def test_unknown_config_is_an_error():
    with pytest.raises(ConfigError, match="encnet_shape"):
        benchmark.main(["model", "--config", "encnet_shape"])


def test_size_defaults_to_the_crop():
    config = configs.load("encnet_cityscapes")
    assert benchmark.parse_size(None, config) == (512, 1024)
    assert benchmark.parse_size("96,160", config) == (96, 160)


def test_death_of_a_worker_is_an_error():
    worker = Worker(os._exit)
    with pytest.raises(RuntimeError, match="status 1"):
        worker.ask(None)
    worker.close()


class FakeWorker:
    """Answer messages with given results; a string is raised as an error."""

    def __init__(self, *answers):
        self.answers, self.closed = list(answers), False

    def ask(self, message):
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self):
        self.closed = True


def measure(monkeypatch, reports, **workers):
    monkeypatch.setattr(model_benchmark, "Worker", lambda target, job, directory, name: workers[name])
    monkeypatch.setattr(model_benchmark, "_compute_facts", lambda job, directory: FACTS)
    return model_benchmark.measure_model(Job(Config(), 5, (8, 8), batch=4), tuple(workers), 2, report=reports.append)


def test_failing_form_is_reported_and_skipped(monkeypatch):
    calls = [([0.5, 0.25, 0.25], 30 * 2**20, None), ([1.0], 40 * 2**20, None)]
    reports, eager, compiled = [], FakeWorker(2.5, calls[0], "too little memory"), FakeWorker(1.5, *calls)
    figures = measure(monkeypatch, reports, eager=eager, compiled=compiled)
    assert figures.missing == {"eager": "too little memory"}
    assert any("eager" in line and "too little memory" in line for line in reports)
    assert eager.closed and compiled.closed
    [form] = figures.forms
    # The rounds measured 12 images in 1 s and 4 images in 1 s.
    assert (form.rate, form.calls, form.first_call, form.peak_memory) == (8, 4, 1.5, 40 * 2**20)
    assert form.latencies == pytest.approx({"p50": 0.375, "p90": 0.85, "p95": 0.925, "p99": 0.985})
    lines = model_benchmark.model_table(figures).splitlines()
    assert all(number in lines[1] for number in ("1,234,567", "1,200,000", "1,000,000", "4.5 MB"))
    assert lines[2].startswith("multiply-adds  987,654,321 ")
    assert lines[4].split() == ["compiled", "8.00", "375.0", "850.0", "925.0", "985.0", "4", "1.5", "40"]
    assert "eager" in lines[5] and "too little memory" in lines[5]


def test_no_measured_form_is_an_error(monkeypatch):
    with pytest.raises(model_benchmark.MeasurementError, match="eager: none; compiled: neither"):
        measure(monkeypatch, [], eager=FakeWorker("none"), compiled=FakeWorker("neither"))


def test_error_line_is_the_most_informative_one():
    error = RuntimeError("in user code:\n\n  File x\n    call()\n\n    TypeError: no\n\t [[{{node x}}]]\nHint: more")
    assert model_forms.error_line(error) == "RuntimeError: TypeError: no"
    assert model_forms.error_line(ValueError()) == "ValueError: "
