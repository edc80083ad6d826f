"""The files that run TensorFlow Serving's image: they are valid and agree with each other."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import kubernetes.client
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import serving
from serving.config import flags, protos
from serving.core import batch_tensors

SERVING = Path(serving.__file__).parent
CONFIGS = ("batching.config", "models.config", "monitoring.config")
# The client's class for each kind of resource.
KINDS = {
    "ConfigMap": "V1ConfigMap",
    "Service": "V1Service",
    "PersistentVolumeClaim": "V1PersistentVolumeClaim",
    "Deployment": "V1Deployment",
    "HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler",
    "PodDisruptionBudget": "V1PodDisruptionBudget",
    "NetworkPolicy": "V1NetworkPolicy",
}
# Fields of KServe's v1beta1 API. A predictor's other fields are a PodSpec's, its model's are a Container's.
KSERVE = {
    "predictor": {"minReplicas", "maxReplicas", "containerConcurrency", "timeout", "model"},
    "model": {"modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri"},
}
# kubectl contains kustomize, which applies the patches of kubernetes/gpu.
OVERLAYS = [
    "base",
    pytest.param("gpu", marks=pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")),
]


@functools.cache
def built_yaml(name):
    directory = SERVING / "kubernetes" / name
    if name == "base":
        names = yaml.safe_load((directory / "kustomization.yaml").read_text())["resources"]
        return "\n---\n".join((directory / each).read_text() for each in names)
    return subprocess.run(
        ["kubectl", "kustomize", directory], capture_output=True, text=True, check=True, timeout=60
    ).stdout


def manifests(name):
    """Return the resources of serving/kubernetes/NAME by kind and name."""
    resources = yaml.safe_load_all(built_yaml(name))
    return {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}


def pod(name):
    return manifests(name)["Deployment", "segmentation"]["spec"]["template"]["spec"]


def container(name):
    (only,) = pod(name)["containers"]
    return only


def compose(cpus="2"):
    """Return compose.yaml with its variables substituted."""
    text = (SERVING / "compose.yaml").read_text().replace("${CPUS:-2}", cpus)
    return yaml.safe_load(re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text))["services"]


def inference_services():
    return list(yaml.safe_load_all((SERVING / "kserve.yaml").read_text()))


def parsed(arguments):
    """Return the options of arguments that tensorflow_model_server knows too."""
    fields = {field.name: field for field in dataclasses.fields(flags.Options)}
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        assert name in fields and not fields[name].metadata["help"].startswith(flags.OWN), argument
    return flags.parse_flags(arguments)


def all_options(*overlays):
    """Return the options of compose.yaml and of Kubernetes overlays by file."""
    options = {f"compose.yaml {name}": parsed(service["command"]) for name, service in compose().items()}
    for name in overlays:
        cpus = container(name)["resources"]["limits"]["cpu"]
        options[name] = parsed([argument.replace("$(CPUS)", cpus) for argument in container(name)["args"]])
    return options


def model_config():
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    return model


def monitoring_config():
    return protos.parse_text_proto(
        SERVING / "monitoring.config", protos.MonitoringConfig, "MonitoringConfig"
    ).prometheus_config


def round_trip(content, kind):
    """Convert content to a class of the Kubernetes client and back, which drops unknown fields."""
    client = kubernetes.client.ApiClient()
    return client.sanitize_for_serialization(client.deserialize(SimpleNamespace(data=json.dumps(content)), kind))


# Formats


def test_labels_of_the_models_name_listed_versions():
    model = model_config()
    assert model.name == "segmentation" and model.model_platform == "tensorflow"
    assert set(model.version_labels) == {"stable", "canary"}
    assert set(model.model_version_policy.specific.versions) == set(model.version_labels.values())


def test_the_batching_parameters_are_consistent():
    parameters = protos.parse_text_proto(SERVING / "batching.config", protos.BatchingParameters, "BatchingParameters")
    settings = batch_tensors.read_settings(parameters)
    assert parameters.allowed_batch_sizes[-1] == parameters.max_batch_size.value == settings.max_request_rows
    # A server pads with an image's first value and does not crop the responses.
    assert not parameters.pad_variable_length_inputs


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_resources_have_known_fields_and_right_types(name):
    for (kind, _), resource in manifests(name).items():
        # `kubectl create configmap` writes this field without a value.
        resource["metadata"].pop("creationTimestamp", None)
        assert round_trip(resource, KINDS[kind]) == resource


def test_kserve_services_have_known_fields():
    for document in inference_services():
        assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
        predictor = document["spec"]["predictor"]
        model = predictor["model"]
        # KServe adds the required name and containers itself.
        pod_spec = {key: value for key, value in predictor.items() if key not in KSERVE["predictor"]}
        pod_spec |= {"containers": []}
        assert round_trip(pod_spec, "V1PodSpec") == pod_spec
        spec = {key: value for key, value in model.items() if key not in KSERVE["model"]} | {"name": "kserve-container"}
        assert round_trip(spec, "V1Container") == spec
        assert model["modelFormat"]["name"] == "tensorflow" and model["runtimeVersion"] == "2.20.0"
    assert [each["spec"]["predictor"]["model"]["protocolVersion"] for each in inference_services()] == ["v1", "grpc-v1"]


# Agreement between the files


def test_the_config_map_contains_the_configuration_files():
    data = manifests("base")["ConfigMap", "segmentation-config"]["data"]
    assert data == {name: (SERVING / name).read_text() for name in CONFIGS}


@pytest.mark.parametrize("name", OVERLAYS)
def test_flags_are_known_and_name_mounted_files(name):
    for source, options in all_options(name).items():
        for flag in ("model_config_file", "monitoring_config_file", "batching_parameters_file"):
            path = getattr(options, flag)
            assert not path or path in [f"/config/{config}" for config in CONFIGS], (source, path)
        assert options.model_config_file and options.monitoring_config_file, source
        assert options.model_config_file_poll_wait_seconds > 0, source
        # batching_parameters_file without enable_batching is an error.
        assert options.enable_batching == bool(options.batching_parameters_file) == ("gpu" in source), source
        # Labels of versions that are not loaded yet would be an error at the start.
        assert options.allow_version_labels_for_unavailable_models, source
        assert options.enable_grpc_healthcheck_service, source
        assert (options.port, options.rest_api_port) == (8500, 8501), source


def test_cpu_servers_use_one_thread_per_request_and_one_request_per_cpu():
    options = all_options("base")
    limits = {
        "compose.yaml serving": compose()["serving"]["cpus"],
        "base": int(container("base")["resources"]["limits"]["cpu"]),
    }
    for source, cpus in limits.items():
        assert options[source].tensorflow_intra_op_parallelism == 1, source
        assert options[source].tensorflow_inter_op_parallelism == cpus, source
    service = compose(cpus="7")["serving"]
    assert parsed(service["command"]).tensorflow_inter_op_parallelism == service["cpus"] == 7
    # Kubernetes passes an unknown variable to the server unexpanded.
    names = {variable["name"] for variable in container("base")["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container("base")["args"]))) <= names
    for document in inference_services():
        model = document["spec"]["predictor"]["model"]
        assert parsed(model["args"]).tensorflow_inter_op_parallelism == int(model["resources"]["limits"]["cpu"])


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_models_and_the_configuration_are_mounted(name):
    base_path = Path(model_config().base_path)
    mounts = {mount["name"]: mount for mount in container(name)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert base_path.is_relative_to(mounts["models"]["mountPath"]) and mounts["models"]["readOnly"]
    # A file mounted with subPath would not follow changes of the ConfigMap.
    assert mounts["config"]["mountPath"] == "/config" and "subPath" not in mounts["config"]
    claim = volumes["models"]["persistentVolumeClaim"]["claimName"]
    assert ("PersistentVolumeClaim", claim) in manifests(name)
    assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in manifests(name)
    for service in compose().values():
        assert service["volumes"] == ["../served:/models:ro", ".:/config:ro"]
    for document in inference_services():
        uri = document["spec"]["predictor"]["model"]["storageUri"]
        assert uri == f"pvc://{claim}/{base_path.relative_to('/models')}"


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_and_scrapes_use_the_configured_paths(name):
    metadata, metrics = f"/v1/models/{model_config().name}/metadata", monitoring_config().path
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for probe in ("startupProbe", "readinessProbe"):
        assert container(name)[probe]["httpGet"] == {"path": metadata, "port": "rest"}
    assert container(name)["livenessProbe"]["grpc"] == {"port": 8500}
    annotations = manifests(name)["Deployment", "segmentation"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == metrics and annotations["prometheus.io/port"] == "8501"
    service = inference_services()[0]
    assert service["spec"]["predictor"]["model"]["readinessProbe"]["httpGet"]["path"] == metadata
    assert service["metadata"]["annotations"]["prometheus.kserve.io/path"] == metrics
    assert f"GET {metadata} HTTP" in compose()["serving"]["healthcheck"]["test"][-1]
    assert f"metrics_path: {metrics}\n" in (SERVING / "prometheus_rules.yaml").read_text()


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_and_ports_match(name):
    resources = manifests(name)
    deployment = resources["Deployment", "segmentation"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    selectors = [
        deployment["selector"]["matchLabels"],
        resources["Service", "segmentation"]["spec"]["selector"],
        resources["Service", "segmentation-grpc"]["spec"]["selector"],
        resources["PodDisruptionBudget", "segmentation"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy", "segmentation"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    ports = {port["name"]: port["containerPort"] for port in container(name)["ports"]}
    for service in ("segmentation", "segmentation-grpc"):
        for port in resources["Service", service]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for rule in resources["NetworkPolicy", "segmentation"]["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= ports.keys()
    scaler = resources.get(("HorizontalPodAutoscaler", "segmentation"))
    if scaler:
        assert ("Deployment", scaler["spec"]["scaleTargetRef"]["name"]) in resources
    # With an autoscaler, a number of replicas in the Deployment would be restored by every `kubectl apply`.
    assert ("replicas" in deployment) == (scaler is None) == (name == "gpu")


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_stop_right_after_their_pause(name):
    # TensorFlow Serving ignores SIGTERM as process 1, so a longer grace period only delays the end.
    command, seconds = container(name)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep" and int(seconds) < pod(name)["terminationGracePeriodSeconds"] <= int(seconds) + 10
