"""What docs/serving.md tells to do, done; and the files it speaks of, on this project's server."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, predict_pb2
from tensorflow_serving.config import model_server_config_pb2

import serving
from serving.config import flags
from serving.errors import ServingError
from tests.helpers import documents, small_servables
from tests.helpers.running_servers import QUICK, connected, running

SERVING = Path(serving.__file__).parent
GUIDE = (SERVING.parent / "docs" / "serving.md").read_text(encoding="utf-8")
STEPS = [({1}, 1, 1), ({1, 2}, 1, 1), ({1, 2}, 1, 2), ({1, 2}, 2, 2), ({2}, 2, 2)]


def model_file(directory, step):
    """The text of models.config at a step of the guide's table, for models in a directory."""
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    versions, stable, canary = step
    model.base_path = str(directory / "segmentation")
    model.model_version_policy.specific.versions[:] = versions
    model.version_labels["stable"], model.version_labels["canary"] = stable, canary
    return text_format.MessageToString(config)


def options(directory, **more):
    """As the manifests start the CPU's server, but for paths and ports."""
    document = yaml.safe_load((SERVING / "compose.yaml").read_text())
    given = [
        each.replace("${CPUS:-2}", "2")
        .replace("/config/models.config", str(directory / "models.config"))
        .replace("/config", str(SERVING))
        for each in document["services"]["serving"]["command"]
    ]
    values = {"port": -1, "rest_api_port": 0, "grace_seconds": QUICK.grace_seconds, "max_num_load_retries": 0}
    return dataclasses.replace(flags.parse_flags(given), **values | more)


@pytest.fixture
def models(tmp_path):
    """Versions 1 (y = x / 2 + 1) and 2 (y = x / 2 + 2), and a models.config of the first step."""
    base = tmp_path / "segmentation"
    base.mkdir()
    for version in (1, 2):
        small_servables.half_plus_two(base, version, add=float(version))
    (tmp_path / "models.config").write_text(model_file(tmp_path, STEPS[0]))
    return tmp_path


def answered(stubs, label=""):
    """The version that answers, by its value as well as by its number."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "segmentation"
    if label:
        request.model_spec.version_label = label
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(2.0)
    response = stubs.predictions.Predict(request, timeout=20)
    assert response.outputs["y"].float_val[0] == 1 + response.model_spec.version.value
    return response.model_spec.version.value


def reload(stubs, text):
    """Ask for a list of models, and wait until its versions and no others are available."""
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    stubs.models.HandleReloadConfigRequest(request, timeout=60)
    wanted = {
        version
        for model in request.config.model_config_list.config
        for version in model.model_version_policy.specific.versions
    }
    until(lambda: available(stubs) == wanted)


def available(stubs):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "segmentation"
    statuses = stubs.models.GetModelStatus(request, timeout=20).model_version_status
    return {each.version for each in statuses if each.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE}


def test_the_table_of_flags_is_the_program_s():
    table = GUIDE.split("<!-- flags -->\n")[1].split("<!-- end of flags -->")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert all(len(row) == 3 and row[2] for row in rows)
    described = [(re.fullmatch(r"`(\w+)`(| \*\(own\)\*)", row[0]).groups(), row[1]) for row in rows]
    expected = []
    for each in dataclasses.fields(flags.Options):
        default = str(each.default).lower() if each.type is bool or each.type == "bool" else str(each.default)
        if each.name in ("rest_api_num_threads", "grpc_max_threads"):
            assert each.default == 4 * flags.CPUS
            default = "4 x CPUs"
        own = " *(own)*" if each.metadata["help"].startswith(flags.OWN) else ""
        expected.append(((each.name, own), default))
    assert described == expected


def test_flags_and_files_that_the_guide_names_exist():
    known = {each.name for each in dataclasses.fields(flags.Options)}
    assert set(re.findall(r"--([a-z]+(?:_[a-z]+)+)", GUIDE)) <= known
    for command in re.findall(r"serving/[\w./-]+", GUIDE):
        assert (SERVING.parent / command).exists() or command.startswith("serving/segmentation"), command


def test_the_steps_are_the_guide_s():
    rows = re.findall(r"^\| [^|]+ \| ([\d, ]+) \| (\d) \| (\d) \|$", GUIDE, re.MULTILINE)
    assert [
        ({int(each) for each in versions.split(",")}, int(stable), int(canary)) for versions, stable, canary in rows
    ] == STEPS


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_quick_start_s_requests(tmp_path):
    (block,) = documents.run_by("test_guide")
    assert block.text.startswith("python -m serving.client")
    served = tmp_path / "served" / "segmentation"
    served.mkdir(parents=True)
    small_servables.segmentation(served, 1)
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "street.png")
    shutil.copy(tmp_path / "photos" / "street.png", tmp_path / "street.jpg")
    started = dataclasses.replace(QUICK, model_name="segmentation", model_base_path=str(served), rest_api_port=-1)
    with running(started) as running_server:
        commands = block.text.replace("8500", str(running_server.grpc_port))
        commands = commands.replace("8501", str(running_server.rest_port))
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(SERVING.parent)},
        )
    assert result.returncode == 0, result.stderr
    assert "serving_default" in result.stdout
    for name in ("ids.png", "predicted/ids/street.png"):
        with Image.open(tmp_path / name) as ids:
            np.testing.assert_array_equal(np.asarray(ids), small_servables.ids_of(image))


def test_the_table_of_bytes_is_that_of_the_messages():
    ids = (np.arange(512 * 1024) // 4096 % 19).astype(np.uint8).reshape(1, 512, 1024)
    noise = np.random.default_rng(0).integers(128, 256, (1, 512, 1024)).astype(np.uint8)
    image = np.random.default_rng(0).integers(128, 256, (1, 512, 1024, 3)).astype(np.uint8)
    for name, tensor in (("image`, in a request", image), ("class_map`", ids), ("confidence`", noise)):
        (cells,) = re.findall(rf"^\| `{name} \|(.*)\|$", GUIDE, re.MULTILINE)
        as_values, as_content, as_json = (
            [float(each) for each in re.findall(r"[\d.]+", cell)] for cell in cells.split("|")
        )
        content = predict_pb2.PredictResponse(outputs={name: tf.make_tensor_proto(tensor)})
        values = predict_pb2.PredictResponse()
        values.outputs[name].int_val.extend(tensor.ravel().tolist())
        assert as_content == [pytest.approx(content.ByteSize() / 1e6, rel=0.01)]
        assert as_values == [pytest.approx(values.ByteSize() / 1e6, rel=0.02)]
        # With blanks after commas, as TensorFlow Serving writes it; the most, as all these values have three digits.
        text = json.dumps({"outputs": tensor.tolist()})
        assert as_json == [pytest.approx(len(text) / 1e6, rel=0.02)]
    assert f"{512 * 1024 * 19 * 4 / 1e6:.1f} MB" in GUIDE


def test_a_canary_is_promoted_and_rolled_back_step_by_step(models):
    with running(options(models)) as running_server, connected(running_server) as stubs:
        for step in [*STEPS, *STEPS[-2::-1]]:
            reload(stubs, model_file(models, step))
            versions, stable, canary = step
            assert (answered(stubs, "stable"), answered(stubs, "canary")) == (stable, canary)
            # A request without a label gets the newest version.
            assert answered(stubs) == max(versions)
        # Two steps at once: a label in use does not move to what is not loaded, and everything stays.
        with pytest.raises(grpc.RpcError) as error:
            reload(stubs, model_file(models, STEPS[2]))
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "Request to assign label to version 2 of model segmentation" in error.value.details()
        assert answered(stubs, "canary") == answered(stubs) == 1


def test_the_reload_of_the_guide_and_the_reading_of_the_file(models, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    started = options(models, model_config_file_poll_wait_seconds=1)
    with running(started) as running_server, connected(running_server) as stubs:
        place = models / "models.config"
        place.write_text(model_file(models, STEPS[1]))
        assert snippet.count("serving/models.config") == snippet.count("localhost:8500") == 1
        exec(
            snippet.replace("serving/models.config", str(place)).replace(
                "localhost:8500", f"localhost:{running_server.grpc_port}"
            ),
            {},
        )
        until(lambda: answered(stubs) == 2)
        assert answered(stubs, "canary") == 1
        # Without a request: the server reads its file.
        place.write_text(model_file(models, STEPS[2]))
        until(lambda: answered(stubs, "canary") == 2)
        assert answered(stubs, "stable") == 1


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.1)


def test_the_health_check_of_compose_tells_whether_a_version_answers(models):
    document = yaml.safe_load((SERVING / "compose.yaml").read_text())
    test = [each.replace("$$", "$") for each in document["services"]["serving"]["healthcheck"]["test"]]
    assert test[0] == "CMD"
    with running(options(models, rest_api_port=-1)) as running_server, connected(running_server) as stubs:

        def healthy():
            command = [each.replace("/8501", f"/{running_server.rest_port}") for each in test[1:]]
            return subprocess.run(command, capture_output=True, timeout=30).returncode == 0

        assert healthy()
        reload(stubs, "model_config_list {}")
        assert not healthy()
    assert not healthy()


@pytest.mark.parametrize("service", ["serving", "serving-gpu"])
def test_the_configuration_files_start_a_server(models, service):
    batching = {"enable_batching": True, "batching_parameters_file": str(SERVING / "batching.config")}
    started = options(models, rest_api_port=-1, **(batching if service == "serving-gpu" else {}))
    with running(started) as running_server, connected(running_server) as stubs:
        assert answered(stubs) == 1
        with contextlib.closing(
            urllib.request.urlopen(
                f"http://127.0.0.1:{running_server.rest_port}/monitoring/prometheus/metrics", timeout=20
            )
        ) as page:
            text = page.read().decode()
        assert re.search(r'^:tensorflow:serving:request_count{.*status="OK".*} 1(\.0)?$', text, re.MULTILINE)
        batches = re.search(r"^:tensorflow:serving:batching_session:wrapped_run_count{.*} 1(\.0)?$", text, re.MULTILINE)
        assert bool(batches) == (service == "serving-gpu")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{running_server.rest_port}/v1/models/none/metadata", timeout=20)


def test_a_first_version_that_cannot_be_loaded_ends_the_start(models):
    (models / "segmentation" / "1").rename(models / "segmentation" / ".1.bad")
    small_servables.corrupt(models / "segmentation", 1)
    with pytest.raises(ServingError, match="(?i)saved_?model"), running(options(models)):
        pass
